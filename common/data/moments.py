"""Mean and variance of each feature, mergeable across clients.

Chan, Golub and LeVeque's pairwise update: a client's contribution is (count, mean, sum of squared
deviations), and two contributions merge exactly, without the cancellation that plain sums of
squares suffer. NaN and infinities are ignored.

Notation: F the shape of what has statistics, (D,) for a feature width D, or (steps, D) for a
tabular modality.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import FloatArray, Sequences

Float64Array = NDArray[np.float64]

# A feature whose standard deviation is below this share of its size is constant in float32.
CONSTANT = 1e-6


@dataclass(frozen=True)
class FeatureMoments:
    """Of each feature, of shape F: the number of finite values, their mean, and Σ (x - mean)²."""

    count: Float64Array
    mean: Float64Array
    squares: Float64Array

    @classmethod
    def empty(cls, *shape: int) -> "FeatureMoments":
        """Return the moments of nothing, of shape F."""
        return cls(*np.zeros((3, *shape)))

    @classmethod
    def of(cls, sequences: Sequences) -> "FeatureMoments":
        """Measure every row that belongs to an item once."""
        rows = sequences.rows()
        if sequences.tabular:
            rows = rows.reshape(-1, sequences.statistics_shape[0])
        return cls.of_rows(sequences.values[rows])

    @classmethod
    def of_rows(cls, rows: FloatArray) -> "FeatureMoments":
        """Measure rows, (R, *F)."""
        values = rows.astype(np.float64)
        count = np.full(rows.shape[1:], len(rows), dtype=np.float64)[()]
        finite = np.isfinite(values)
        known = bool(finite.all())
        if not known:
            values[~finite] = 0.0
            count = finite.sum(axis=0).astype(np.float64)
        mean = values.sum(axis=0) / np.maximum(count, 1)
        values -= mean
        if not known:
            values[~finite] = 0.0
        return cls(count, mean, np.square(values, out=values).sum(axis=0))

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """Return the moments of both together; `ValueError` if their shapes differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of shapes {self.mean.shape} and {other.mean.shape}")
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return FeatureMoments(
            count,
            self.mean + delta * share,
            self.squares + other.squares + delta**2 * self.count * share,
        )

    @property
    def std(self) -> Float64Array:
        """F, standard deviation of the population."""
        deviation: Float64Array = np.sqrt(self.squares / np.maximum(self.count, 1))
        return deviation

    @property
    def constant(self) -> NDArray[np.bool_]:
        """F, whether a feature is constant or never finite."""
        flat: NDArray[np.bool_] = self.std <= CONSTANT * np.maximum(np.abs(self.mean), CONSTANT)
        return flat
