"""Tables behind the metrics: confusion matrices, calibration, predictions; plain numbers for JSON.

Notation: N items, K classes or labels, C classes of a matrix, rows the truth.
"""

import numpy as np

from common.metrics import BINS, Array, Table, coverage_table, events
from common.task import Task

#: Items whose truth and prediction are kept, at most.
PAIRS = 300


def diagnostics(
    task: Task,
    truth: Array,
    predicted: Array,
    std: Array | None = None,
    *,
    sentiment: bool = False,
) -> dict[str, Table]:
    """Count confusions, and tabulate calibration; arguments as of `compute_metrics`.

    Returns ``confusion``, see `confusion`, absent for numbers that are not sentiment; and
    ``calibration``: of numbers see `coverage_table`, absent without deviations; of classes and
    labels see `reliability_table`, for the probabilities of the chosen class, or of the presence of
    each label, all items and labels in the same bins; and, of numbers, ``predictions``.

    Raises `ValueError` if there are no items, or a prediction is no number.
    """
    if len(truth) == 0:
        raise ValueError("diagnostics of no items")
    predicted = predicted.astype(np.float64)
    if not np.isfinite(predicted).all():
        raise ValueError("a prediction is no number")
    tables = {}
    if sentiment or task is not Task.regression:
        tables["confusion"] = confusion(task, truth, predicted)
    if task is not Task.regression:
        tables["calibration"] = reliability_table(*events(task, truth, predicted))
    elif std is not None:
        tables["calibration"] = coverage_table(truth, predicted, std)
    if task is Task.regression:
        tables["predictions"] = prediction_table(truth, predicted)
    return tables


def prediction_table(truth: Array, predicted: Array) -> Table:
    """Return ``truth`` and ``predicted`` of at most `PAIRS` items, evenly spaced, to 5 digits."""
    places = np.linspace(0, len(truth) - 1, min(len(truth), PAIRS)).round().astype(int)
    return {
        name: [float(f"{value:.5g}") for value in values[places].tolist()]
        for name, values in (("truth", truth), ("predicted", predicted))
    }


def confusion(task: Task, truth: Array, predicted: Array) -> Table:
    """Count true against predicted ``classes``, C names.

    ``counts`` are C lists, one for each true class, of C counts, one for each predicted. Numbers
    are sentiment, counted in the classes of Acc-7: clipped to [-3, 3] and rounded half to even. Of
    several labels ``counts`` holds such a 2 x 2 matrix for each, of absent and present, which it is
    from a probability of 0.5 on.
    """
    match task:
        case Task.regression:
            classes = list(range(-3, 4))
            rounded = [np.rint(np.clip(values, -3, 3)) for values in (truth, predicted)]
            counts = _pairs(rounded[0] + 3, rounded[1] + 3, 7)
        case Task.classification:
            classes = list(range(predicted.shape[1]))
            counts = _pairs(truth, predicted.argmax(axis=1), len(classes))
        case Task.multilabel:
            classes = [0, 1]
            pairs = zip(truth.T > 0, predicted.T >= 0.5, strict=True)
            counts = np.stack([_pairs(*pair, 2) for pair in pairs])
    return {"classes": classes, "counts": counts.tolist()}


def _pairs(truth: Array, predicted: Array, size: int) -> Array:
    """Count pairs (size, size) of class numbers."""
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (truth.astype(int), predicted.astype(int)), 1)
    return counts


def class_table(task: Task, truth: Array, predicted: Array) -> Table:
    """Return ``precision``, ``recall``, ``f1`` and true ``items`` of each class or label.

    0 where nothing was called that, or nothing is it.
    """
    # Imported here: a second, and 100 MB, that no training needs.
    from sklearn.metrics import precision_recall_fscore_support

    pair = truth, predicted.argmax(axis=1)
    if task is Task.multilabel:
        pair = truth > 0, predicted >= 0.5
    classes = list(range(predicted.shape[1]))
    found = precision_recall_fscore_support(*pair, labels=classes, average=None, zero_division=0.0)
    names = ("precision", "recall", "f1", "items")
    return {name: values.tolist() for name, values in zip(names, found, strict=True)}


def reliability_table(probabilities: Array, outcomes: Array) -> Table:
    """Compare probabilities with frequencies; arguments and bins as of `calibration_error`.

    ``upper`` edges of the bins; ``count`` of items; mean ``probability`` and ``frequency``, None
    where a bin is empty.
    """
    edges = np.arange(1, BINS + 1) / BINS
    bins = np.searchsorted(edges[:-1], probabilities)
    counts = np.bincount(bins, minlength=BINS)

    def means(values: Array) -> list[float | None]:
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    return {
        "upper": edges.tolist(),
        "count": counts.tolist(),
        "probability": means(probabilities),
        "frequency": means(outcomes),
    }
