"""Sums for a linear expert of real items pass; sums that no items have do not."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.data.dataset import Sequences
from common.data.moments import FeatureMoments
from common.model.calibration import label_sums
from common.model.linear import LinearSums, measure_linear
from common.task import Task
from server.acceptance.linear_sums import linear_sums_fault

OUTPUTS, WIDTH = 3, 5


def measured(
    task: Task, items: int = 30, seed: int = 0, unit: float = 1.0, far: float = 0.0
) -> tuple[LinearSums, Tensor]:
    """What a client sends: sums of items, of which a feature is constant, and of their labels."""
    rng = np.random.default_rng(seed)
    values = (far + unit * rng.normal(size=(items, WIDTH))).astype(np.float32)
    values[:, 1], values[:, 2] = far + 0.1, values[:, 0]
    labels = {
        Task.regression: (far + unit * rng.normal(size=items)).astype(np.float32),
        Task.classification: np.minimum(rng.integers(0, OUTPUTS, items), items % 2 + 1),
        Task.multilabel: rng.integers(0, 2, (items, OUTPUTS)).astype(np.float32),
    }[task]
    sequences = Sequences.ragged(values, np.ones(items, dtype=np.int64))
    outputs = int(labels.max()) + 1 if task is Task.classification else OUTPUTS
    means = FeatureMoments.of(sequences).mean
    own = label_sums(torch.from_numpy(labels), task, outputs)
    return measure_linear(sequences, labels, task, outputs, means), own


@settings(max_examples=100, deadline=None)
@given(
    task=st.sampled_from(list(Task)),
    items=st.integers(1, 150),
    seed=st.integers(0, 10**6),
    unit=st.sampled_from([1e-5, 1.0, 1e5, 1e15]),
    far=st.sampled_from([0.0, -3.0, 1e6]),
)
def test_what_clients_compute_is_possible(
    task: Task, items: int, seed: int, unit: float, far: float
) -> None:
    sums, labels = measured(task, items, seed, unit, far)
    assert linear_sums_fault(sums, labels, task) is None


def with_scatter(change: Callable[[Tensor], object]) -> Callable[[LinearSums], LinearSums]:
    def apply(sums: LinearSums) -> LinearSums:
        scatter = sums.scatter.clone()
        change(scatter)
        return replace(sums, scatter=scatter)

    return apply


def put(row: int, column: int, value: float) -> Callable[[LinearSums], LinearSums]:
    def change(scatter: Tensor) -> None:
        scatter[row, column] = scatter[column, row] = value

    return with_scatter(change)


def shifted(sums: LinearSums) -> LinearSums:
    mean = sums.mean.clone()
    mean[-1] += 0.01
    return replace(sums, mean=mean)


def opposed(scatter: Tensor) -> None:
    """Two features that are the same are said to be opposite, and to others as before."""
    scatter[0, 2] = scatter[2, 0] = -scatter[0, 0]


def against_the_label(scatter: Tensor) -> None:
    """Correlations of features that are each possible, and not together."""
    scatter[:WIDTH, -1] = scatter[-1, :WIDTH] = (
        0.9 * (scatter.diagonal()[:WIDTH] * scatter[-1, -1]).sqrt()
    )


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda sums: replace(sums, mean=sums.mean * torch.nan), "nan among them"),
        (put(0, 3, torch.inf), "inf among them"),
        (put(0, 0, 1e101), "1e\\+101 among them"),
        (put(0, 0, -1e-9), "positive semi-definite"),
        (put(0, 3, 1e3), "positive semi-definite"),
        (put(1, 3, 1e-3), "positive semi-definite"),  # with a feature that is constant
        (with_scatter(opposed), "positive semi-definite"),
        (with_scatter(against_the_label), "positive semi-definite"),
        (shifted, "disagree with its label sums"),
        (put(-1, -1, 1e3), "disagree with its label sums"),
        (lambda sums: replace(sums, features=WIDTH - 1), "labels, expected"),
    ],
)
def test_what_no_items_have_is_refused_in_a_line(
    task: Task, change: Callable[[LinearSums], LinearSums], words: str
) -> None:
    sums, labels = measured(task)
    assert linear_sums_fault(sums, labels, task) is None
    fault = linear_sums_fault(change(sums), labels, task)
    assert fault is not None and "\n" not in fault
    assert re.search(words, fault), fault
