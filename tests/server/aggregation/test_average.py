"""The weighted average against NumPy's, and as a monoid."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.posterior import Gaussian, Layout, Posterior
from server.aggregation.average import WeightedSum

SHAPES = {"matrix": (3, 4), "bias": (3,), "scalar": (), "conv": (2, 3, 2)}


def posterior_of(arrays: dict[str, Tensor]) -> Posterior:
    return Posterior.of({name: Gaussian(array) for name, array in arrays.items()})


def client(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def total_of(clients: list[tuple[dict[str, Tensor], float]]) -> WeightedSum:
    total = WeightedSum()
    for arrays, weight in clients:
        total = total.add(posterior_of(arrays), weight)
    return total


def assert_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6
) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        torch.testing.assert_close(array, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weights", [[1.0], [3, 1], [5.0, 0.25, 1000.0, 7.0]])
def test_equals_numpy_average(weights: list[float]) -> None:
    clients = [client(seed) for seed in range(len(weights))]
    average = total_of(list(zip(clients, weights, strict=True))).finish()
    for name in SHAPES:
        stacked = np.stack([arrays[name].double().numpy() for arrays in clients])
        expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
        assert average[name].dtype == torch.float32
        assert average[name].shape == SHAPES[name]
        np.testing.assert_allclose(average[name].numpy(), expected, rtol=1e-7, atol=0)


def test_small_contributions_are_not_lost_beside_large_ones() -> None:
    # In float32, 2**24 + 1 is 2**24.
    values = [2.0**24, 1.0, 1.0]
    total = total_of([({"w": torch.tensor([value])}, 1.0) for value in values])
    assert total.finish()["w"].item() == np.float32(np.mean(values))
    assert total.vector.item() == sum(values)


@pytest.mark.parametrize("weight", [0, 0.0, -1, -0.5, float("inf"), -float("inf"), float("nan")])
def test_weight_that_is_not_positive_and_finite_raises(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        WeightedSum().add(posterior_of(client(0)), weight)
    with pytest.raises(ValueError, match="weight"):
        total_of([(client(0), 1.0), (client(1), weight)])


@pytest.mark.parametrize(
    ("left", "right"),
    [((1,), (3,)), ((3,), (1,)), ((), (3,)), ((3, 1), (3, 3)), ((3,), (1, 3)), ((4,), (2, 2))],
)
def test_shapes_that_could_broadcast_raise_and_are_named(
    left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    both = [({"ok": torch.ones(2), "odd": torch.ones(shape)}, 1.0) for shape in (left, right)]
    with pytest.raises(ValueError) as raised:
        total_of(both)
    for part in ("'odd'", str(left), str(right)):
        assert part in str(raised.value)


@pytest.mark.parametrize("odd", ["missing", "extra"])
def test_names_that_differ_raise_and_are_named(odd: str) -> None:
    full, short = {"ok": torch.ones(2), "odd": torch.ones(2)}, {"ok": torch.ones(2)}
    first, second = (full, short) if odd == "missing" else (short, full)
    with pytest.raises(ValueError, match="'odd'"):
        total_of([(first, 1.0), (second, 1.0)])


def test_client_without_arrays_is_not_taken_for_nothing() -> None:
    nothing = Posterior(Layout(), torch.zeros(0))
    with pytest.raises(ValueError, match="no arrays"):
        total_of([({"bias": torch.ones(2)}, 1.0)]).add(nothing, 1.0)


def test_average_of_nothing_raises() -> None:
    with pytest.raises(ValueError, match="no clients"):
        WeightedSum().finish()
    with pytest.raises(ValueError, match="no clients"):
        WeightedSum().merge(WeightedSum()).finish()


def test_empty_sum_is_neutral() -> None:
    total = total_of([(client(0), 2.0), (client(1), 3.0)])
    for merged in (WeightedSum().merge(total), total.merge(WeightedSum())):
        assert merged.weight == 5.0
        assert_close(merged.finish(), total.finish(), tolerance=0)


def test_one_client_returns_itself() -> None:
    for weight in (1e-3, 3.0, 12345.0):
        assert_close(total_of([(client(4), weight)]).finish(), client(4), tolerance=0)


@given(weights=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_identical_clients_are_a_fixed_point(weights: list[float]) -> None:
    total = total_of([(client(2), weight) for weight in weights])
    assert_close(total.finish(), client(2), tolerance=1e-7)


@given(data=st.data(), weights=st.lists(st.integers(1, 5000), min_size=2, max_size=7))
@settings(max_examples=25, deadline=None)
def test_order_and_grouping_do_not_matter(data: st.DataObject, weights: list[int]) -> None:
    clients = [(client(seed), float(weight)) for seed, weight in enumerate(weights)]
    expected = total_of(clients)
    sums = [total_of([one]) for one in data.draw(st.permutations(clients))]
    while len(sums) > 1:
        # Any tree: merge two neighbours, wherever they stand.
        at = data.draw(st.integers(0, len(sums) - 2))
        sums[at : at + 2] = [sums[at].merge(sums[at + 1])]
    assert sums[0].weight == expected.weight
    assert_close(sums[0].finish(), expected.finish())


def test_adding_leaves_earlier_sums_and_the_client_as_they_were() -> None:
    arrays = client(0)
    first = total_of([(arrays, 2.0)])
    before = first.finish()
    first.add(posterior_of(client(1)), 5.0)
    assert_close(first.finish(), before, tolerance=0)
    assert_close(arrays, client(0), tolerance=0)
    assert first.weight == 2.0
