"""Outputs and scores of models that are not, or not yet, joined by a fitted fusion rule.

Notation: N items, B of them at a time, O outputs.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from common.data.dataset import LabelArray, MultimodalDataset, Sequences
from common.metrics import ConstantPredictions, compute_metrics
from common.model.predict import to_values
from common.task import Task
from server.baselines.training import MULTIMODAL, Forward, padded_inputs

#: Items of a batch.
BATCH = 256


@torch.inference_mode()
def outputs_on(model: nn.Module, forward: Forward, sequences: Mapping[str, Sequences]) -> Tensor:
    """Return a model's outputs (N, O) on the CPU for at least one item; leaves it in evaluation."""
    model.eval()
    device = next(model.parameters()).device
    count = len(next(iter(sequences.values())))
    outputs = []
    for start in range(0, count, BATCH):
        inputs = padded_inputs(sequences, np.arange(start, min(start + BATCH, count)))
        outputs.append(forward({name: own.to(device) for name, own in inputs.items()}).cpu())
    return torch.cat(outputs)


def score(
    task: Task, labels: LabelArray, values: Tensor, std: Tensor | None = None
) -> dict[str, float]:
    """Compute every metric of a task.

    Labels are (N,) or (N, O); values (N,) numbers, with deviations where there are any, or (N, O)
    probabilities, see `common.model.predict.to_values`.
    """
    with warnings.catch_warnings():
        # As in `server.evaluate`: corr=0 says so in the table.
        warnings.simplefilter("ignore", ConstantPredictions)
        return compute_metrics(task, labels, values.numpy(), None if std is None else std.numpy())


def paired_predictions(
    model: nn.Module, forward: Forward, items: MultimodalDataset, task: Task
) -> Iterator[tuple[str, LabelArray, Tensor]]:
    """Predict with a model that takes every modality at once: from all of them, and each alone.

    Yields ``multimodal`` and each modality, with labels and values of the items that have any of
    the modalities in question; a modality that an item lacks comes with length 0.
    """
    names = list(items.sequences)
    subsets = {MULTIMODAL: names} | {name: [name] for name in names}
    for title, subset in subsets.items():
        usable = items.select(np.flatnonzero(items.present(subset)))
        outputs = outputs_on(model, forward, only(usable.sequences, subset))
        yield title, usable.labels, to_values(outputs, task)


def only(sequences: Mapping[str, Sequences], modalities: Sequence[str]) -> dict[str, Sequences]:
    """Keep some modalities; of the others every item has no step."""
    return {
        name: own if name in modalities else replace(own, lengths=np.zeros_like(own.lengths))
        for name, own in sequences.items()
    }


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric."""
    return {metric: float(np.mean([one[metric] for one in scores])) for metric in scores[0]}
