"""Batches of items with one modality or with all, and the training loop that baselines share.

Notation: N items, B of them at a time, O outputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.config import ClientConfig
from common.data.batching import Padded, SequenceItems, batches, pad_all
from common.data.dataset import IntArray, MultimodalDataset, Sequences, concatenate
from common.data.federation import ClientData
from common.errors import UserError
from common.model.ha_fedformer import HAFedformer, task_loss
from common.seeding import generator
from common.task import Task
from common.training import choose_device, make_optimizer

#: Items of a batch where nothing is trained.
BATCH = 256

#: The title of what has every modality, in losses as in scores.
MULTIMODAL = "multimodal"

#: From the sequences of B items by modality to outputs (B, O).
Forward = Callable[[Mapping[str, Padded]], Tensor]


class Batch(NamedTuple):
    """Labelled items, by modality; their loss is recorded under the title."""

    title: str
    inputs: Mapping[str, Padded]
    labels: Tensor


#: From a seed to all batches once, in an order of that seed.
OnePass = Callable[[int], Iterable[Batch]]


def pooled_items(sites: Sequence[ClientData]) -> SequenceItems:
    """Join the train items of clients of one modality, client after client."""
    parts = []
    for site in sites:
        # Clients may share a table: keep only the rows in use, among which a window stays whole.
        sequences = site.sequences.select(site.train)
        rows = sequences.rows()
        starts = np.searchsorted(rows, sequences.starts)
        parts.append(replace(sequences, values=sequences.values[rows], starts=starts))
    labels = np.concatenate([site.labels[site.train] for site in sites])
    return SequenceItems(concatenate(parts), labels, np.arange(len(labels)))


def one_modality_pass(
    items: Mapping[str, SequenceItems], batch_size: int, num_workers: int, seed: int
) -> Iterator[Batch]:
    """Iterate once over items that have one modality each, batches of all modalities mixed.

    The seed shuffles each modality's items, as at a client, and the batches.
    """
    sources = {
        name: batches(own, batch_size, seed=seed, num_workers=num_workers)
        for name, own in items.items()
    }
    turns = [name for name, own in items.items() for _ in range(-(-len(own) // batch_size))]
    for turn in generator(seed, "turns").permutation(len(turns)):
        padded, labels = next(sources[turns[turn]])
        yield Batch(turns[turn], {turns[turn]: padded}, labels)


def paired_pass(items: MultimodalDataset, batch_size: int, seed: int) -> Iterator[Batch]:
    """Iterate once over items with all their modalities, in an order of that seed."""
    order = generator(seed, "order").permutation(len(items))
    for start in range(0, len(items), batch_size):
        chosen = order[start : start + batch_size]
        labels = torch.from_numpy(items.labels[chosen])
        yield Batch(MULTIMODAL, padded_inputs(items.sequences, chosen), labels)


def padded_inputs(sequences: Mapping[str, Sequences], items: IntArray) -> dict[str, Padded]:
    """Return some items in every modality."""
    return {name: pad_all(own.select(items)) for name, own in sequences.items()}


class Training:
    """A model and its optimiser, which continues from round to round.

    The model is moved to ``client.device``, and trained with ``client.*`` as at a client. Raises
    `UserError` if this machine does not have the device.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        one_pass: OnePass,
        task: Task,
        config: ClientConfig,
    ) -> None:
        self.model = model.to(choose_device(config.device))
        self.forward, self.config, self.task = forward, config, task
        self._one_pass = one_pass
        self._optimizer = make_optimizer(list(model.parameters()), config)

    def round(self, seed: int) -> dict[str, float]:
        """Train for ``client.local_epochs`` passes; return each title's mean loss of its steps.

        The seed decides the order of the items and the dropout, as in `client.trainer.train`:
        torch's global generators are seeded with it. Raises `UserError` if the loss stops being
        finite.
        """
        torch.manual_seed(seed)
        self.model.train()
        losses: dict[str, list[Tensor]] = {}
        for epoch in range(self.config.local_epochs):
            for batch in self._one_pass(seed + epoch):
                losses.setdefault(batch.title, []).append(self._step(batch))
        means = {title: torch.stack(steps).mean() for title, steps in losses.items()}
        if not all(mean.isfinite() for mean in means.values()):
            raise UserError("the training loss is not finite; lower client.lr")
        return {title: mean.item() for title, mean in means.items()}

    def _step(self, batch: Batch) -> Tensor:
        outputs = self._run(batch.inputs)
        loss = task_loss(outputs, batch.labels.to(outputs.device), self.task)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        return loss.detach()

    def _run(self, inputs: Mapping[str, Padded]) -> Tensor:
        device = next(self.model.parameters()).device
        return self.forward({name: padded.to(device) for name, padded in inputs.items()})

    @torch.inference_mode()
    def outputs(self, sequences: Mapping[str, Sequences]) -> Tensor:
        """Return the outputs (N, O) on the CPU for N items; leaves the model in evaluation mode."""
        self.model.eval()
        items = np.arange(len(next(iter(sequences.values()))))
        batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        return torch.cat([self._run(padded_inputs(sequences, batch)).cpu() for batch in batches])


def one_modality_training(
    model: HAFedformer, items: Mapping[str, SequenceItems], task: Task, config: ClientConfig
) -> Training:
    """Train a model on items that have one modality each, by modality, as a client does."""

    def forward(inputs: Mapping[str, Padded]) -> Tensor:
        ((name, padded),) = inputs.items()
        outputs: Tensor = model(name, padded)
        return outputs

    one_pass = partial(one_modality_pass, items, config.batch_size, config.num_workers)
    return Training(model, forward, one_pass, task, config)
