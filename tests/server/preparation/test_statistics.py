"""Statistics of labels and sequences, against NumPy over plain lists."""

from typing import Any

import numpy as np
import pytest

from common.data.dataset import CHUNK, LabelArray, Sequences
from common.task import Task
from server.preparation.statistics import BINS, LabelBins, sequence_statistics

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


def bins_of(labels: LabelArray, outputs: int = 1, *names: str) -> LabelBins:
    kinds = {"i": Task.classification, "f": Task.regression}
    task = Task.multilabel if labels.ndim == 2 else kinds[labels.dtype.kind]
    return LabelBins.of(labels, task, names, outputs)


def test_numbers_are_counted_between_the_least_and_the_greatest() -> None:
    bins = bins_of(NUMBERS)
    np.testing.assert_allclose(bins.edges, np.linspace(-3, 3, BINS + 1))
    expected, _ = np.histogram(NUMBERS.astype(np.float64), bins=BINS, range=(-3, 3))
    assert bins.count(NUMBERS) == expected.tolist()
    assert bins.count(NUMBERS[:2]) == [1, 1, 0, 0, 0, 0, 0]  # by the edges of all
    names = bins_of(np.array([0, 7], dtype=np.float32)).names
    assert names == [f"{low} to {low + 1}" for low in range(BINS)]


@pytest.mark.parametrize("value", [0.0, 2.5, -1e30])
def test_labels_that_are_all_the_same_fall_into_one_bar(value: float) -> None:
    labels = np.full(5, value, dtype=np.float32)
    counts = bins_of(labels).count(labels)
    assert (sum(counts), max(counts), len(counts)) == (5, 5, BINS)


def test_mean_and_deviation_of_numbers_are_numpys_in_double_precision() -> None:
    labels = np.random.default_rng(0).normal(1000, 1, 999).astype(np.float32)
    statistics = bins_of(labels).statistics(labels)
    assert statistics["mean"] == pytest.approx(labels.astype(np.float64).mean(), abs=5e-7)
    assert statistics["sd"] == pytest.approx(labels.astype(np.float64).std(), abs=5e-7)
    assert type(statistics["mean"]) is type(statistics["sd"]) is float
    assert list(statistics) == ["histogram", "mean", "sd"]


def test_classes_and_labels_are_counted_also_those_that_nobody_has() -> None:
    classes, several = bins_of(CLASSES, 5), bins_of(SEVERAL, 3, "joy", "fear", "rage")
    assert classes.statistics(CLASSES) == {"histogram": [1, 1, 3, 0, 0]}
    assert classes.names == ["0", "1", "2", "3", "4"]
    assert several.statistics(SEVERAL) == {"histogram": [2, 1, 0]}
    assert several.names == ["joy", "fear", "rage"]
    assert bins_of(SEVERAL, 3).names == ["0", "1", "2"]


@pytest.mark.parametrize(("labels", "bars"), [(NUMBERS, BINS), (CLASSES, 3), (SEVERAL, 3)])
def test_no_labels_at_all(labels: LabelArray, bars: int) -> None:
    for bins in (bins_of(labels, 3), bins_of(labels[:0], 3)):
        assert bins.statistics(labels[:0]) == {"histogram": [0] * bars}


# Sequences --------------------------------------------------------------------------------------

PLAIN = {"width": 2, "tabular": False, "dtype": "float32", "nan": 0, "infinite": 0, "constant": 0}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (
            [[[1, 2]], [], [[1, 3], [4, 5], [6, 7]], [[9, 9], [8, 8]], []],
            {
                **PLAIN,
                "items": 3,
                "missing": 2,
                "rows": 6,
                "lengths": {"min": 1, "median": 2.0, "max": 3},
            },
        ),
        ([[[1, 2]], [[1, 2]] * 4], {"lengths": {"min": 1, "median": 2.5, "max": 4}}),
        (
            [[], []],
            {"items": 0, "missing": 2, "rows": 0, "lengths": {"min": 0, "median": 0.0, "max": 0}},
        ),
        ([], {"items": 0, "missing": 0, "rows": 0, "nan": 0, "infinite": 0}),
        # The rows between items are NaN and count for nothing.
        ([[[np.nan, np.inf], [1, np.nan]], [[-np.inf, np.nan], [2, 3]]], {"nan": 3, "infinite": 2}),
        # Never changing, or never finite.
        ([[[5, np.nan], [5, np.inf]], [[5, np.nan]]], {"constant": 2}),
    ],
)
def test_sequences_are_described(items: list[Any], expected: dict[str, Any]) -> None:
    facts = sequence_statistics(sequences_of(items))
    assert {key: facts[key] for key in expected} == expected


def test_rows_that_two_items_share_count_once() -> None:
    values = np.array([[np.nan, 1], [np.inf, 2], [3, 4]], dtype=np.float16)
    facts = sequence_statistics(Sequences(values, np.array([0, 0, 1]), np.array([1, 2, 2])))
    assert (facts["rows"], facts["nan"], facts["infinite"]) == (3, 1, 1)
    assert facts["dtype"] == "float16"


def test_a_table_is_constant_by_step_and_column() -> None:
    # Columns vary over the steps, but the first step is the same in every item.
    items = [[[1, 2], [3, 4]], [], [[1, 2], [5, 4]], [[1, 2], [6, 4]]]
    facts = sequence_statistics(sequences_of(items, tabular=True))
    assert facts["tabular"] is True
    assert (facts["constant"], facts["rows"], facts["missing"]) == (3, 6, 1)
    assert sequence_statistics(sequences_of(items))["constant"] == 0


def test_more_rows_than_are_looked_at_together() -> None:
    rows = 2 * CHUNK + 17
    values = np.zeros((rows, 2), dtype=np.float32)
    values[:, 0] = np.arange(rows) // CHUNK  # constant inside of a chunk, not over all
    values[[0, CHUNK, rows - 1], 1] = np.nan, np.inf, np.nan
    facts = sequence_statistics(Sequences(values, np.array([0]), np.array([rows])))
    assert (facts["nan"], facts["infinite"]) == (2, 1)
    assert facts["constant"] == 1
    assert facts["rows"] == rows
