"""Metrics as the literature on CMU-MOSI and CMU-MOSEI reports them.

Regression, labels in [-3, 3]: mean squared and absolute error; Pearson correlation; two-class
accuracy and weighted F1 in both conventions, negative against non-negative over all items and
negative against positive without the zeros; five- and seven-class accuracy, which is agreement
after clipping to [-2, 2] and [-3, 3] and rounding half to even.

Calibration: `coverage_50` and `coverage_90`, the share of numbers inside the central 50 % and 90 %
of what was predicted, N(mean, std); `ece`, the expected calibration error of probabilities (Guo et
al., ICML 2017).

Notation: N items, K classes or labels.
"""

import warnings
from statistics import NormalDist
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
)

from common.task import Task

Array = NDArray[Any]

#: The metric that a run is judged by; more is better.
HEADLINE: dict[Task, str] = {
    Task.regression: "corr",
    Task.classification: "accuracy",
    Task.multilabel: "f1",
}

#: Central shares of a predicted Gaussian, in per cent, whose coverage is reported.
COVERAGES = (50, 90)

#: Bins of equal width in which probabilities meet frequencies.
BINS = 10


class ConstantPredictions(UserWarning):
    """A correlation with a constant is not defined; 0 is reported."""


def compute_metrics(
    task: Task, truth: Array, predicted: Array, std: Array | None = None
) -> dict[str, float]:
    """Compute every metric of a task.

    Parameters
    ----------
    task
        Kind of label.
    truth
        (N,) numbers or classes, or (N, K) of 0/1.
    predicted
        (N,) numbers, or (N, K) probabilities.
    std
        (N,) standard deviations of predicted numbers, at least 0; adds their coverage.

    Returns
    -------
    dict
        Metric to value, in a fixed order.

    Raises
    ------
    ValueError
        If there are no items, or not one deviation for each.
    """
    if len(truth) == 0:
        raise ValueError("metrics of no items")
    predicted = predicted.astype(np.float64)
    # Whether we call scikit-learn rightly need not be looked at anew in every round.
    with sklearn.config_context(skip_parameter_validation=True):
        match task:
            case Task.regression:
                truth = truth.astype(np.float64)
                spread = {} if std is None else coverage_metrics(truth, predicted, std)
                return regression_metrics(truth, predicted) | spread
            case Task.classification:
                return classification_metrics(truth, predicted)
            case Task.multilabel:
                return multilabel_metrics(truth, predicted)


def regression_metrics(truth: Array, predicted: Array) -> dict[str, float]:
    """Compute the metrics of sentiment; both arguments (N,)."""
    nonzero = truth != 0
    return {
        "mae": float(mean_absolute_error(truth, predicted)),
        "mse": float(mean_squared_error(truth, predicted)),
        "corr": correlation(truth, predicted),
        "acc2": float(accuracy_score(truth >= 0, predicted >= 0)),
        "acc2_nonzero": _accuracy(truth[nonzero] > 0, predicted[nonzero] > 0),
        "f1": _weighted_f1(truth >= 0, predicted >= 0),
        "f1_nonzero": _weighted_f1(truth[nonzero] > 0, predicted[nonzero] > 0),
        "acc5": rounded_agreement(truth, predicted, 2),
        "acc7": rounded_agreement(truth, predicted, 3),
    }


def correlation(truth: Array, predicted: Array) -> float:
    """Pearson's correlation; 0, with a `ConstantPredictions` warning, where one is constant."""
    # Equal values need not have a standard deviation of exactly 0, but their range is.
    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        warnings.warn("constant labels or predictions: corr=0", ConstantPredictions, stacklevel=2)
        return 0.0
    return float(np.corrcoef(truth, predicted)[0, 1])


def rounded_agreement(truth: Array, predicted: Array, limit: int) -> float:
    """Share of items that agree after clipping to [-limit, limit] and rounding half to even."""
    rounded = [np.rint(np.clip(values, -limit, limit)) for values in (truth, predicted)]
    return float(np.mean(rounded[0] == rounded[1]))


def coverage_metrics(truth: Array, predicted: Array, std: Array) -> dict[str, float]:
    """Share of items in the central intervals of N(predicted, std), ends included; all (N,)."""
    if std.shape != truth.shape:
        raise ValueError(f"standard deviations of shape {std.shape}, expected {truth.shape}")
    errors, std = np.abs(truth - predicted), std.astype(np.float64)
    reach = {level: NormalDist().inv_cdf(0.5 + level / 200) for level in COVERAGES}
    return {f"coverage_{level}": float(np.mean(errors <= reach[level] * std)) for level in reach}


def calibration_error(probabilities: Array, outcomes: Array) -> float:
    """Return the expected calibration error: how far probabilities are from frequencies.

    ``sum_b n_b / n |frequency_b - mean probability_b|`` over `BINS` equal-width bins b, which hold
    their upper edge, and the first its lower edge too.

    Parameters
    ----------
    probabilities
        (N,) of an event.
    outcomes
        (N,) 1 where it came about, else 0.
    """
    # k / BINS is the float that a probability written so is, so edges compare as written.
    bins = np.searchsorted(np.arange(1, BINS) / BINS, probabilities)
    return float(np.abs(np.bincount(bins, weights=outcomes - probabilities)).sum() / len(bins))


def classification_metrics(truth: Array, probabilities: Array) -> dict[str, float]:
    """Compute the metrics of classes: truth (N,) whole numbers, probabilities (N, K).

    Of equally probable classes the first is chosen. The calibration error is that of the chosen.
    """
    chosen = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(truth, chosen)),
        "f1": _weighted_f1(truth, chosen),
        "log_loss": float(
            log_loss(truth, _rows_sum_to_one(probabilities), labels=range(probabilities.shape[1]))
        ),
        "ece": calibration_error(probabilities.max(axis=1), chosen == truth),
    }


def multilabel_metrics(truth: Array, probabilities: Array) -> dict[str, float]:
    """Compute the metrics of several labels, as means over labels; both arguments (N, K).

    The weighted accuracy is the mean of the recalls of presence and absence: plain accuracy is high
    for a label that is nearly always absent. The calibration error is that of the probabilities of
    presence, all items and labels in the same bins.
    """
    present = probabilities >= 0.5
    columns = range(truth.shape[1])
    accuracies = [_weighted_accuracy(truth[:, k] > 0, present[:, k]) for k in columns]
    scores = {f"weighted_accuracy_{k}": accuracies[k] for k in columns}
    scores |= {f"f1_{k}": _weighted_f1(truth[:, k] > 0, present[:, k]) for k in columns}
    means = {
        "weighted_accuracy": float(np.mean(accuracies)),
        "f1": float(np.mean([scores[f"f1_{k}"] for k in columns])),
        "ece": calibration_error(probabilities.ravel(), truth.ravel() > 0),
    }
    return means | scores


def _weighted_accuracy(truth: Array, predicted: Array) -> float:
    """Mean recall of the sides that occur; scikit-learn warns where only one does."""
    return float(np.mean([np.mean(predicted[truth == side] == side) for side in np.unique(truth)]))


def _rows_sum_to_one(probabilities: Array) -> NDArray[np.float64]:
    # float32 softmax rows miss 1 by more than scikit-learn tolerates.
    rows: NDArray[np.float64] = probabilities / probabilities.sum(axis=1, keepdims=True)
    return rows


def _accuracy(truth: Array, predicted: Array) -> float:
    return float(accuracy_score(truth, predicted)) if len(truth) else 0.0


def _weighted_f1(truth: Array, predicted: Array) -> float:
    if len(truth) == 0:
        return 0.0
    return float(f1_score(truth, predicted, average="weighted", zero_division=0.0))
