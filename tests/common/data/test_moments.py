"""FeatureMoments against NumPy on everything at once."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from updates import in_any_tree

from common.data.dataset import Sequences
from common.data.moments import FeatureMoments

WIDTH = 3
numbers = st.floats(-1e3, 1e3, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
tables = st.integers(0, 7).flatmap(lambda rows: arrays(np.float32, (rows, WIDTH), elements=numbers))


def measured(values: object) -> FeatureMoments:
    """Return the moments of all rows, which are one item."""
    rows = np.asarray(values, dtype=np.float32)
    return FeatureMoments.of(Sequences(rows, np.array([0]), np.array([len(rows)])))


def check_against_numpy(moments: FeatureMoments, values: np.ndarray) -> None:
    for column in range(values.shape[1]):
        finite = values[np.isfinite(values[:, column]), column].astype(np.float64)
        assert moments.count[column] == len(finite)
        if len(finite):
            np.testing.assert_allclose(moments.mean[column], finite.mean(), atol=1e-9)
            np.testing.assert_allclose(moments.std[column], finite.std(), atol=1e-5, rtol=1e-9)


@given(st.lists(tables, min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_merging_in_any_tree_is_numpy_on_the_concatenation(
    parts: list[np.ndarray], data: st.DataObject
) -> None:
    total = in_any_tree(data, [FeatureMoments.empty(WIDTH), *map(measured, parts)])
    check_against_numpy(total, np.concatenate(parts))


def test_only_rows_of_items_count_each_once() -> None:
    values = np.array([[1.0], [2.0], [4.0], [1e6], [8.0]], dtype=np.float32)
    overlapping = Sequences(values, np.array([0, 1, 4, 3]), np.array([2, 2, 1, 0]))
    check_against_numpy(FeatureMoments.of(overlapping), np.array([[1.0], [2.0], [4.0], [8.0]]))


def table(values: np.ndarray) -> Sequences:
    """Return (items, steps, width) as a tabular modality; an item of NaN lacks it."""
    _, steps, width = values.shape
    present = ~np.isnan(values).all(axis=(1, 2))
    lengths = np.where(present, steps, 0)
    starts = np.cumsum(lengths) - lengths
    return Sequences(values[present].reshape(-1, width), starts, lengths, tabular=True)


@given(arrays(np.float32, (5, 3, 2), elements=numbers), st.sets(st.integers(0, 2)))
@settings(max_examples=40, deadline=None)
def test_each_step_of_a_table_is_a_feature_of_its_own(values: np.ndarray, absent: set[int]) -> None:
    values[3:, 0, 0] = 1.0  # one item at least of each half has the modality
    values[sorted(absent)] = np.nan
    one, two = (FeatureMoments.of(table(part)) for part in (values[:4], values[4:]))
    for moments in (FeatureMoments.of(table(values)), one.merge(two)):
        assert moments.mean.shape == (3, 2)
        flat = FeatureMoments(*(array.ravel() for array in vars(moments).values()))
        check_against_numpy(flat, values.reshape(5, -1))


def float32_neighbours(level: float) -> np.ndarray:
    near = np.float32(level)
    return np.tile([[near], [np.nextafter(near, np.float32(9e9))]], (50, 1))


def spread(mean: float, std: float) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, std, size=(500, 1))


@pytest.mark.parametrize(
    ("values", "constant"),
    [
        (np.tile([0.0, 0.1, -3.0, 1e6, -1e6, 123456.789, 1e-8], (1000, 1)), [True] * 7),
        *((float32_neighbours(level), [True]) for level in (0.1, -3.0, 1e6)),
        *((spread(*each), [False]) for each in ((1e6, 10.0), (0.0, 1e-4), (3.0, 1e-3))),
        (np.array([[np.nan, np.inf, 1.0], [np.nan, -np.inf, 2.0]]), [True, True, False]),
    ],
)
def test_only_what_float32_can_tell_apart_varies(values: np.ndarray, constant: list[bool]) -> None:
    for moments in (measured(values), measured(values[:35]).merge(measured(values[35:]))):
        assert moments.constant.tolist() == constant
        assert np.isfinite(moments.mean).all() and np.isfinite(moments.std).all()


def test_clients_that_differ_are_not_constant_together() -> None:
    one, two = (measured(np.full((5, 1), level)) for level in (1.0, 2.0))
    assert one.constant.all() and two.constant.all() and FeatureMoments.empty(2).constant.all()
    assert not one.merge(two).constant.any()


@pytest.mark.parametrize(("mean", "std"), [(1e6, 0.1), (1e6, 1.0), (-3e5, 0.2)])
def test_a_far_mean_cancels_nothing(mean: float, std: float) -> None:
    # Plain float64 sums of squares, let alone float32 ones, lose these digits.
    values = np.random.default_rng(0).normal(mean, std, size=(4000, 1)).astype(np.float32)
    exact = values.astype(np.float64)
    total = functools.reduce(FeatureMoments.merge, map(measured, np.array_split(values, 7)))
    np.testing.assert_allclose(total.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.std, exact.std(axis=0), rtol=1e-9)


def test_float32_extremes_do_not_overflow() -> None:
    extreme = np.float64(np.float32(3e38))
    np.testing.assert_allclose(measured([[extreme], [-extreme]]).std, [extreme])
