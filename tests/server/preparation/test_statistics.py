"""Facts of labels and sequences, against NumPy over plain lists."""

from typing import Any

import numpy as np
import pytest

from common.data.dataset import CHUNK, Sequences
from common.task import Task
from server.preparation.statistics import (
    BINS,
    bin_edges,
    label_bins,
    label_histogram,
    label_statistics,
    sequence_statistics,
)

NUMBERS = np.array([-3, -1.5, -0.2, 0, 0.1, 0.1, 2.9, 3], dtype=np.float32)
CLASSES = np.array([2, 0, 2, 2, 1], dtype=np.int64)
SEVERAL = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=np.float32)


def sequences_of(
    items: list[Any], width: int = 2, dtype: Any = np.float32, tabular: bool = False
) -> Sequences:
    """Items as lists of rows, with a row of rubbish between them that belongs to none."""
    rubbish = np.full((1, width), np.nan)
    rows, starts = [rubbish], []
    for item in items:
        starts.append(sum(map(len, rows)))
        rows += [np.array(item, dtype=np.float64).reshape(len(item), width), rubbish]
    return Sequences(
        np.concatenate(rows).astype(dtype),
        np.array(starts, dtype=np.int64),
        np.array([len(item) for item in items], dtype=np.int64),
        tabular,
    )


# Labels -----------------------------------------------------------------------------------------


def test_numbers_are_counted_between_the_least_and_the_greatest() -> None:
    edges = bin_edges(NUMBERS)
    assert len(edges) == BINS + 1
    assert (edges[0], edges[-1]) == (-3, 3)
    assert np.allclose(np.diff(edges), 6 / BINS)
    counts = label_histogram(NUMBERS, Task.regression, 1, edges)
    expected, _ = np.histogram(NUMBERS.astype(np.float64), bins=BINS, range=(-3, 3))
    assert counts == expected.tolist()
    assert sum(counts) == len(NUMBERS)
    assert all(type(count) is int for count in counts)


def test_a_part_is_counted_by_the_edges_of_all() -> None:
    counts = label_histogram(NUMBERS[:2], Task.regression, 1, bin_edges(NUMBERS))
    assert counts == [1, 1, 0, 0, 0, 0, 0]


def test_bars_of_numbers_are_named_by_their_range() -> None:
    names = label_bins(np.array([0, 7], dtype=np.float32), Task.regression, (), 1)
    assert names == [f"{low} to {low + 1}" for low in range(BINS)]


@pytest.mark.parametrize("value", [0.0, 2.5, -1e30])
def test_labels_that_are_all_the_same_fall_into_one_bar(value: float) -> None:
    labels = np.full(5, value, dtype=np.float32)
    counts = label_histogram(labels, Task.regression, 1, bin_edges(labels))
    assert sum(counts) == 5
    assert max(counts) == 5
    assert len(label_bins(labels, Task.regression, (), 1)) == BINS


def test_no_labels_at_all() -> None:
    none = np.empty(0, dtype=np.float32)
    assert label_statistics(none, Task.regression, 1, bin_edges(none)) == {"histogram": [0] * BINS}
    assert label_statistics(CLASSES[:0], Task.classification, 3, None) == {"histogram": [0] * 3}
    assert label_statistics(SEVERAL[:0], Task.multilabel, 3, None) == {"histogram": [0] * 3}


def test_mean_and_deviation_of_numbers_are_numpys_in_double_precision() -> None:
    labels = np.random.default_rng(0).normal(1000, 1, 999).astype(np.float32)
    found = label_statistics(labels, Task.regression, 1, bin_edges(labels))
    assert found["mean"] == pytest.approx(labels.astype(np.float64).mean(), abs=5e-7)
    assert found["sd"] == pytest.approx(labels.astype(np.float64).std(), abs=5e-7)
    assert type(found["mean"]) is type(found["sd"]) is float
    assert list(found) == ["histogram", "mean", "sd"]


def test_classes_are_counted_also_those_that_nobody_has() -> None:
    assert label_statistics(CLASSES, Task.classification, 5, None) == {"histogram": [1, 1, 3, 0, 0]}
    assert label_bins(CLASSES, Task.classification, (), 5) == ["0", "1", "2", "3", "4"]


def test_each_of_several_labels_is_counted() -> None:
    assert label_statistics(SEVERAL, Task.multilabel, 3, None) == {"histogram": [2, 1, 0]}
    assert label_bins(SEVERAL, Task.multilabel, ("joy", "fear", "rage"), 3) == [
        "joy",
        "fear",
        "rage",
    ]
    assert label_bins(SEVERAL, Task.multilabel, (), 3) == ["0", "1", "2"]


# Sequences --------------------------------------------------------------------------------------


def test_widths_lengths_and_what_is_missing() -> None:
    facts = sequence_statistics(
        sequences_of([[[1, 2]], [], [[1, 3], [4, 5], [6, 7]], [[9, 9], [8, 8]], []])
    )
    assert facts == {
        "width": 2,
        "tabular": False,
        "dtype": "float32",
        "items": 3,
        "missing": 2,
        "rows": 6,
        "lengths": {"min": 1, "median": 2.0, "max": 3},
        "nan": 0,
        "infinite": 0,
        "constant": 0,
    }


def test_the_median_of_two_lengths_lies_between_them() -> None:
    facts = sequence_statistics(sequences_of([[[1, 2]], [[1, 2]] * 4]))
    assert facts["lengths"] == {"min": 1, "median": 2.5, "max": 4}


def test_every_item_lacks_the_modality() -> None:
    facts = sequence_statistics(sequences_of([[], []]))
    assert (facts["items"], facts["missing"], facts["rows"]) == (0, 2, 0)
    assert facts["lengths"] == {"min": 0, "median": 0.0, "max": 0}
    assert (facts["nan"], facts["infinite"]) == (0, 0)


def test_no_items_at_all() -> None:
    facts = sequence_statistics(sequences_of([]))
    assert (facts["items"], facts["missing"], facts["rows"]) == (0, 0, 0)


def test_nan_and_infinities_are_counted_apart_and_only_in_items() -> None:
    nan, inf = np.nan, np.inf
    # The rows between items are NaN and count for nothing.
    facts = sequence_statistics(sequences_of([[[nan, inf], [1, nan]], [[-inf, nan], [2, 3]]]))
    assert (facts["nan"], facts["infinite"]) == (3, 2)


def test_rows_that_two_items_share_count_once() -> None:
    values = np.array([[np.nan, 1], [np.inf, 2], [3, 4]], dtype=np.float32)
    shared = Sequences(values, np.array([0, 0, 1]), np.array([1, 2, 2]))
    facts = sequence_statistics(shared)
    assert (facts["rows"], facts["nan"], facts["infinite"]) == (3, 1, 1)


def test_features_that_never_change_or_are_never_finite_are_constant() -> None:
    nan = np.nan
    facts = sequence_statistics(
        sequences_of([[[5, nan, 1, nan], [5, nan, 2, 7]], [[5, np.inf, 3, 7]]], width=4)
    )
    assert facts["constant"] == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_type_of_the_features_is_told(dtype: Any) -> None:
    assert sequence_statistics(sequences_of([[[1, 2]]], dtype=dtype))["dtype"] == np.dtype(dtype)


def test_a_table_is_constant_by_step_and_column() -> None:
    # Columns vary over the steps, but the first step is the same in every item.
    items = [[[1, 2], [3, 4]], [[1, 2], [5, 4]], [[1, 2], [6, 4]]]
    facts = sequence_statistics(sequences_of(items, tabular=True))
    assert facts["tabular"] is True
    assert facts["constant"] == 3
    assert facts["rows"] == 6
    assert sequence_statistics(sequences_of(items))["constant"] == 0


def test_a_table_that_some_items_lack() -> None:
    facts = sequence_statistics(sequences_of([[[1, 2]], [], [[3, 2]]], tabular=True))
    assert (facts["items"], facts["missing"], facts["constant"]) == (2, 1, 1)


def test_more_rows_than_are_looked_at_together() -> None:
    rows = 2 * CHUNK + 17
    values = np.zeros((rows, 2), dtype=np.float32)
    values[:, 0] = np.arange(rows) // CHUNK  # constant inside of a chunk, not over all
    values[[0, CHUNK, rows - 1], 1] = np.nan, np.inf, np.nan
    facts = sequence_statistics(Sequences(values, np.array([0]), np.array([rows])))
    assert (facts["nan"], facts["infinite"]) == (2, 1)
    assert facts["constant"] == 1
    assert facts["rows"] == rows
