"""The local loss, corrected for skewed labels: formulas by hand, and the posterior it learns."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.objective import MAX_WEIGHT, Objective, local_objective
from common.model.calibration import label_sums
from common.model.ha_fedformer import task_loss
from common.task import Task
from tests.common.model.test_calibration import CLASSES, draw

EDGES = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sums_of(labels: Tensor, task: Task) -> Tensor:
    return label_sums(labels, task, CLASSES, EDGES if task is Task.regression else None)


@pytest.mark.parametrize("task", list(Task))
def test_without_shares_it_is_the_loss_of_the_task(task: Task) -> None:
    outputs, labels = draw(task, 12)
    objective = local_objective(task, sums_of(labels, task), torch.zeros(0), EDGES)
    assert objective == Objective(task)
    assert torch.equal(objective(outputs, labels), task_loss(outputs, labels, task))


def test_log_ratios_of_shares_are_added_to_the_logits() -> None:
    outputs, labels = draw(Task.classification, 12)
    pooled = vector(0.5, 0.3, 0.2)
    objective = local_objective(Task.classification, vector(4, 0, 5), pooled, None)
    # Nine items and one that is spread like all clients'.
    own = vector(4.5, 0.3, 5.2) / 10
    logits = outputs + (own / pooled).log()
    expected = -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
    assert objective(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_ratios_of_odds_are_added_to_the_logits_of_several_labels() -> None:
    outputs, labels = draw(Task.multilabel, 12)
    pooled = vector(0.5, 0.3, 0.2)
    objective = local_objective(Task.multilabel, vector(9, 9, 0, 4), pooled, None)
    own = vector(9.5, 0.3, 4.2) / 10
    odds = outputs.exp() * (own / (1 - own)) / (pooled / (1 - pooled))
    present = odds / (1 + odds)
    expected = -torch.where(labels > 0, present, 1 - present).log().mean()
    assert objective(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_items_are_weighted_by_the_ratio_of_shares_of_their_bin() -> None:
    labels = torch.tensor([-2.0, -2.0, -0.5, -0.5, -0.5, 0.5])
    outputs = torch.tensor([[0.0], [-1.0], [1.0], [0.0], [0.0], [0.5]])
    pooled = vector(0.2, 0.3, 0.4, 0.1)
    sums = sums_of(labels, Task.regression)
    objective = local_objective(Task.regression, sums, pooled, EDGES.float())
    ratios = pooled * 7 / (vector(2, 3, 1, 0) + pooled)
    weights = ratios[[0, 0, 1, 1, 1, 2]]
    errors = vector(2, 1, 1.5, 0.5, 0.5, 0)
    expected = (weights / weights.mean() * errors).mean()
    assert objective(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)


shares = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)
counts = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


@given(shares, counts)
@settings(max_examples=60, deadline=None)
def test_numbers_weigh_1_on_average_over_the_client_s_items(
    pooled: list[float], held: list[int]
) -> None:
    sums = torch.cat([vector(sum(held), 0, 0), vector(*held)])
    normal = vector(*pooled) / sum(pooled)
    weights = local_objective(Task.regression, sums, normal, EDGES).offsets
    assert weights is not None
    assert (weights * vector(*held)).sum().item() == pytest.approx(sum(held))
    assert weights.min() > 0
    assert weights.max() / weights.min() <= MAX_WEIGHT**2 * (1 + 1e-9)


@given(shares, counts)
@settings(max_examples=60, deadline=None)
def test_what_a_client_has_never_seen_or_always_sees_stays_finite(
    pooled: list[float], held: list[int]
) -> None:
    outputs, labels = torch.zeros(4, 4, requires_grad=True), torch.arange(4)
    normal = vector(*pooled) / sum(pooled)
    loss = local_objective(Task.classification, vector(*held), normal, None)(outputs, labels)
    rates = normal.clamp(max=0.99)
    several = vector(max(held), *held)
    loss = loss + local_objective(Task.multilabel, several, rates, None)(
        outputs, F.one_hot(labels).float()
    )
    loss.backward()
    assert loss.isfinite() and outputs.grad is not None and outputs.grad.isfinite().all()
