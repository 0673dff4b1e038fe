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


def sequences_of(items: list[Any], tabular: bool = False) -> Sequences:
    """Items as lists of rows of two, with a row of rubbish between them that belongs to none."""
    rubbish = np.full((1, 2), np.nan)
    rows, starts = [rubbish], []
    for item in items:
        starts.append(sum(map(len, rows)))
        rows += [np.array(item, dtype=np.float64).reshape(len(item), 2), rubbish]
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    values, where = np.concatenate(rows).astype(np.float32), np.array(starts, dtype=np.int64)
    return Sequences(values, where, lengths, tabular)


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
    for value in (0.0, 2.5, -1e30):  # all the same fall into one bar
        labels = np.full(5, value, dtype=np.float32)
        assert sorted(bins_of(labels).count(labels)) == [0] * (BINS - 1) + [5]
    labels = np.random.default_rng(0).normal(1000, 1, 999).astype(np.float32)
    statistics, exact = bins_of(labels).statistics(labels), labels.astype(np.float64)
    assert list(statistics) == ["histogram", "mean", "sd"]
    assert type(statistics["mean"]) is type(statistics["sd"]) is float
    assert statistics["mean"] == pytest.approx(exact.mean(), abs=5e-7)
    assert statistics["sd"] == pytest.approx(exact.std(), abs=5e-7)


def test_classes_and_labels_are_counted_also_those_that_nobody_has() -> None:
    classes, several = bins_of(CLASSES, 5), bins_of(SEVERAL, 3, "joy", "fear", "rage")
    assert classes.statistics(CLASSES) == {"histogram": [1, 1, 3, 0, 0]}
    assert classes.names == ["0", "1", "2", "3", "4"]
    assert several.statistics(SEVERAL) == {"histogram": [2, 1, 0]}
    assert several.names == ["joy", "fear", "rage"]
    assert bins_of(SEVERAL, 3).names == ["0", "1", "2"]
    for labels, bars in ((NUMBERS, BINS), (CLASSES, 3), (SEVERAL, 3)):  # none at all
        for bins in (bins_of(labels, 3), bins_of(labels[:0], 3)):
            assert bins.statistics(labels[:0]) == {"histogram": [0] * bars}


FIELDS = ("items", "missing", "rows", "lengths", "nan", "infinite", "constant")
NAN, INF = np.nan, np.inf
FIRST = (3, 2, 6, (1, 2.0, 3), 0, 0, 0)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([[[1, 2]], [], [[1, 3], [4, 5], [6, 7]], [[9, 9], [8, 8]], []], FIRST),
        ([[[1, 3]], [[1, 2]] * 4], (2, 0, 5, (1, 2.5, 4), 0, 0, 1)),
        ([[], []], (0, 2, 0, (0, 0.0, 0), 0, 0)),
        ([], (0, 0, 0, (0, 0.0, 0), 0, 0)),
        # The rows between items are NaN and count for nothing.
        ([[[NAN, INF], [1, NAN]], [[-INF, NAN], [2, 3]]], (2, 0, 4, (2, 2.0, 2), 3, 2)),
        # Never changing, or never finite.
        ([[[5, NAN], [5, INF]], [[5, NAN]]], (2, 0, 3, (1, 1.5, 2), 2, 1, 2)),
    ],
)
def test_sequences_are_described(items: list[Any], expected: tuple[Any, ...]) -> None:
    facts = sequence_statistics(sequences_of(items))
    assert (facts["width"], facts["tabular"], facts["dtype"]) == (2, False, "float32")
    facts["lengths"] = tuple(facts["lengths"][key] for key in ("min", "median", "max"))
    assert tuple(facts[field] for field in FIELDS[: len(expected)]) == expected


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
