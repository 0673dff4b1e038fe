"""Confusions and calibration against scikit-learn and SciPy, and by hand."""

import json

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from common.diagnostics import diagnostics, reliability_table
from common.metrics import coverage_metrics
from common.task import Task

# Quarters: halves, which are rounded to even, are common, and so are values beyond the scale.
quarters = st.integers(-16, 16).map(lambda each: each / 4)
numbers = st.lists(st.tuples(quarters, quarters), min_size=1, max_size=30).map(
    lambda pairs: np.array(pairs).T
)


def drawn(classes: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Make true classes and probabilities that know something of them."""
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, count)
    scores = rng.normal(size=(count, classes)) + 2 * np.eye(classes)[truth]
    return truth, scipy.special.softmax(scores, axis=1)


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_numbers_are_counted_in_seven_classes(drawn: np.ndarray) -> None:
    # As Python rounds; without deviations there is no calibration.
    classes = [[round(min(max(value, -3), 3)) for value in each] for each in drawn]
    expected = sklearn.metrics.confusion_matrix(*classes, labels=range(-3, 4)).tolist()
    confusion = {"classes": [-3, -2, -1, 0, 1, 2, 3], "counts": expected}
    assert diagnostics(Task.regression, *drawn) == {"confusion": confusion}


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_are_counted_and_reliable_as_scikit_learn_says(classes: int) -> None:
    truth, probabilities = drawn(classes)
    chosen = probabilities.argmax(axis=1)
    found = diagnostics(Task.classification, truth, probabilities)
    expected = sklearn.metrics.confusion_matrix(truth, chosen).tolist()
    assert found["confusion"] == {"classes": list(range(classes)), "counts": expected}
    frequency, mean = sklearn.calibration.calibration_curve(
        chosen == truth, probabilities.max(axis=1), n_bins=10
    )
    table = found["calibration"]
    filled = [place for place, count in enumerate(table["count"]) if count]
    assert [table["frequency"][place] for place in filled] == pytest.approx(frequency)
    assert [table["probability"][place] for place in filled] == pytest.approx(mean)
    assert sum(table["count"]) == len(truth)


@pytest.mark.parametrize("labels", [1, 4])
def test_each_label_has_a_matrix_of_its_own(labels: int) -> None:
    rng = np.random.default_rng(labels)
    truth, probabilities = rng.integers(0, 2, (50, labels)), rng.uniform(size=(50, labels))
    probabilities[0] = 0.5
    found = diagnostics(Task.multilabel, truth.astype(np.float32), probabilities)["confusion"]
    pairs = zip(truth.T, probabilities.T >= 0.5, strict=True)
    expected = [sklearn.metrics.confusion_matrix(*pair).tolist() for pair in pairs]
    assert found == {"classes": [0, 1], "counts": expected}


def test_coverage_is_that_of_scipys_intervals() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.normal(size=(2, 300))
    std = rng.uniform(0.5, 2, 300)
    table = diagnostics(Task.regression, truth, predicted, std)["calibration"]
    assert table["nominal"] == pytest.approx(np.arange(1, 10) / 10)
    for level, observed, width in zip(*table.values(), strict=True):
        low, high = scipy.stats.norm.interval(level, predicted, std)
        assert observed == pytest.approx(np.mean((low <= truth) & (truth <= high)))
        assert width == pytest.approx(np.mean(high - low))
    metrics = coverage_metrics(truth, predicted, std)
    assert table["observed"][4] == metrics["coverage_50"]
    assert table["observed"][8] == metrics["coverage_90"]


def test_bins_by_hand() -> None:
    table = reliability_table(np.array([0.0, 0.1, 0.11, 0.95, 1.0]), np.array([1, 0, 1, 1, 0]))
    assert table["upper"] == pytest.approx(np.arange(1, 11) / 10)
    assert table["count"] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table["frequency"] == [0.5, 1.0, *[None] * 7, 0.5]
    assert table["probability"] == [0.05, 0.11, *[None] * 7, 0.975]


@pytest.mark.parametrize("task", Task)
def test_all_of_it_is_json(task: Task) -> None:
    truth, probabilities = drawn(3)
    given = {
        Task.regression: (truth, truth.astype(np.float32), np.ones(len(truth), dtype=np.float32)),
        Task.classification: (truth, probabilities.astype(np.float32)),
        Task.multilabel: (np.eye(3)[truth].astype(np.float32), probabilities.astype(np.float32)),
    }
    found = diagnostics(task, *given[task])
    assert list(found) == ["confusion", "calibration"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        diagnostics(Task.regression, np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="a prediction is no number"):
        diagnostics(Task.regression, np.zeros(2), np.array([0.0, np.nan]))
