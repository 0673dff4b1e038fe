"""Sums of real labels and predictions pass; sums that none can have do not."""

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
EDGES = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


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
    grouped=st.booleans(),
)
def test_what_clients_compute_is_plausible(
    task: Task, seed: int, held_back: int, size: float, unit: float, grouped: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)
    train, labels = (labels_of(task, count, rng, unit) for count in (25, held_back))
    own = label_sums(train, task, OUTPUTS, EDGES)
    prior = prior_of(own + label_sums(labels_of(task, 70, rng, unit), task, OUTPUTS, EDGES), task)
    outputs = size * torch.randn(held_back, 1 if task is Task.regression else OUTPUTS)
    groups = torch.arange(held_back) // 4 if grouped else None
    seen = calibration_sums(outputs, labels, prior, task, groups)
    assert calibration_fault(seen, task, prior, most_validated(25, 0.2)) is None
    agrees = label_agreement(outputs, labels, own, prior, task)
    assert agreement_fault(agrees, held_back, own, task, prior) is None
    assert label_sums_fault(own, task, 25) is None


PRIORS = {
    Task.regression: torch.tensor([0.0, 1.0], dtype=torch.float64),
    Task.classification: torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log(),
    Task.multilabel: torch.tensor([0.0, 1.0], dtype=torch.float64),
}
ZERO, FLAT = [2.0] + [2.2] * 9, [2.2] * 9


def bent(index: int, change: float) -> list[float]:
    """Return the evidence of two items at the same loss, but for one temperature."""
    return [2.0, *(loss + (place == index) * change for place, loss in enumerate(FLAT))]


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_evidence_of_a_model_that_tells_nothing_is_plausible(task: Task) -> None:
    assert calibration_fault(torch.tensor(ZERO).double(), task, PRIORS[task], 10) is None


@pytest.mark.parametrize(
    ("task", "sums", "words"),
    [
        (Task.regression, [-1, 0, 0, 0, 0, 0], "of -1 items"),
        (Task.regression, [10.5, 0, 1, 0, 1, 0], "10.5 items, expected at most 10"),
        (Task.regression, [0, 0, 1, 0, 0, 0], "of no items"),
        (Task.regression, [4, 0, -1, 0, 1, 0], "no numbers have"),
        (Task.regression, [4, 0, 1, 0, -1, 0], "no numbers have"),
        (Task.regression, [4, 0, 0, 0, 1, 0.5], "no numbers have"),
        (Task.regression, [4, 4, 3.9, 0, 1, 0], "Cauchy-Schwarz"),
        (Task.regression, [4, 0, 1, 4, 3.9, 0], "Cauchy-Schwarz"),
        (Task.regression, [4, 0, 1, 0, 1, 1.01], "Cauchy-Schwarz"),
        (Task.regression, [4, 0, 1, 0, 1, -1.01], "Cauchy-Schwarz"),
        # Each pair alone would do: centred, y has a square of 1, p of 1, and their product is -3.
        (Task.regression, [4, 4, 5, 4, 5, 1], "Cauchy-Schwarz"),
        # Beyond what numbers can hold as correlations.
        (Task.regression, [4, 0, 1e-300, 0, 1e-300, 9e99], "Cauchy-Schwarz"),
        (Task.regression, [4, 9e99, 1e-300, -9e99, 1e-300, 0], "Cauchy-Schwarz"),
        (Task.classification, [0, *[1] * 9], "of no items"),
        (Task.classification, bent(8, -3), "log-loss of -0.8"),
        (Task.classification, bent(4, 0.5), "not convex"),
        (Task.multilabel, bent(2, 0.5), "not convex"),
        (Task.classification, [2, *[1.2] * 9], "of the prior of 1.2, expected 1.38629 to 3.21888"),
        (Task.classification, [2, *[3.3] * 9], "of the prior of 3.3"),
        (Task.multilabel, [2, *[2.0] * 9], "of the prior of 2, expected 2.01282 to 4.01282"),
        (Task.multilabel, [2, *[4.1] * 9], "of the prior of 4.1"),
    ],
)
def test_impossible_evidence_is_named(task: Task, sums: list[float], words: str) -> None:
    fault = calibration_fault(torch.tensor(sums, dtype=torch.float64), task, PRIORS[task], 10)
    assert fault is not None and words in fault, fault


@pytest.mark.parametrize(
    ("agrees", "words"),
    [
        ([1.0] * 9, "agreement of 1 without a model, expected 0"),
        ([0.0, 1, 2, 2.5, 2.9, 3.2, 3.5, 3.7, 3.9], "agreement of 3.9, expected at most"),
        ([0.0, 0, 0, 0, 0, 0, 0, 1, 2], "not concave"),
    ],
)
def test_impossible_agreement_is_named(agrees: list[float], words: str) -> None:
    sums = torch.tensor([3.0, 3.0, 4.0], dtype=torch.float64)
    task = Task.classification
    fault = agreement_fault(torch.tensor(agrees).double(), 2, sums, task, PRIORS[task])
    assert fault is not None and words in fault, fault
    assert agreement_fault(torch.zeros(9).double(), 2, sums, task, PRIORS[task]) is None


def test_who_holds_nothing_back_has_no_evidence() -> None:
    assert most_validated(100, 0.0) == 0
    assert most_validated(100, 0.2) == most_validated(100, 0.5) == 1000
    assert most_validated(100, 0.75) == 3000
    one = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64)
    prior = PRIORS[Task.regression]
    assert calibration_fault(one, Task.regression, prior, 0.0) is not None
    assert (
        calibration_fault(no_calibration_sums(Task.regression), Task.regression, prior, 0.0) is None
    )


@pytest.mark.parametrize(
    ("task", "sums", "words"),
    [
        (Task.regression, [], "label sums []"),
        (Task.regression, [10, float("nan"), 1], "nan"),
        (Task.regression, [9, 0, 1], "labels of 9 items, and has 10 examples"),
        (Task.regression, [10, 10, 9.9], "sum to 9.9, expected at least 10"),
        (Task.regression, [10, 1, -5], "sum to -5"),
        (Task.regression, [10, 1, 5, 11, -1], "negative count"),
        (Task.regression, [10, 1, 5, 4, 5], "9 labels in bins"),
        (Task.classification, [5, -1, 6], "negative count"),
        (Task.classification, [5, 6], "labels of 11 items"),
        (Task.multilabel, [11, 1], "labels of 11 items"),
        (Task.multilabel, [10, 10.5], "more often than it has items"),
        (Task.multilabel, [10, -1], "negative count"),
    ],
)
def test_impossible_label_sums_are_named(task: Task, sums: list[float], words: str) -> None:
    fault = label_sums_fault(torch.tensor(sums, dtype=torch.float64), task, 10)
    assert fault is not None and words in fault, fault
