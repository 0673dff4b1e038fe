"""How much clients' labels differ: against scikit-learn, and on clients drawn to differ so much."""

import math

import numpy as np
import pytest
import torch
from fake_nodes import client
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from torch import Tensor

from common.errors import UserError
from common.model.calibration import label_shares, label_sums, prior_of
from common.task import Task
from server.roster.labels import PooledLabels, label_skew, pool_labels

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
def test_equals_scikit_learn_in_any_order(rows: list[list[int]], data: st.DataObject) -> None:
    table = np.array(rows, dtype=float)
    clients, labels = (data.draw(st.permutations(range(size))) for size in table.shape)
    expected = pytest.approx(by_sklearn(table), abs=1e-9)
    assert skew(table) == expected and skew(table[clients][:, labels]) == expected


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


def pooled(clients: list[Tensor], task: Task, outputs: int) -> PooledLabels:
    """Pool the labels of clients; numbers are counted in four bins."""
    described = [
        client(f"audio-{part}", sums=tuple(sums.tolist()), task=task)
        for part, sums in enumerate(label_sums(labels, task, outputs, EDGES) for labels in clients)
    ]
    return pool_labels(described, task, outputs, bins=len(EDGES) + 1)


@pytest.mark.parametrize("task", list(Task))
def test_pooled_labels_are_those_of_all_items_together(task: Task) -> None:
    drawn = torch.randn((3, 60), generator=torch.Generator().manual_seed(0))
    labels = {
        Task.regression: drawn[0],
        Task.classification: drawn.argmax(dim=0),
        Task.multilabel: (drawn.T > 0.5).float(),
    }[task]
    found = pooled(list(labels.split([10, 30, 20])), task, 3)
    total = label_sums(labels, task, 3, EDGES)
    torch.testing.assert_close(found.prior, prior_of(total, task))
    torch.testing.assert_close(found.shares, label_shares(total, task))
    counts = {
        Task.regression: np.histogram(labels, bins=[-np.inf, *EDGES.tolist(), np.inf])[0] + 1 / 4,
        Task.classification: np.bincount(labels.long().ravel() % 3) + 1 / 3,
        Task.multilabel: labels.double().sum(dim=0) + 1 / 2,
    }[task]
    np.testing.assert_allclose(found.shares, counts / 61)


def test_clients_that_know_fewer_classes_have_none_of_the_others() -> None:
    short, full = [(20,), (0, 20), (0, 0, 20)], [(20, 0, 0), (0, 20, 0), (0, 0, 20)]
    task = Task.classification
    one, two = (
        pool_labels([client("audio-0", sums=s, task=task) for s in sums], task, 3, 0)
        for sums in (short, full)
    )
    assert one.skew == two.skew > 0.9
    assert one.shares.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("task", "sums", "own", "outputs", "bins"),
    [
        (Task.classification, (1.0, 0.0, 2.0), Task.classification, 2, 0),
        (Task.regression, (1.0, 2.0), Task.regression, 1, 0),
        *((Task.multilabel, (5.0, 1.0, 2.0), Task.multilabel, outputs, 0) for outputs in (1, 3)),
        *((Task.regression, (10, 0.25, 1, 4, 6), Task.regression, 1, bins) for bins in (0, 1, 3)),
        # Sums that would fit, of another task.
        (Task.regression, (18.0, 22.6, 39.7), Task.classification, 3, 0),
        (Task.regression, (18.0, 22.6, 39.7), Task.multilabel, 2, 0),
    ],
)
def test_labels_that_the_server_does_not_know_are_refused_with_their_client(
    task: Task, sums: tuple[float, ...], own: Task, outputs: int, bins: int
) -> None:
    with pytest.raises(UserError, match="client audio-7 has labels for"):
        pool_labels([client("audio-7", sums=sums, task=task)], own, outputs, bins)


def test_skew_of_numbers_is_that_of_their_bins() -> None:
    low, high = -2 - torch.rand(50), 2 + torch.rand(50)
    apart = pooled([low, high], Task.regression, 1).skew
    assert apart == pytest.approx(1 - 1 / 200 / math.log(2))
    mixed = [torch.cat([low[:25], high[:25]]), torch.cat([low[25:], high[25:]])]
    assert pooled(mixed, Task.regression, 1).skew == 0


def test_skew_of_several_labels_is_the_mean_over_them() -> None:
    # The first label tells the client, the second does not, the third never occurs.
    split = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).repeat(25, 1)
    rest = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).repeat(25, 1)
    found = pooled([split, rest], Task.multilabel, 3).skew
    assert found == pytest.approx((1 - 1 / 200 / math.log(2)) / 3)
