"""Sums of real labels and predictions pass; sums that none can have do not."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.model.calibration import (
    calibration_sums,
    label_agreement,
    label_sums,
    no_calibration_sums,
    pool_label_sums,
    prior_of,
)
from common.task import Task
from server.acceptance.plausibility import (
    agreement_fault,
    calibration_fault,
    label_sums_fault,
    most_validated,
)

OUTPUTS = 3


def labels_of(task: Task, count: int, generator: torch.Generator, unit: float = 1.0) -> Tensor:
    if task is Task.regression:
        return unit * torch.randn(count, generator=generator)
    if task is Task.classification:
        return torch.randint(OUTPUTS, (count,), generator=generator)
    return torch.randint(2, (count, OUTPUTS), generator=generator).float()


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(list(Task)),
    seed=st.integers(0, 10**6),
    held_back=st.integers(0, 40),
    # From predictions that are all alike to such as are certain.
    size=st.sampled_from([0.0, 1e-4, 1.0, 30.0, 1e4]),
    unit=st.sampled_from([1e-5, 1.0, 1e5]),
)
def test_what_clients_compute_is_plausible(
    task: Task, seed: int, held_back: int, size: float, unit: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    train, labels = (labels_of(task, count, rng, unit) for count in (25, held_back))
    own = label_sums(train, task, OUTPUTS)
    others = label_sums(labels_of(task, 70, rng, unit), task, OUTPUTS)
    prior = prior_of(pool_label_sums([own, others], task), task)
    outputs = size * torch.randn(held_back, 1 if task is Task.regression else OUTPUTS)
    seen = calibration_sums(outputs, labels, prior, task)
    assert calibration_fault(seen, task, prior, most_validated(25, 0.2)) is None
    agrees = label_agreement(outputs, labels, own, prior, task)
    assert agreement_fault(agrees, held_back, own, task, prior) is None
    assert label_sums_fault(own, task, 25) is None


PRIORS = {
    Task.regression: torch.tensor([0.0, 1.0], dtype=torch.float64),
    Task.classification: torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log(),
    Task.multilabel: torch.tensor([0.0, 1.0], dtype=torch.float64),
}


def fault_of(task: Task, kind: str, numbers: list[float]) -> str | None:
    """Check the evidence of at most 10 items, the agreement on 2, or the labels of 10."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if kind == "evidence":
        return calibration_fault(sums, task, PRIORS[task], 10)
    if kind == "labels":
        return label_sums_fault(sums, task, 10)
    return agreement_fault(sums, 2, torch.tensor([3.0, 3, 4]).double(), task, PRIORS[task])


def test_of_a_model_that_tells_nothing_all_is_plausible() -> None:
    for task in (Task.classification, Task.multilabel):
        assert fault_of(task, "evidence", [2.0] + [2.2] * 9) is None
    assert fault_of(Task.classification, "agreement", [0.0] * 9) is None


#: A task, a kind of sums, the sums (1x3 is 1 1 1), and words of what is said.
IMPOSSIBLE = """
regression evidence: -1 0 0 0 0 0 -> of -1 items
regression evidence: 10.5 0 1 0 1 0 -> 10.5 items, expected at most 10
regression evidence: 0 0 1 0 0 0 -> of no items
regression evidence: 4 0 -1 0 1 0 -> no numbers have
regression evidence: 4 0 1 0 -1 0 -> no numbers have
regression evidence: 4 0 0 0 1 .5 -> no numbers have
regression evidence: 4 4 3.9 0 1 0 -> Cauchy-Schwarz
regression evidence: 4 0 1 4 3.9 0 -> Cauchy-Schwarz
regression evidence: 4 0 1 0 1 1.01 -> Cauchy-Schwarz
regression evidence: 4 0 1 0 1 -1.01 -> Cauchy-Schwarz
# Each pair alone would do: centred, y and p have squares of 1, and their product is -3.
regression evidence: 4 4 5 4 5 1 -> Cauchy-Schwarz
# Beyond what numbers can hold as correlations.
regression evidence: 4 0 1e-300 0 1e-300 9e99 -> Cauchy-Schwarz
regression evidence: 4 9e99 1e-300 -9e99 1e-300 0 -> Cauchy-Schwarz
classification evidence: 0 1x9 -> of no items
classification evidence: 2 2.2x8 -.8 -> log-loss of -0.8
classification evidence: 2 2.2x4 2.7 2.2x4 -> not convex
multilabel evidence: 2 2.2x2 2.7 2.2x6 -> not convex
classification evidence: 2 1.2x9 -> of the prior of 1.2, expected 1.38629 to 3.21888
classification evidence: 2 3.3x9 -> of the prior of 3.3
multilabel evidence: 2 2x9 -> of the prior of 2, expected 2.01282 to 4.01282
multilabel evidence: 2 4.1x9 -> of the prior of 4.1
classification agreement: 1x9 -> agreement of 1 without a model, expected 0
classification agreement: 0 1 2 2.5 2.9 3.2 3.5 3.7 3.9 -> agreement of 3.9, expected at most
classification agreement: 0x7 1 2 -> not concave
regression labels: -> label sums []
regression labels: 10 nan 1 -> nan
regression labels: 9 0 1 -> labels of 9 items, and has 10 examples
regression labels: 10 1 -5 -> sum to -5
regression labels: 10 1e39 1 -> a mean label of 1e+39
regression labels: 10 -1e39 1 -> a mean label of -1e+39
# Half of them the largest float32 and half its negative give 1.158e78.
regression labels: 10 0 1.16e78 -> sum to 1.16e+78
regression labels: 10 1 -> expected three
regression labels: 10 1 5 4 6 -> expected three
classification labels: 5 -1 6 -> negative count
classification labels: 5 6 -> labels of 11 items
multilabel labels: 11 1 -> labels of 11 items
multilabel labels: 10 10.5 -> more often than it has items
multilabel labels: 10 -1 -> negative count
"""


def test_a_single_number_has_no_deviation() -> None:
    for squares, possible in ((0.0, True), (1e-9, False)):
        sums = torch.tensor([1.0, 7.0, squares], dtype=torch.float64)
        assert (label_sums_fault(sums, Task.regression, 1) is None) == possible


@pytest.mark.parametrize("row", [row for row in IMPOSSIBLE.split("\n") if row and row[0] != "#"])
def test_impossible_sums_are_named(row: str) -> None:
    task, kind, sums, words = re.fullmatch(r"(\w+) (\w+):(.*) -> (.*)", row).groups()
    runs = [number.partition("x") for number in sums.split()]
    numbers = [float(number) for number, _, times in runs for _ in range(int(times or 1))]
    fault = fault_of(Task[task], kind, numbers)
    assert fault is not None and words in fault, fault


def test_who_holds_nothing_back_has_no_evidence() -> None:
    shares = (0.0, 0.2, 0.5, 0.75)
    assert [most_validated(100, share) for share in shares] == [0, 1000, 1000, 3000]
    task, one = Task.regression, torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64)
    assert calibration_fault(one, task, PRIORS[task], 0.0) is not None
    assert calibration_fault(no_calibration_sums(task), task, PRIORS[task], 0.0) is None
