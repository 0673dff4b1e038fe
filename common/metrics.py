"""Metrics of each kind of label.

Numbers: mean absolute and root mean squared error; coefficient of determination; Pearson's and
Lin's correlation. Of sentiment in [-3, 3], see `is_sentiment`, also what the literature on CMU-MOSI
and CMU-MOSEI reports: mean squared error; two-class accuracy and weighted F1 in both conventions,
negative against non-negative over all items and negative against positive without the zeros; five-
and seven-class accuracy, which is agreement after clipping to [-2, 2] and [-3, 3] and rounding half
to even.

Calibration: `coverage_50` and `coverage_90`, the share of numbers inside the central 50 % and 90 %
of what was predicted, N(mean, std); `ece`, the expected calibration error of probabilities (Guo et
al., ICML 2017).

They are written out here, for scikit-learn's take a second and 100 MB to import; tests hold them to
it.

Notation: N items, K classes or labels.
"""

import warnings
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.task import Task

Array = NDArray[Any]

#: From truth and prediction to a score.
Metric = Callable[[Array, Array], float]

#: The metric that a run is judged by; more is better.
HEADLINE: dict[Task, str] = {
    Task.regression: "corr",
    Task.classification: "accuracy",
    Task.multilabel: "f1",
}

#: The metric by which a round is chosen; less is better.
SELECTION: dict[Task, str] = {
    Task.regression: "mae",
    Task.classification: "log_loss",
    Task.multilabel: "log_loss",
}

#: The metric that a run's model is compared by, a mean over items; of classes more is better.
COMPARED: dict[Task, str] = {
    Task.regression: "mae",
    Task.classification: "accuracy",
    Task.multilabel: "log_loss",
}

#: Central shares of a predicted Gaussian, in per cent, in tables.
LEVELS = tuple(range(10, 100, 10))

#: Bins of equal width in which probabilities meet frequencies.
BINS = 10

#: Lists of numbers by name.
Table = dict[str, list[Any]]


class ConstantPredictions(UserWarning):
    """A correlation with a constant is not defined; 0 is reported."""


def is_sentiment(labels: Array) -> bool:
    """Whether labels of any shape are sentiment in [-3, 3].

    All finite ones are, the least is below -1 and the largest above 1: not so ratings from 1 to 5,
    percentages, numbers in [0, 1] or [-1, 1], and z-scores beyond 3.
    """
    finite = labels[np.isfinite(labels)]
    return bool(-3 <= finite.min(initial=0) < -1 and 1 < finite.max(initial=0) <= 3)


def compute_metrics(
    task: Task,
    truth: Array,
    predicted: Array,
    std: Array | None = None,
    *,
    sentiment: bool = False,
) -> dict[str, float]:
    """Compute every metric of a task; of several labels also those of label k, as ``f1_k``.

    Parameters
    ----------
    truth
        (N,) numbers or classes, or (N, K) of 0/1.
    predicted
        (N,) numbers, or (N, K) probabilities.
    std
        (N,) standard deviations of predicted numbers, at least 0; adds their coverage.
    sentiment
        Whether numbers are sentiment in [-3, 3]; adds `SENTIMENT_METRICS`.

    Raises `ValueError` if there are no items, a prediction is no number, or there is not one
    deviation for each.
    """
    if len(truth) == 0:
        raise ValueError("metrics of no items")
    predicted = predicted.astype(np.float64)
    if not np.isfinite(predicted).all():
        raise ValueError("a prediction is no number")
    if task is Task.regression:
        truth = truth.astype(np.float64)
    metrics = METRICS[task] | (SENTIMENT_METRICS if sentiment else {})
    scores = {name: float(metric(truth, predicted)) for name, metric in metrics.items()}
    if task is Task.multilabel:
        pairs = list(zip(truth.T > 0, predicted.T >= 0.5, strict=True))
        by_label = {n: [float(of(*pair)) for pair in pairs] for n, of in LABEL_METRICS.items()}
        scores = {name: float(np.mean(values)) for name, values in by_label.items()} | scores
        for name, values in by_label.items():
            scores |= {f"{name}_{k}": value for k, value in enumerate(values)}
    if task is Task.regression and std is not None:
        scores |= coverage_metrics(truth, predicted, std)
    return scores


def item_scores(task: Task, truth: Array, predicted: Array) -> Array:
    """Return (N,) what each item adds to the metric of `COMPARED`, which is their mean."""
    scores: Array
    match task:
        case Task.regression:
            scores = np.abs(truth - predicted.astype(np.float64))
        case Task.classification:
            scores = (predicted.argmax(axis=1) == truth).astype(np.float64)
        case Task.multilabel:
            rows = zip(truth, predicted.astype(np.float64), strict=True)
            scores = np.array([_log_loss_of_labels(*row) for row in rows])
    return scores


def mean_absolute_error(truth: Array, predicted: Array) -> float:
    """Mean of |error|."""
    return float(np.mean(np.abs(truth - predicted)))


def mean_squared_error(truth: Array, predicted: Array) -> float:
    """Mean of error^2."""
    return float(np.mean((truth - predicted) ** 2))


def root_mean_squared_error(truth: Array, predicted: Array) -> float:
    """Root of the mean of error^2."""
    return float(mean_squared_error(truth, predicted) ** 0.5)


def accuracy(truth: Array, predicted: Array) -> float:
    """Share of items that agree."""
    return float(np.mean(truth == predicted))


def weighted_f1(truth: Array, predicted: Array) -> float:
    """F1 of each class, 2 hits / (true + predicted), weighted by how often it is true."""
    classes, counts = np.unique(truth, return_counts=True)
    hits = np.array([np.count_nonzero((truth == c) & (predicted == c)) for c in classes])
    called = np.array([np.count_nonzero(predicted == c) for c in classes])
    return float((counts * 2 * hits / (counts + called)).sum() / len(truth))


def correlation(truth: Array, predicted: Array) -> float:
    """Pearson's correlation; 0, with a `ConstantPredictions` warning, where one is constant."""
    if _is_constant(truth) or _is_constant(predicted):
        warnings.warn("constant labels or predictions: corr=0", ConstantPredictions, stacklevel=2)
        return 0.0
    return float(np.corrcoef(truth, predicted)[0, 1])


def determination(truth: Array, predicted: Array) -> float:
    """Coefficient of determination: 1 - mean squared error / variance; 0 of constant labels."""
    if _is_constant(truth):
        return 0.0
    return float(1 - np.mean((truth - predicted) ** 2) / np.var(truth))


def concordance(truth: Array, predicted: Array) -> float:
    """Lin's concordance correlation coefficient (Biometrics 45, 1989); 0 where one is constant.

    ``2 cov(x, y) / (var(x) + var(y) + (mean(x) - mean(y))^2)``, moments over N.
    """
    if _is_constant(truth) or _is_constant(predicted):
        return 0.0
    (of_truth, shared), (_, of_predicted) = np.cov(truth, predicted, bias=True)
    shift = truth.mean() - predicted.mean()
    return float(2 * shared / (of_truth + of_predicted + shift**2))


def _is_constant(values: Array) -> bool:
    # Equal values need not have a standard deviation of exactly 0, but their range is.
    return bool(np.ptp(values) == 0)


def rounded_agreement(truth: Array, predicted: Array, limit: int) -> float:
    """Share of items that agree after clipping to [-limit, limit] and rounding half to even."""
    rounded = [np.rint(np.clip(values, -limit, limit)) for values in (truth, predicted)]
    return float(np.mean(rounded[0] == rounded[1]))


def coverage_metrics(truth: Array, predicted: Array, std: Array) -> dict[str, float]:
    """Share of items in the central intervals of N(predicted, std), ends included; all (N,)."""
    if std.shape != truth.shape:
        raise ValueError(f"standard deviations of shape {std.shape}, expected {truth.shape}")
    observed = coverage_table(truth, predicted, std)["observed"]
    return {f"coverage_{level}": observed[LEVELS.index(level)] for level in (50, 90)}


def coverage_table(truth: Array, predicted: Array, std: Array) -> Table:
    """Compare the nominal coverage of intervals with the observed; all arguments (N,).

    ``nominal`` shares; ``observed``, the shares of items inside those central intervals of
    N(predicted, std), ends included; ``width``, the mean widths of the intervals.
    """
    errors, std = np.abs(truth.astype(np.float64) - predicted), std.astype(np.float64)
    reach = [NormalDist().inv_cdf(0.5 + level / 200) for level in LEVELS]
    return {
        "nominal": [level / 100 for level in LEVELS],
        "observed": [float(np.mean(errors <= times * std)) for times in reach],
        "width": [float(np.mean(2 * times * std)) for times in reach],
    }


def calibration_error(probabilities: Array, outcomes: Array) -> float:
    """Return the expected calibration error: how far probabilities are from frequencies.

    ``sum_b n_b / n |frequency_b - mean probability_b|`` over `BINS` equal-width bins b, which hold
    their upper edge, and the first its lower edge too; of (N,) probabilities of an event and (N,)
    outcomes, 1 where it came about.
    """
    # k / BINS is the float that a probability written so is, so edges compare as written.
    bins = np.searchsorted(np.arange(1, BINS) / BINS, probabilities)
    return float(np.abs(np.bincount(bins, weights=outcomes - probabilities)).sum() / len(bins))


def weighted_accuracy(truth: Array, predicted: Array) -> float:
    """Mean recall of the sides that occur."""
    return float(np.mean([np.mean(predicted[truth == side] == side) for side in np.unique(truth)]))


def nonzero(metric: Metric) -> Metric:
    """Return a metric of negative against positive, of items whose label is not 0; 0 of none."""

    def of_nonzero(truth: Array, predicted: Array) -> float:
        kept = truth != 0
        return metric(truth[kept] > 0, predicted[kept] > 0) if kept.any() else 0.0

    return of_nonzero


def nonnegative(metric: Metric) -> Metric:
    """Return a metric of negative against non-negative, over all items."""
    return lambda truth, predicted: metric(truth >= 0, predicted >= 0)


def chosen(metric: Metric) -> Metric:
    """Return a metric of the most probable class, of equals the first."""
    return lambda truth, probabilities: metric(truth, probabilities.argmax(axis=1))


def _log_loss_of_classes(truth: Array, probabilities: Array) -> float:
    """Cross-entropy, the mean over items; rows of float32 need not add up to exactly 1."""
    rows = probabilities / probabilities.sum(axis=1, keepdims=True)
    return _surprise(rows[np.arange(len(truth)), truth])


def _log_loss_of_labels(truth: Array, probabilities: Array) -> float:
    """Binary cross-entropy, the mean over items and labels."""
    return _surprise(np.where(truth > 0, probabilities, 1 - probabilities))


def _surprise(probabilities: Array) -> float:
    """Return the mean of -log p, of probabilities of what came about, at least rounding."""
    return float(-np.mean(np.log(np.maximum(probabilities, np.finfo(np.float64).eps))))


def events(task: Task, truth: Array, probabilities: Array) -> tuple[Array, Array]:
    """Return probabilities of events and which came about: the chosen class, or each label."""
    if task is Task.multilabel:
        return probabilities.ravel(), truth.ravel() > 0
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == truth


#: The metrics of each task by name: from truth and prediction, as in `compute_metrics`, to a score.
#: Another one is one function with an entry here.
METRICS: dict[Task, dict[str, Metric]] = {
    Task.regression: {
        "mae": mean_absolute_error,
        "rmse": root_mean_squared_error,
        "r2": determination,
        "corr": correlation,
        "ccc": concordance,
    },
    Task.classification: {
        "accuracy": chosen(accuracy),
        "f1": chosen(weighted_f1),
        "log_loss": _log_loss_of_classes,
        "ece": lambda *pair: calibration_error(*events(Task.classification, *pair)),
    },
    Task.multilabel: {
        "log_loss": _log_loss_of_labels,
        "ece": lambda *pair: calibration_error(*events(Task.multilabel, *pair)),
    },
}

#: Further metrics of numbers that are sentiment in [-3, 3].
SENTIMENT_METRICS: dict[str, Metric] = {
    "mse": mean_squared_error,
    "acc2": nonnegative(accuracy),
    "acc2_nonzero": nonzero(accuracy),
    "f1": nonnegative(weighted_f1),
    "f1_nonzero": nonzero(weighted_f1),
    "acc5": partial(rounded_agreement, limit=2),
    "acc7": partial(rounded_agreement, limit=3),
}

#: Metrics of one label by itself, from (N,) bool truth and prediction; their means over the labels
#: are metrics of several labels. Plain accuracy is high for a label that is nearly always absent.
LABEL_METRICS: dict[str, Metric] = {"weighted_accuracy": weighted_accuracy, "f1": weighted_f1}
