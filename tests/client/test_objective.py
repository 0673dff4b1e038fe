"""The local loss, corrected for skewed labels: formulas by hand, and the posterior it learns."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.objective import MAX_WEIGHT, DensityRatio, Objective, corrected_objective
from common.model.ha_fedformer import task_loss
from common.task import Task
from tests.common.model.test_calibration import draw


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("task", list(Task))
def test_without_a_correction_it_is_the_loss_of_the_task(task: Task) -> None:
    outputs, labels = draw(task, 12)
    assert torch.equal(Objective(task)(outputs, labels), task_loss(outputs, labels, task))


def test_log_ratios_of_shares_are_added_to_the_logits() -> None:
    outputs, labels = draw(Task.classification, 12)
    pooled, held = vector(0.5, 0.3, 0.2), torch.tensor([0] * 4 + [2] * 5)
    objective = corrected_objective(held, pooled.log(), Task.classification)
    # Nine items and one that is spread like all clients'.
    own = vector(4.5, 0.3, 5.2) / 10
    logits = outputs + (own / pooled).log()
    expected = -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
    assert objective(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_ratios_of_odds_are_added_to_the_logits_of_several_labels() -> None:
    outputs, labels = draw(Task.multilabel, 12)
    pooled, held = vector(0.5, 0.3, 0.2), torch.zeros(9, 3)
    held[:, 0], held[:4, 2] = 1, 1
    objective = corrected_objective(held, pooled.logit(), Task.multilabel)
    own = vector(9.5, 0.3, 4.2) / 10
    odds = outputs.exp() * (own / (1 - own)) / (pooled / (1 - pooled))
    present = odds / (1 + odds)
    expected = -torch.where(labels > 0, present, 1 - present).log().mean()
    assert objective(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


STANDARD = vector(0.0, 1.0)

# Standardised labels of a client, not all equal.
standardised = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40).filter(
    lambda values: max(values) - min(values) > 1e-3
)


@given(standardised, st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_numbers_are_weighted_by_the_ratio_of_gaussian_densities(
    held: list[float], given_labels: list[float]
) -> None:
    normal = scipy.stats.norm

    def bounded(labels: np.ndarray) -> np.ndarray:
        ratio = normal.logpdf(labels) - normal.logpdf(labels, np.mean(held), np.std(held))
        return np.exp(np.clip(ratio, -np.log(MAX_WEIGHT), np.log(MAX_WEIGHT)))

    labels = np.array(given_labels)
    weights = bounded(labels) / bounded(np.array(held)).mean()
    objective = corrected_objective(torch.tensor(held), STANDARD, Task.regression)
    outputs = torch.linspace(-1, 1, len(labels), dtype=torch.float64)[:, None]
    expected = (weights * np.abs(outputs[:, 0].numpy() - labels)).mean()
    found = objective(outputs, torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected, rel=1e-6)


@given(standardised)
@settings(max_examples=60, deadline=None)
def test_numbers_weigh_1_on_average_over_the_client_s_items(held: list[float]) -> None:
    labels = torch.tensor(held)
    weights = DensityRatio.of(labels)
    assert weights is not None
    found = weights(labels)
    assert found.dtype == torch.float32
    assert found.mean().item() == pytest.approx(1, rel=1e-5)
    assert found.max() / found.min() <= MAX_WEIGHT**2 * (1 + 1e-5)


@pytest.mark.parametrize("labels", [[0.3], [0.1] * 7])
def test_numbers_that_are_all_equal_are_not_weighted(labels: list[float]) -> None:
    objective = corrected_objective(torch.tensor(labels), STANDARD, Task.regression)
    assert objective == Objective(Task.regression)


shares = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)
classes = st.lists(st.integers(0, 3), min_size=1, max_size=50)


@given(shares, classes)
@settings(max_examples=60, deadline=None)
def test_what_a_client_has_never_seen_or_always_sees_stays_finite(
    pooled: list[float], held: list[int]
) -> None:
    outputs, labels = torch.zeros(4, 4, requires_grad=True), torch.arange(4)
    normal, own = vector(*pooled) / sum(pooled), torch.tensor(held)
    loss = corrected_objective(own, normal.log(), Task.classification)(outputs, labels)
    several = F.one_hot(own, 4).float()
    rates = normal.clamp(max=0.99).logit()
    loss = loss + corrected_objective(several, rates, Task.multilabel)(
        outputs, F.one_hot(labels).float()
    )
    loss.backward()
    assert loss.isfinite() and outputs.grad is not None and outputs.grad.isfinite().all()
