"""Outputs and scores of models that are not, or not yet, joined by a fitted fusion rule.

Notation: N items, B of them at a time, O outputs.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.data.dataset import IntArray, LabelArray, MultimodalDataset, Sequences
from common.diagnostics import diagnostics
from common.metrics import ConstantPredictions, compute_metrics
from common.model.predict import to_values
from common.task import Task
from server.baselines.training import MULTIMODAL, Forward, padded_inputs
from server.evaluate import Scores

#: Items of a batch.
BATCH = 256


@torch.inference_mode()
def outputs_on(model: nn.Module, forward: Forward, sequences: Mapping[str, Sequences]) -> Tensor:
    """Run a model on items.

    Parameters
    ----------
    model
        Left in evaluation mode.
    forward
        Runs it.
    sequences
        Modality to the sequences of N items, one at least.

    Returns
    -------
    Tensor
        (N, O), on the CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    count = len(next(iter(sequences.values())))
    outputs = []
    for start in range(0, count, BATCH):
        inputs = padded_inputs(sequences, np.arange(start, min(start + BATCH, count)))
        outputs.append(forward({name: each.to(device) for name, each in inputs.items()}).cpu())
    return torch.cat(outputs)


def score(
    task: Task, labels: LabelArray, values: Tensor, std: Tensor | None = None
) -> dict[str, float]:
    """Compute every metric of a task.

    Parameters
    ----------
    task
        Kind of label.
    labels
        (N,) or (N, O).
    values
        (N,) numbers, or (N, O) probabilities; see `common.model.predict.to_values`.
    std
        (N,) deviations of predicted numbers, where there are.
    """
    with warnings.catch_warnings():
        # As in `server.evaluate`: corr=0 says so in the table.
        warnings.simplefilter("ignore", ConstantPredictions)
        return compute_metrics(task, labels, values.numpy(), None if std is None else std.numpy())


def paired_scores(
    model: nn.Module, forward: Forward, items: MultimodalDataset, task: Task
) -> Scores:
    """Score a model that takes every modality at once, with all of them and with each alone.

    Parameters
    ----------
    model, forward
        See `outputs_on`; a modality that an item lacks comes with length 0.
    items
        Labelled; those without any of the modalities in question do not count.
    task
        Kind of label.
    """
    answers = _paired_answers(model, forward, items, task)
    return {title: score(task, labels, values) for title, labels, values in answers}


def paired_diagnostics(
    model: nn.Module, forward: Forward, items: MultimodalDataset, task: Task
) -> dict[str, dict[str, Any]]:
    """Diagnose such a model as `server.evaluate.diagnose` does; arguments as for the scores."""
    answers = _paired_answers(model, forward, items, task)
    return {title: diagnostics(task, labels, values.numpy()) for title, labels, values in answers}


def _paired_answers(
    model: nn.Module, forward: Forward, items: MultimodalDataset, task: Task
) -> Iterator[tuple[str, LabelArray, Tensor]]:
    names = list(items.sequences)
    subsets = {MULTIMODAL: names} | {name: [name] for name in names}
    for title, subset in subsets.items():
        usable = items.select(having_any(items, subset))
        outputs = outputs_on(model, forward, only(usable.sequences, subset))
        yield title, usable.labels, to_values(outputs, task)


def only(sequences: Mapping[str, Sequences], modalities: Sequence[str]) -> dict[str, Sequences]:
    """Keep some modalities; of the others every item has no step."""
    return {
        name: each if name in modalities else replace(each, lengths=np.zeros_like(each.lengths))
        for name, each in sequences.items()
    }


def having_any(items: MultimodalDataset, modalities: Sequence[str]) -> IntArray:
    """Return the items that have any of the modalities."""
    lengths = np.stack([items.sequences[name].lengths for name in modalities])
    return np.flatnonzero((lengths > 0).any(axis=0))


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric."""
    return {metric: float(np.mean([each[metric] for each in scores])) for metric in scores[0]}
