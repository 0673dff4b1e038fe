"""Metrics, confusions and calibration tables against scikit-learn, SciPy and loops."""

import json
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from common.diagnostics import PAIRS, diagnostics, prediction_table, reliability_table
from common.metrics import (
    HEADLINE,
    SELECTION,
    ConstantPredictions,
    calibration_error,
    compute_metrics,
    concordance,
    correlation,
    coverage_metrics,
    is_sentiment,
)
from common.task import Task

CLOSE = 1e-6
f1 = partial(sklearn.metrics.f1_score, average="weighted")
confusion = sklearn.metrics.confusion_matrix


def python_rounded(values: np.ndarray, limit: int) -> list[int]:
    """Clip, then round as Python does, half to even."""
    return [round(min(max(float(value), -limit), limit)) for value in values]


def looped_ece(probabilities: np.ndarray, outcomes: np.ndarray) -> float:
    """Go through the bins (b / 10, (b + 1) / 10], the first with its lower edge, one by one."""
    total, probabilities = 0.0, probabilities.astype(float)
    for b in range(10):
        inside = (probabilities > (b / 10 if b else -1)) & (probabilities <= (b + 1) / 10)
        if inside.any():
            total += abs(outcomes[inside].mean() - probabilities[inside].mean()) * inside.mean()
    return total


def tables_of(task: Task, *given: np.ndarray, sentiment: bool = False) -> dict:
    """Return the tables, which must be JSON."""
    found = diagnostics(task, *given, sentiment=sentiment)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


# Quarters: ties, zeros and halves are common, and so are values beyond the scale.
labels = st.integers(-12, 12).map(lambda quarters: quarters / 4)
predictions = st.integers(-16, 16).map(lambda quarters: quarters / 4)
labelled = st.lists(st.tuples(labels, predictions), min_size=1, max_size=30).map(
    lambda pairs: (np.array(pairs, dtype=np.float32)[:, 0], np.array(pairs)[:, 1])
)


@settings(max_examples=100, deadline=None)
@given(labelled)
@pytest.mark.filterwarnings("ignore::common.metrics.ConstantPredictions")
def test_regression_equals_the_libraries(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = drawn
    nonzero = truth != 0
    positive = (truth[nonzero] > 0, predicted[nonzero] > 0)
    varies = len(set(truth)) > 1 and len(set(predicted)) > 1
    exact = truth.astype(float)
    spread = np.mean((exact - exact.mean()) ** 2) + np.mean((predicted - predicted.mean()) ** 2)
    shared = np.mean((exact - exact.mean()) * (predicted - predicted.mean()))
    shift = (exact.mean() - predicted.mean()) ** 2
    expected = {
        "mae": sklearn.metrics.mean_absolute_error(truth, predicted),
        "rmse": sklearn.metrics.root_mean_squared_error(truth, predicted),
        "r2": sklearn.metrics.r2_score(truth, predicted) if len(set(truth)) > 1 else 0.0,
        "corr": scipy.stats.pearsonr(truth, predicted).statistic if varies else 0.0,
        "ccc": 2 * shared / (spread + shift) if varies else 0.0,
    }
    of_sentiment = {
        "mse": sklearn.metrics.mean_squared_error(truth, predicted),
        "acc2": sklearn.metrics.accuracy_score(truth >= 0, predicted >= 0),
        "f1": f1(truth >= 0, predicted >= 0),
        "acc2_nonzero": sklearn.metrics.accuracy_score(*positive) if nonzero.any() else 0.0,
        "f1_nonzero": f1(*positive) if nonzero.any() else 0.0,
        "acc5": np.mean(np.equal(python_rounded(truth, 2), python_rounded(predicted, 2))),
        "acc7": np.mean(np.equal(python_rounded(truth, 3), python_rounded(predicted, 3))),
    }
    assert compute_metrics(Task.regression, *drawn) == pytest.approx(expected, abs=CLOSE)
    found = compute_metrics(Task.regression, *drawn, sentiment=True)
    assert found == pytest.approx(expected | of_sentiment, abs=CLOSE)
    assert {type(value) for value in found.values()} == {float}
    # Without deviations there is no calibration.
    (predictions,) = tables_of(Task.regression, *drawn).values()
    for name, values in zip(("truth", "predicted"), drawn, strict=True):
        assert predictions[name] == pytest.approx(values.tolist(), rel=1e-4)
    counts = confusion(*(python_rounded(each, 3) for each in drawn), labels=range(-3, 4)).tolist()
    expected_counts = {"classes": [-3, -2, -1, 0, 1, 2, 3], "counts": counts}
    tables = tables_of(Task.regression, *drawn, sentiment=True)
    assert tables == {"confusion": expected_counts, "predictions": predictions}


def test_of_many_items_some_are_kept_evenly_spaced() -> None:
    numbers = np.arange(10_000.0)
    table = prediction_table(numbers, numbers + 0.5)
    assert len(table["truth"]) == len(table["predicted"]) == PAIRS
    assert (table["truth"][0], table["truth"][-1]) == (0, 9999)
    assert set(np.diff(table["truth"]).round()) <= {33, 34}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("items", [1, 3, 1000])
def test_constants_have_no_correlation_and_say_so(constant: float, items: int, dtype: type) -> None:
    varied, same = np.linspace(-3, 3, items, dtype=dtype), np.full(items, constant, dtype=dtype)
    for pair in ((varied, same), (same, varied)):
        with pytest.warns(ConstantPredictions, match="corr=0"):
            found = compute_metrics(Task.regression, *pair)
        assert found["corr"] == found["ccc"] == 0.0
        assert found["r2"] <= 0.0 if pair[0] is varied and items > 1 else found["r2"] == 0.0


def test_nearly_constant_predictions_still_correlate() -> None:
    truth = np.array([1.0, 2.0, 4.0])
    assert correlation(truth, 1e-30 * truth) == pytest.approx(1.0)
    assert correlation(truth, -1e30 * truth) == pytest.approx(-1.0)


@given(st.lists(st.integers(-9, 9), min_size=2, unique=True), st.integers(-9, 9))
def test_concordance_falls_with_a_shift_or_a_stretch_that_correlation_does_not_see(
    values: list[int], shift: int
) -> None:
    truth = np.array(values, dtype=float)
    variance, mean = truth.var(), truth.mean()
    expected = 2 * variance / (2 * variance + shift**2)
    assert concordance(truth, truth + shift) == pytest.approx(expected)
    stretched = concordance(truth, 3 * truth)
    assert stretched == pytest.approx(6 * variance / (10 * variance + 4 * mean**2))
    assert concordance(3 * truth, truth) == pytest.approx(stretched)
    assert concordance(truth, 2 * mean - truth) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([-3, 0, 3], True),
        ([[-1.01, np.nan], [1.01, np.inf]], True),
        ([-1.2, -1.1, 1.2], True),
        ([1, 2, 3, 4, 5], False),
        ([1, 2, 3], False),
        ([0, 55, 100], False),
        ([0, 0.5, 1], False),
        ([-1, 0, 1], False),
        ([-2.5, 0.1, 1], False),
        ([-1, 0.1, 2.5], False),
        ([-2.4, 0.1, 3.1], False),
        ([-3.1, 0.1, 2.4], False),
        ([-2, -1.5], False),
        ([np.nan], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_sentiment(labels: list[float], expected: bool, dtype: type) -> None:
    assert is_sentiment(np.array(labels, dtype)) is expected


def test_classes_and_labels_are_not_sentiment() -> None:
    assert not is_sentiment(np.arange(3))
    assert not is_sentiment(np.eye(2, dtype=np.float32))


@pytest.mark.parametrize(("name", "level"), [("coverage_50", 0.5), ("coverage_90", 0.9)])
def test_the_ends_of_an_interval_are_inside(name: str, level: float) -> None:
    end = scipy.stats.norm.ppf(0.5 + level / 2) * (1 - 1e-9)
    for factor, share in ((1, 1.0), (1 + 2e-9, 0.0)):
        ends = np.array([end, -end]) * factor
        assert coverage_metrics(ends, np.zeros(2), np.ones(2))[name] == share


@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
def test_deviations_are_one_an_item(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"deviations of shape .* expected \(3,\)"):
        compute_metrics(Task.regression, np.arange(3.0), np.arange(3.0), np.ones(shape))


twentieths = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40).map(
    lambda pairs: (np.array(pairs)[:, 0] / 20, np.array(pairs)[:, 1] > 0)
)


@settings(max_examples=100, deadline=None)
@given(twentieths)
def test_calibration_error_equals_a_loop_over_bins(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    assert calibration_error(*drawn) == pytest.approx(looped_ece(*drawn), abs=CLOSE)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 25), st.integers(0, 999), st.booleans(), st.booleans())
def test_classes_equal_scikit_learn(
    classes: int, items: int, seed: int, constant: bool, tied: bool
) -> None:
    source = np.random.default_rng(seed)
    truth = source.integers(classes, size=1 if constant else items).repeat(items if constant else 1)
    probabilities = scipy.special.softmax(2 * source.normal(size=(items, classes)), axis=1)
    if tied:
        counts = source.integers(1, 3, size=(items, classes))
        probabilities = counts / counts.sum(axis=1, keepdims=True)
    probabilities = probabilities.astype(np.float32)
    exact = probabilities.astype(float) / probabilities.astype(float).sum(axis=1, keepdims=True)
    # The first of equally probable classes is chosen.
    chosen = np.array([row.index(max(row)) for row in probabilities.tolist()])
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(truth, chosen),
        "f1": f1(truth, chosen),
        "log_loss": sklearn.metrics.log_loss(truth, exact, labels=list(range(classes))),
        "ece": looped_ece(probabilities.max(axis=1), truth == chosen),
    }
    found = compute_metrics(Task.classification, truth, probabilities)
    assert found == pytest.approx(expected, abs=CLOSE)
    tables = tables_of(Task.classification, truth, probabilities)
    counts = confusion(truth, chosen, labels=range(classes)).tolist()
    assert tables["confusion"] == {"classes": list(range(classes)), "counts": counts}
    assert tables["calibration"] == reliability_table(
        probabilities.max(axis=1).astype(float), truth == chosen
    )


def test_a_class_of_probability_zero_costs_much_but_not_infinitely_much() -> None:
    found = compute_metrics(Task.classification, np.array([1, 0]), np.array([[1.0, 0.0]] * 2))
    assert 10 < found["log_loss"] < 20


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 25), st.integers(0, 999))
def test_labels_equal_scikit_learn(columns: int, items: int, seed: int) -> None:
    source = np.random.default_rng(seed)
    truth = (source.random((items, columns)) < 0.3).astype(np.float32)
    probabilities = source.integers(0, 9, size=(items, columns)) / 8
    losses = [
        sklearn.metrics.log_loss(*pair, labels=[0, 1])
        for pair in zip(truth.T, probabilities.T, strict=True)
    ]
    expected = {
        "log_loss": np.mean(losses),
        "ece": looped_ece(probabilities.flatten(), truth.flatten()),
    }
    for k in range(columns):
        actual, chosen = truth[:, k] == 1, probabilities[:, k] >= 0.5
        expected[f"weighted_accuracy_{k}"] = sklearn.metrics.recall_score(
            actual, chosen, labels=np.unique(actual), average="macro"
        )
        expected[f"f1_{k}"] = f1(actual, chosen)
    for name in ("weighted_accuracy", "f1"):
        expected[name] = np.mean([expected[f"{name}_{k}"] for k in range(columns)])
    found = compute_metrics(Task.multilabel, truth, probabilities)
    assert found == pytest.approx(expected, abs=CLOSE)
    pairs = zip(truth.T, probabilities.T >= 0.5, strict=True)
    counts = [confusion(*pair, labels=[0, 1]).tolist() for pair in pairs]
    tables = tables_of(Task.multilabel, truth, probabilities)
    assert tables["confusion"] == {"classes": [0, 1], "counts": counts}
    assert tables["calibration"] == reliability_table(probabilities.ravel(), truth.ravel() > 0)


@pytest.mark.parametrize("task", list(Task))
def test_headline_and_selection_are_better_for_better_predictions(task: Task) -> None:
    source = np.random.default_rng(0)
    scores = source.normal(size=(200, 3))
    truth, good, bad = {
        Task.regression: (scores[:, 0], scores[:, 0] + 0.1 * scores[:, 1], scores[:, 2]),
        Task.classification: (
            scores.argmax(axis=1),
            *(scipy.special.softmax(x, axis=1) for x in (scores, -scores)),
        ),
        Task.multilabel: ((scores > each) * np.float32(1) for each in (0, 0.1, 1.0)),
    }[task]
    better, worse = (compute_metrics(task, truth, each) for each in (good, bad))
    assert better[HEADLINE[task]] > worse[HEADLINE[task]]
    assert better[SELECTION[task]] < worse[SELECTION[task]]


def test_coverage_is_that_of_scipys_intervals() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.normal(size=(2, 300))
    std = rng.uniform(0.5, 2, 300).astype(np.float32)
    table = tables_of(Task.regression, truth, predicted, std)["calibration"]
    assert table["nominal"] == pytest.approx(np.arange(1, 10) / 10)
    for level, observed, width in zip(*table.values(), strict=True):
        low, high = scipy.stats.norm.interval(level, predicted, std)
        assert observed == pytest.approx(np.mean((low <= truth) & (truth <= high)))
        assert width == pytest.approx(np.mean(high - low))
    plain = compute_metrics(Task.regression, truth, predicted)
    added = {"coverage_50": table["observed"][4], "coverage_90": table["observed"][8]}
    assert compute_metrics(Task.regression, truth, predicted, std) == plain | added


def test_reliability_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=400)
    outcomes = rng.uniform(size=400) < probabilities**2
    frequency, mean = sklearn.calibration.calibration_curve(outcomes, probabilities, n_bins=10)
    table = reliability_table(probabilities, outcomes)
    assert table["frequency"] == pytest.approx(frequency)
    assert table["probability"] == pytest.approx(mean)
    assert sum(table["count"]) == 400


def test_bins_by_hand() -> None:
    table = reliability_table(np.array([0.0, 0.1, 0.11, 0.95, 1.0]), np.array([1, 0, 1, 1, 0]))
    assert table["upper"] == pytest.approx(np.arange(1, 11) / 10)
    assert table["count"] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert table["frequency"] == [0.5, 1.0, *[None] * 7, 0.5]
    assert table["probability"] == [0.05, 0.11, *[None] * 7, 0.975]


@pytest.mark.parametrize("measure", [compute_metrics, diagnostics])
@pytest.mark.parametrize("task", list(Task))
def test_no_items_raise(measure: object, task: Task) -> None:
    truth = np.zeros((0, 2)) if task is Task.multilabel else np.zeros(0)
    predicted = np.zeros(0) if task is Task.regression else np.zeros((0, 2))
    with pytest.raises(ValueError, match="no items"):
        measure(task, truth, predicted)


def test_a_prediction_that_is_no_number_is_not_tabulated() -> None:
    with pytest.raises(ValueError, match="a prediction is no number"):
        diagnostics(Task.regression, np.zeros(2), np.array([0.0, np.nan]))
