"""Statistics of labels and sequences, for manifests and descriptions.

Notation: N items, K labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import LabelArray, Sequences
from common.data.moments import FeatureMoments
from common.task import Task

#: Bars of a histogram of numbers.
BINS = 7


@dataclass(frozen=True)
class LabelBins:
    """How labels are counted: by ranges of numbers, by class, or by label."""

    task: Task
    names: list[str]
    #: BINS + 1 edges, for numbers.
    edges: NDArray[np.float64]

    @classmethod
    def of(cls, labels: LabelArray, task: Task, names: Sequence[str], outputs: int) -> "LabelBins":
        """Choose bins for all labels, (N,) or (N, K), so that parts of them can be compared."""
        if task is Task.regression:
            low, high = (float(labels.min()), float(labels.max())) if len(labels) else (0.0, 1.0)
            spread = 0.5 if low == high else 0.0
            edges = np.linspace(low - spread, high + spread, BINS + 1)
            return cls(task, [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)], edges)
        return cls(task, [*(names or map(str, range(outputs)))], np.empty(0))

    def count(self, labels: LabelArray) -> list[int]:
        """Count some of the labels in each bin."""
        counts: NDArray[Any]
        match self.task:
            case Task.regression:
                counts, _ = np.histogram(labels, bins=self.edges)
            case Task.classification:
                counts = np.bincount(labels.astype(np.int64), minlength=len(self.names))
            case Task.multilabel:
                counts = (labels > 0).sum(axis=0)
        return [int(count) for count in counts]

    def statistics(self, labels: LabelArray) -> dict[str, Any]:
        """Return the histogram of some of the labels and, of numbers, mean and deviation."""
        statistics: dict[str, Any] = {"histogram": self.count(labels)}
        if self.task is Task.regression and len(labels):
            values = labels.astype(np.float64)
            statistics["mean"] = round(float(values.mean()), 6)
            statistics["sd"] = round(float(values.std()), 6)
        return statistics


def sequence_statistics(sequences: Sequences) -> dict[str, Any]:
    """Return width, lengths, and what is missing, not finite or constant in a modality."""
    lengths = sequences.lengths[sequences.present]
    rows = nan = infinite = 0
    moments = FeatureMoments.empty(*sequences.statistics_shape)
    for values in sequences.chunks():
        rows += len(values)
        if not np.isfinite(values).all():
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
        "rows": rows,
        "lengths": {
            "min": int(lengths.min()) if len(lengths) else 0,
            "median": float(np.median(lengths)) if len(lengths) else 0.0,
            "max": int(lengths.max(initial=0)),
        },
        "nan": nan,
        "infinite": infinite,
        "constant": int(moments.constant.sum()),
    }
