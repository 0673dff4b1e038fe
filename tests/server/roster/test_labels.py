"""How much clients' labels differ: against scikit-learn, and on clients drawn to differ so much."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from torch import Tensor

from common.model.calibration import label_shares, label_sums, prior_of
from common.task import Task
from server.roster.labels import label_skew, pool_labels

Array = NDArray[np.float64]

tables = st.integers(2, 5).flatmap(
    lambda labels: st.lists(
        st.lists(st.integers(0, 30), min_size=labels, max_size=labels), min_size=2, max_size=6
    )
)


def skew(table: Array) -> float:
    return label_skew([torch.from_numpy(np.asarray(row, dtype=float)) for row in table])


def by_sklearn(table: Array) -> float:
    """Return the measure with the mutual information of scikit-learn."""
    clients, labels = (table.any(axis=axis).sum() for axis in (1, 0))
    if clients < 2 or labels < 2:
        return 0.0
    told = mutual_info_score(None, None, contingency=table)
    chance = (clients - 1) * (labels - 1) / (2 * table.sum())
    return float(np.clip((told - chance) / entropy(table.sum(axis=0)), 0, 1))


# --- The measure ------------------------------------------------------------------------------


@given(rows=tables, data=st.data())
def test_equals_scikit_learn_s_mutual_information_less_chance_in_any_order(
    rows: list[list[int]], data: st.DataObject
) -> None:
    table = np.array(rows, dtype=float)
    clients, labels = (data.draw(st.permutations(range(size))) for size in table.shape)
    expected = pytest.approx(by_sklearn(table), abs=1e-9)
    assert skew(table) == expected and skew(table[clients][:, labels]) == expected


@pytest.mark.parametrize("labels", [2, 3, 10])
def test_clients_of_one_label_each_are_1_but_for_chance(labels: int) -> None:
    table = 50 * np.eye(labels)
    chance = (labels - 1) ** 2 / (2 * 50 * labels)
    assert skew(table) == pytest.approx(1 - chance / math.log(labels))
    assert skew(1e6 * table) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("items", [20, 1000])
@pytest.mark.parametrize("clients", [3, 20])
def test_clients_that_draw_from_the_same_shares_are_near_0(clients: int, items: int) -> None:
    """Without the correction for chance, 20 items look like skew."""
    draws = [np.random.default_rng(n).multinomial(items, [1 / 4] * 4, clients) for n in range(40)]
    assert np.mean([skew(table) for table in draws]) < 0.02


@pytest.mark.parametrize("table", [[[0, 0], [0, 0]], [[1]], [[5, 3]], [[5, 0], [9, 0]], [[], []]])
def test_nothing_to_tell_is_0(table: list[list[int]]) -> None:
    assert skew(np.asarray(table, dtype=float)) == 0


# --- Pooling ----------------------------------------------------------------------------------

EDGES = torch.tensor([-1.0, 0.0, 1.0])


def pooled(clients: list[Tensor], task: Task, outputs: int) -> tuple[list[Tensor], Tensor]:
    sums = [label_sums(labels, task, outputs, EDGES) for labels in clients]
    return sums, label_sums(torch.cat(clients), task, outputs, EDGES)


@pytest.mark.parametrize("task", list(Task))
def test_pooled_labels_are_those_of_all_items_together(task: Task) -> None:
    drawn = torch.randn((3, 60), generator=torch.Generator().manual_seed(0))
    labels = {
        Task.regression: drawn[0],
        Task.classification: drawn.argmax(dim=0),
        Task.multilabel: (drawn.T > 0.5).float(),
    }[task]
    sums, total = pooled(list(labels.split([10, 30, 20])), task, 3)
    found = pool_labels(sums, total, task)
    torch.testing.assert_close(found.prior, prior_of(total, task))
    torch.testing.assert_close(found.shares, label_shares(total, task))
    counts = {
        Task.regression: np.histogram(labels, bins=[-np.inf, *EDGES.tolist(), np.inf])[0] + 1 / 4,
        Task.classification: np.bincount(labels.long().ravel() % 3) + 1 / 3,
        Task.multilabel: labels.double().sum(dim=0) + 1 / 2,
    }[task]
    np.testing.assert_allclose(found.shares, counts / 61)


def test_clients_that_know_fewer_classes_have_none_of_the_others() -> None:
    total = torch.tensor([20.0, 20.0, 20.0], dtype=torch.float64)
    short = [torch.tensor([20.0]), torch.tensor([0.0, 20.0]), torch.tensor([0.0, 0.0, 20.0])]
    one, two = (
        pool_labels([each.double() for each in clients], total, Task.classification).skew
        for clients in (short, list(20 * torch.eye(3)))
    )
    assert one == two > 0.9


def test_skew_of_numbers_is_that_of_their_bins() -> None:
    low, high = -2 - torch.rand(50), 2 + torch.rand(50)
    sums, total = pooled([low, high], Task.regression, 1)
    apart = pool_labels(sums, total, Task.regression).skew
    assert apart == pytest.approx(1 - 1 / 200 / math.log(2))
    mixed = [torch.cat([low[:25], high[:25]]), torch.cat([low[25:], high[25:]])]
    sums, total = pooled(mixed, Task.regression, 1)
    assert pool_labels(sums, total, Task.regression).skew == 0


def test_skew_of_several_labels_is_the_mean_over_them() -> None:
    # The first label tells the client, the second does not, the third never occurs.
    split = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).repeat(25, 1)
    rest = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).repeat(25, 1)
    sums, total = pooled([split, rest], Task.multilabel, 3)
    found = pool_labels(sums, total, Task.multilabel).skew
    assert found == pytest.approx((1 - 1 / 200 / math.log(2)) / 3)
