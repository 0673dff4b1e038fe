"""Confusion matrices and calibration tables of predictions, as plain numbers for JSON.

Notation: N items, K classes or labels, C classes of a matrix, rows the truth.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from common.metrics import BINS, Array
from common.task import Task

#: Numbers are counted in the classes -3 to 3, those of Acc-7.
_LIMIT = 3

#: Central shares of a predicted Gaussian, in per cent.
LEVELS = tuple(range(10, 100, 10))

#: Lists of numbers by name.
Table = dict[str, list[Any]]


def diagnostics(
    task: Task, truth: Array, predicted: Array, std: Array | None = None
) -> dict[str, Table]:
    """Count confusions, and tabulate calibration; arguments as of `common.metrics.compute_metrics`.

    Returns
    -------
    dict
        ``confusion``, see `confusion`; and ``calibration``: of numbers see `coverage_table`, absent
        without deviations; of classes and labels see `reliability_table`, for the probabilities of
        the chosen class, or of the presence of each label, all items and labels in the same bins.

    Raises
    ------
    ValueError
        If there are no items, or a prediction is no number.
    """
    if len(truth) == 0:
        raise ValueError("diagnostics of no items")
    predicted = predicted.astype(np.float64)
    if not np.isfinite(predicted).all():
        raise ValueError("a prediction is no number")
    tables = {"confusion": confusion(task, truth, predicted)}
    if task is Task.classification:
        right = predicted.argmax(axis=1) == truth
        tables["calibration"] = reliability_table(predicted.max(axis=1), right)
    elif task is Task.multilabel:
        tables["calibration"] = reliability_table(predicted.ravel(), truth.ravel() > 0)
    elif std is not None:
        tables["calibration"] = coverage_table(truth, predicted, std)
    return tables


def confusion(task: Task, truth: Array, predicted: Array) -> Table:
    """Count true against predicted classes; arguments as for `diagnostics`.

    Returns
    -------
    dict
        ``classes``, C names; and ``counts``, C lists, one for each true class, of C counts, one for
        each predicted. Numbers are clipped to [-3, 3] and rounded half to even first. Of several
        labels ``counts`` holds such a 2 x 2 matrix for each, of absent and present, which it is
        from a probability of 0.5 on.
    """
    match task:
        case Task.regression:
            classes = list(range(-_LIMIT, _LIMIT + 1))
            rounded = [np.rint(np.clip(each, -_LIMIT, _LIMIT)) for each in (truth, predicted)]
            counts = confusion_matrix(*rounded, labels=classes)
        case Task.classification:
            classes = list(range(predicted.shape[1]))
            counts = confusion_matrix(truth, predicted.argmax(axis=1), labels=classes)
        case Task.multilabel:
            classes = [0, 1]
            pairs = zip(truth.T > 0, predicted.T >= 0.5, strict=True)
            counts = np.stack([confusion_matrix(*pair, labels=classes) for pair in pairs])
    return {"classes": classes, "counts": counts.tolist()}


def coverage_table(truth: Array, predicted: Array, std: Array) -> Table:
    """Compare the nominal coverage of intervals with the observed; all arguments (N,).

    Returns
    -------
    dict
        ``nominal`` shares; ``observed``, the shares of items inside those central intervals of
        N(predicted, std), ends included; ``width``, the mean widths of the intervals.
    """
    errors, std = np.abs(truth.astype(np.float64) - predicted), std.astype(np.float64)
    reach = [NormalDist().inv_cdf(0.5 + level / 200) for level in LEVELS]
    return {
        "nominal": [level / 100 for level in LEVELS],
        "observed": [float(np.mean(errors <= each * std)) for each in reach],
        "width": [float(np.mean(2 * each * std)) for each in reach],
    }


def reliability_table(probabilities: Array, outcomes: Array) -> Table:
    """Compare probabilities with frequencies; arguments and bins as of `calibration_error`.

    Returns
    -------
    dict
        ``upper`` edges of the bins; ``count`` of items; mean ``probability`` and ``frequency``,
        None where a bin is empty.
    """
    edges = np.arange(1, BINS + 1) / BINS
    bins = np.searchsorted(edges[:-1], probabilities)
    counts = np.bincount(bins, minlength=BINS)

    def means(values: Array) -> list[float | None]:
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return [
            float(total / count) if count else None
            for total, count in zip(sums, counts, strict=True)
        ]

    return {
        "upper": edges.tolist(),
        "count": counts.tolist(),
        "probability": means(probabilities),
        "frequency": means(outcomes),
    }
