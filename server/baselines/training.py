"""Batches of items with one modality or with all, and the training loop that baselines share.

Notation: B items, O outputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.config import ClientConfig
from common.data.batching import Padded, SequenceItems, batches, pad_all
from common.data.dataset import IntArray, MultimodalDataset, Sequences, concatenate
from common.data.federation import ClientData
from common.errors import UserError
from common.model.losses import task_loss
from common.seeding import generator
from common.task import Task
from common.training import choose_device, make_optimizer

#: The title of what has every modality, in losses as in scores.
MULTIMODAL = "multimodal"

#: From the sequences of B items by modality to outputs (B, O).
Forward = Callable[[Mapping[str, Padded]], Tensor]


class Batch(NamedTuple):
    """Labelled items.

    Attributes
    ----------
    title
        What their loss is recorded under: a modality, or ``multimodal``.
    inputs
        Modality to the items' sequences.
    labels
        Theirs.
    """

    title: str
    inputs: Mapping[str, Padded]
    labels: Tensor


#: From a seed to all batches once, in an order of that seed.
OnePass = Callable[[int], Iterable[Batch]]


def pooled_items(sites: Sequence[ClientData]) -> SequenceItems:
    """Join the train items of clients of one modality, client after client."""
    parts = [_compact(site.sequences.select(site.train)) for site in sites]
    labels = np.concatenate([site.labels[site.train] for site in sites])
    return SequenceItems(concatenate(parts), labels, np.arange(len(labels)))


def _compact(sequences: Sequences) -> Sequences:
    """Drop the rows that are of no item: clients' sequences may be windows into one table."""
    rows = sequences.rows()
    return replace(
        sequences,
        values=sequences.values[rows],
        # A window's rows are all there, so they stay next to each other.
        starts=np.searchsorted(rows, sequences.starts),
    )


def one_modality_pass(
    items: Mapping[str, SequenceItems], batch_size: int, num_workers: int, seed: int
) -> Iterator[Batch]:
    """Iterate once over items that have one modality each, batches of all modalities mixed.

    Parameters
    ----------
    items
        Modality to its items.
    batch_size, num_workers
        See `common.data.batching.batches`.
    seed
        Shuffles each modality's items, as at a client, and the batches.
    """
    sources = {
        name: batches(each, batch_size, seed=seed, num_workers=num_workers)
        for name, each in items.items()
    }
    turns = [name for name, each in items.items() for _ in range(-(-len(each) // batch_size))]
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
    return {name: pad_all(each.select(items)) for name, each in sequences.items()}


class Training:
    """A model and its optimiser, which goes on from round to round.

    Parameters
    ----------
    model
        Moved to ``client.device``.
    forward
        Runs the model.
    one_pass
        The batches of an epoch.
    task
        Kind of label; decides the loss.
    config
        ``client.*``, as for a client's local training.

    Raises
    ------
    UserError
        If this machine does not have the device.
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
        self.config = config
        self._forward, self._one_pass, self._task = forward, one_pass, task
        self._optimizer = make_optimizer(list(model.parameters()), config)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def round(self, seed: int) -> dict[str, float]:
        """Train for ``client.local_epochs`` passes.

        Parameters
        ----------
        seed
            Decides the order of the items and the dropout, as in `client.trainer.train`: torch's
            global generators are seeded with it.

        Returns
        -------
        dict
            Title of the batches to the mean loss of their steps.

        Raises
        ------
        UserError
            If the loss stops being finite.
        """
        torch.manual_seed(seed)
        self.model.train()
        losses: dict[str, list[Tensor]] = {}
        for epoch in range(self.config.local_epochs):
            for batch in self._one_pass(seed + epoch):
                losses.setdefault(batch.title, []).append(self._step(batch))
        means = {title: torch.stack(each).mean() for title, each in losses.items()}
        if not all(mean.isfinite() for mean in means.values()):
            raise UserError("the training loss is not finite; lower client.lr")
        return {title: mean.item() for title, mean in means.items()}

    def _step(self, batch: Batch) -> Tensor:
        device = next(self.model.parameters()).device
        outputs = self._forward({name: each.to(device) for name, each in batch.inputs.items()})
        loss = task_loss(outputs, batch.labels.to(device), self._task)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        return loss.detach()
