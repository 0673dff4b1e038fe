"""How much clients' labels differ: against scikit-learn, and on clients drawn to differ so much."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_nodes import client
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mutual_info_score, r2_score
from torch import Tensor

from common.model.calibration import label_sums, prior_of
from common.task import Task
from server.roster.labels import PooledLabels, kind_fault, label_skew, own_skew, pool_labels

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


def pooled(clients: list[Tensor], task: Task, outputs: int) -> PooledLabels:
    """Pool the labels of clients."""
    described = [
        client(f"audio-{part}", sums=tuple(sums.tolist()), task=task)
        for part, sums in enumerate(label_sums(labels, task, outputs) for labels in clients)
    ]
    return pool_labels(described, task, outputs)


@pytest.mark.parametrize("task", list(Task))
def test_pooled_labels_are_those_of_all_items_together(task: Task) -> None:
    drawn = torch.randn((3, 60), generator=torch.Generator().manual_seed(0))
    labels = {
        Task.regression: drawn[0],
        Task.classification: drawn.argmax(dim=0),
        Task.multilabel: (drawn.T > 0.5).float(),
    }[task]
    found = pooled(list(labels.split([10, 30, 20])), task, 3)
    torch.testing.assert_close(found.prior, prior_of(label_sums(labels, task, 3), task))


def test_clients_that_know_fewer_classes_have_none_of_the_others() -> None:
    short, full = [(20,), (0, 20), (0, 0, 20)], [(20, 0, 0), (0, 20, 0), (0, 0, 20)]
    task = Task.classification
    one, two = (
        pool_labels([client("audio-0", sums=s, task=task) for s in sums], task, 3)
        for sums in (short, full)
    )
    assert one.skew == two.skew > 0.9
    assert one.prior.exp().tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("task", "sums", "own", "outputs"),
    [
        (Task.classification, (1.0, 0.0, 2.0), Task.classification, 2),
        (Task.regression, (1.0, 2.0), Task.regression, 1),
        (Task.regression, (10, 0.25, 1, 4, 6), Task.regression, 1),
        *((Task.multilabel, (5.0, 1.0, 2.0), Task.multilabel, outputs) for outputs in (1, 3)),
        # Sums that would fit, of another task.
        (Task.regression, (18.0, 22.6, 39.7), Task.classification, 3),
        (Task.regression, (18.0, 22.6, 39.7), Task.multilabel, 2),
    ],
)
def test_labels_that_the_server_does_not_know_are_a_fault(
    task: Task, sums: tuple[float, ...], own: Task, outputs: int
) -> None:
    fault = kind_fault(client("audio-7", sums=sums, task=task), own, outputs)
    assert fault is not None and fault.startswith("labels for ")


numbers = st.lists(
    st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=9), min_size=1, max_size=6
)


@given(numbers, st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from([0.0, 1000.0]))
def test_skew_of_numbers_is_adjusted_r2_of_a_regression_on_the_client(
    clients: list[list[float]], unit: float, shift: float
) -> None:
    """Whatever the unit of the labels, and where their zero is."""
    found = pooled(
        [unit * (torch.tensor(own, dtype=torch.float64) + shift) for own in clients],
        Task.regression,
        1,
    ).skew
    labels, owners = (
        np.concatenate(clients),
        np.repeat(np.arange(len(clients)), list(map(len, clients))),
    )
    free = len(labels) - len(clients)
    if free == 0 or labels.std() == 0:
        assert found == 0
        return
    design = owners[:, None] == np.arange(len(clients))
    told = r2_score(
        labels, LinearRegression(fit_intercept=False).fit(design, labels).predict(design)
    )
    adjusted = 1 - (1 - told) * (len(labels) - 1) / free
    assert found == pytest.approx(np.clip(adjusted, 0, 1), abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_skew_of_numbers_is_the_share_of_variance_that_clients_explain(share: float) -> None:
    """On average, however few items a client has."""
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        means = rng.normal(size=(40, 1)) * np.sqrt(share)
        drawn = means + rng.normal(size=(40, 5)) * np.sqrt(1 - share)
        found.append(pooled(list(torch.from_numpy(drawn)), Task.regression, 1).skew)
    assert np.mean(found) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 / 3])
def test_numbers_that_are_all_equal_are_not_skewed_and_have_a_unit(value: float) -> None:
    found = pooled(
        [torch.full((n,), value, dtype=torch.float64) for n in (3, 7, 11)], Task.regression, 1
    )
    assert found.skew == 0
    assert found.prior.tolist() == pytest.approx([value, 1.0], rel=1e-15)


def test_skew_of_several_labels_is_the_mean_over_them() -> None:
    # The first label tells the client, the second does not, the third never occurs.
    split = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).repeat(25, 1)
    rest = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).repeat(25, 1)
    found = pooled([split, rest], Task.multilabel, 3).skew
    assert found == pytest.approx((1 - 1 / 200 / math.log(2)) / 3)


# --- Names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected", "fits"),
    [
        (("a", "b"), ("a", "b"), True),
        (("a", "b"), ("a", "b", "c"), True),  # the last class never occurred
        (("b", "c"), ("a", "b", "c"), False),
        ((), ("1", "2"), False),  # classes from 0 are not those from 1
        ((), ("0", "1", "2"), True),
        (("0", "1"), (), True),
        (("1", "2"), (), False),
    ],
)
def test_a_class_means_the_same_everywhere(
    names: tuple[str, ...], expected: tuple[str, ...], fits: bool
) -> None:
    site = replace(client("audio-0", sums=(3.0, 4.0), task=Task.classification), label_names=names)
    fault = kind_fault(site, Task.classification, 3, expected)
    assert (fault is None) == fits
    assert fits or "classes=" in str(fault)


def test_labels_with_names_are_in_the_same_order() -> None:
    site = client("audio-0", sums=(9.0, 3.0, 4.0), task=Task.multilabel)
    for names, fits in ((("joy", "sad"), True), (("sad", "joy"), False), ((), True)):
        fault = kind_fault(replace(site, label_names=names), Task.multilabel, 2, ("joy", "sad"))
        assert (fault is None) == fits


# One client's ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any))
def test_the_skew_of_a_client_is_a_divergence_of_scipy(counts: list[int]) -> None:
    every = np.array([50.0, 30.0, 20.0])
    prior, own = torch.log(torch.from_numpy(every / 100)), np.array(counts, dtype=float)
    chance = 2 / (2 * own.sum())
    expected = max(0.0, (entropy(own, every) - chance) / entropy(every))
    found = own_skew(torch.from_numpy(own), prior, Task.classification)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_skew_of_a_client_by_task() -> None:
    prior = torch.tensor([0.5, 0.5]).double().log()
    assert own_skew(torch.tensor([900.0]), prior, Task.classification) == pytest.approx(1, abs=1e-3)
    # Of two labels, one as everywhere and one that all items of the client have.
    logits = torch.zeros(2).double()
    sums = torch.tensor([1e6, 5e5, 1e6]).double()
    assert own_skew(sums, logits, Task.multilabel) == pytest.approx(0.5, abs=1e-3)
    numbers = torch.tensor([10.0, 4.0]).double()
    near, far = (torch.tensor([100.0, mean, 7.0]).double() for mean in (10.1, 12.0))
    assert own_skew(near, numbers, Task.regression) == 0
    assert own_skew(far, numbers, Task.regression) == pytest.approx(2**2 / 4 - 1 / 100)
    assert own_skew(torch.zeros(2).double(), prior, Task.classification) == 0
