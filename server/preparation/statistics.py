"""Statistics of labels and sequences, for manifests and descriptions.

Notation: N items, K labels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import CHUNK, LabelArray, Sequences
from common.data.moments import FeatureMoments
from common.task import Task

#: Bars of a histogram of numbers.
BINS = 7


def label_bins(labels: LabelArray, task: Task, names: Sequence[str], outputs: int) -> list[str]:
    """Name the bars of a histogram of labels: ranges of numbers, classes, or labels.

    Parameters
    ----------
    labels
        (N,) or (N, K), of all items, so that parts can be compared.
    task, names, outputs
        Kind of label; names of several labels, where known; how many there are.
    """
    if task is Task.regression:
        edges = bin_edges(labels)
        return [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return [*(names or map(str, range(outputs)))]


def bin_edges(labels: LabelArray) -> NDArray[np.float64]:
    """Return BINS + 1 edges from the least to the greatest label."""
    low, high = float(labels.min(initial=np.inf)), float(labels.max(initial=-np.inf))
    if not low < high:
        low, high = (low - 0.5, low + 0.5) if np.isfinite(low) else (0.0, 1.0)
    return np.linspace(low, high, BINS + 1)


def label_histogram(
    labels: LabelArray, task: Task, outputs: int, edges: NDArray[np.float64] | None
) -> list[int]:
    """Count labels by the bars of `label_bins`; `edges` are needed for numbers."""
    counts: NDArray[Any]
    match task:
        case Task.regression:
            assert edges is not None
            counts, _ = np.histogram(labels, bins=edges)
        case Task.classification:
            counts = np.bincount(labels.astype(np.int64), minlength=outputs)
        case Task.multilabel:
            counts = (labels > 0).sum(axis=0)
    return [int(count) for count in counts]


def label_statistics(
    labels: LabelArray, task: Task, outputs: int, edges: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Return the histogram of labels and, of numbers, mean and standard deviation."""
    statistics: dict[str, Any] = {"histogram": label_histogram(labels, task, outputs, edges)}
    if task is Task.regression and len(labels):
        values = labels.astype(np.float64)
        statistics |= {"mean": round(float(values.mean()), 6), "sd": round(float(values.std()), 6)}
    return statistics


def sequence_statistics(sequences: Sequences) -> dict[str, Any]:
    """Return width, lengths, and what is missing, not finite or constant in a modality."""
    lengths = sequences.lengths[sequences.present]
    rows = sequences.rows()
    nan = infinite = 0
    moments = FeatureMoments.empty(*sequences.statistics_shape)
    for start in range(0, len(rows), CHUNK):
        values = sequences.values[rows[start : start + CHUNK]]
        nan += int(np.isnan(values).sum())
        infinite += int(np.isinf(values).sum())
        if not sequences.tabular:
            moments = moments.merge(FeatureMoments.of_rows(values))
    if sequences.tabular:
        moments = FeatureMoments.of(sequences)
    return {
        "width": sequences.width,
        "tabular": sequences.tabular,
        "dtype": str(sequences.values.dtype),
        "items": len(lengths),
        "missing": len(sequences) - len(lengths),
        "rows": len(rows),
        "lengths": {
            "min": int(lengths.min()) if len(lengths) else 0,
            "median": float(np.median(lengths)) if len(lengths) else 0.0,
            "max": int(lengths.max(initial=0)),
        },
        "nan": nan,
        "infinite": infinite,
        "constant": int(moments.constant.sum()),
    }
