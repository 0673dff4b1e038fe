"""The linear expert of a modality: a closed-form model of the label, fitted to pooled sums.

Clients send the joint moments of v = (x, t) once. x are an item's pooled features: the mean of each
feature over the item's steps, or every step where the modality is tabular. t is its label: the
number, the class one-hot, or 0/1 for each label. Numbers are predicted by ridge regression, its
penalty chosen by generalised cross-validation (Golub, Heath and Wahba 1979). Classes, and each of
several labels, are predicted by linear discriminant analysis, its covariance shrunk by oracle
approximating shrinkage (Chen, Wiesel, Eldar and Hero 2010).

Notation: N items, B of them at a time, T steps, D feature width, F pooled features, K labels or
classes, O outputs, V = F + K, S the scatter, that is the sum of products of deviations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.batching import pad
from common.data.dataset import LabelArray, Sequences
from common.data.moments import Float64Array
from common.task import Task

#: The largest V: beyond, a modality has no linear expert. S has 4 MB then, as it travels.
MOST_FEATURES = 1024

#: Penalties that are tried, as multiples of the mean eigenvalue of the features' scatter.
_PENALTIES = torch.logspace(4, -4, 33, dtype=torch.float64)

#: Variance of a standardised feature, below which it is constant.
_CONSTANT = 1e-12

#: Items whose steps are in memory at a time.
_MEASURED_AT_ONCE = 64


class LinearMap(NamedTuple):
    """Standardised pooled features to outputs: x @ weight + bias."""

    weight: Tensor  # (F, O)
    bias: Tensor  # (O,)


@dataclass(frozen=True)
class LinearSums:
    """Joint moments of pooled features and labels, float64; they merge exactly."""

    count: float
    mean: Tensor  # (V,)
    scatter: Tensor  # (V, V)
    features: int  # F

    @classmethod
    def empty(cls, features: int, labels: int) -> "LinearSums":
        """Return the sums of no items."""
        return cls.of(*(torch.zeros(0, size, dtype=torch.float64) for size in (features, labels)))

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> "LinearSums":
        """Measure items of pooled features (N, F) and labels (N, K)."""
        joint = torch.cat([features, labels], dim=1).double()
        mean = joint.sum(dim=0) / max(len(joint), 1)
        deviations = joint - mean
        scatter = deviations.T @ deviations
        # Symmetric to the bit, since half of it travels.
        return cls(float(len(joint)), mean, (scatter + scatter.T) / 2, features.shape[1])

    def merge(self, other: "LinearSums") -> "LinearSums":
        """Return the sums of both (Chan, Golub and LeVeque 1979); `ValueError` if shapes differ."""
        if (self.features, len(self.mean)) != (other.features, len(other.mean)):
            raise ValueError(f"sums of {len(self.mean)} and {len(other.mean)} features and labels")
        count = self.count + other.count
        share = other.count / count if count else 0.0
        delta = other.mean - self.mean
        between = self.count * share * torch.outer(delta, delta)
        mean, scatter = self.mean + share * delta, self.scatter + other.scatter + between
        return LinearSums(count, mean, scatter, self.features)

    def padded(self, labels: int) -> "LinearSums":
        """Return the sums for at least K classes, of which none of the new ones occurred."""
        more = max(labels - (len(self.mean) - self.features), 0)
        scatter = F.pad(self.scatter, (0, more, 0, more))
        return LinearSums(self.count, F.pad(self.mean, (0, more)), scatter, self.features)

    def standardised(self, mean: Tensor, scale: Tensor) -> "LinearSums":
        """Return the sums of the features (x - mean) * scale, each of F."""
        factor = self.mean.new_ones(len(self.mean))
        factor[: self.features] = scale
        centred = self.mean.clone()
        centred[: self.features] -= mean
        return self.scaled(centred * factor, factor)

    def scaled(self, mean: Tensor, factor: Tensor) -> "LinearSums":
        """Return sums with another mean, and with deviations times a factor (V,)."""
        scatter = self.scatter * factor[:, None] * factor
        return LinearSums(self.count, mean, scatter, self.features)

    @property
    def of_features(self) -> Tensor:
        """(F, F) scatter of the features."""
        return self.scatter[: self.features, : self.features]

    @property
    def crossed(self) -> Tensor:
        """(F, K) scatter of features and labels."""
        return self.scatter[: self.features, self.features :]

    @property
    def of_labels(self) -> Tensor:
        """(K, K) scatter of the labels."""
        return self.scatter[self.features :, self.features :]


# From items to sums -------------------------------------------------------------------------------


def has_linear(statistics: Sequence[int], outputs: int) -> bool:
    """Whether a modality with features of that shape, (D,) or (steps, D), is narrow enough."""
    return math.prod(statistics) + outputs <= MOST_FEATURES


def measure_linear(
    sequences: Sequences, labels: LabelArray, task: Task, outputs: int, means: Float64Array
) -> LinearSums:
    """Measure the items that have a modality.

    `outputs` are those of the labels, and `means`, (D,) or (steps, D), stand for values that are
    not finite.
    """
    fill = torch.from_numpy(means).float()
    steps = len(means) if sequences.tabular else None
    values = torch.from_numpy(np.ascontiguousarray(sequences.values))
    starts, lengths = torch.from_numpy(sequences.starts), torch.from_numpy(sequences.lengths)
    columns = label_columns(torch.from_numpy(labels), task, outputs)
    total = LinearSums.empty(math.prod(means.shape), columns.shape[1])
    present = lengths.nonzero()[:, 0]
    for first in range(0, len(present), _MEASURED_AT_ONCE):
        items = present[first : first + _MEASURED_AT_ONCE]
        padded = pad(values, starts[items], lengths[items])
        finite = torch.where(padded.values.isfinite(), padded.values, fill)
        pooled = pool_steps(finite.double(), padded.lengths, steps)
        total = total.merge(LinearSums.of(pooled, columns[items]))
    return total


def label_columns(labels: Tensor, task: Task, outputs: int) -> Tensor:
    """Return labels (N,) or (N, K) as columns, float64: (N, 1) numbers, else (N, K) of 0 and 1."""
    match task:
        case Task.regression:
            return labels[:, None].double()
        case Task.classification:
            return F.one_hot(labels.long(), outputs).double()
        case Task.multilabel:
            return labels.double()


def pool_steps(features: Tensor, lengths: Tensor, steps: int | None) -> Tensor:
    """Return (B, F) pooled features of right-padded ones (B, T, D), which are 0 after the last.

    Their mean over the steps, or, if the modality is tabular with so many steps, each of them.
    """
    if steps is None:
        return features.sum(dim=1) / lengths.clamp(min=1)[:, None]
    return F.pad(features, (0, 0, 0, steps - features.shape[1])).flatten(1)


# The path in the model ----------------------------------------------------------------------------


class LinearExpert(nn.Module):
    """A fitted map as a part of an encoder, of buffers: never trained, never merged."""

    weight: Tensor
    bias: Tensor

    def __init__(self, statistics: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.steps = statistics[0] if len(statistics) > 1 else None
        self.register_buffer("weight", torch.zeros(math.prod(statistics), outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Map standardised features (B, T, D), 0 after the last step, to outputs (B, O)."""
        return pool_steps(features, lengths, self.steps) @ self.weight + self.bias

    def set(self, fitted: LinearMap) -> None:
        """Take over a map."""
        self.weight.copy_(fitted.weight)
        self.bias.copy_(fitted.bias)


def fuse_linear(
    outputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor], weights: Mapping[str, float]
) -> Tensor:
    """Return the weighted mean, (B, O), of linear outputs (B, O) of the modalities present.

    By modality; lengths (B,) are 0 where an item lacks it.
    """
    shares = torch.stack([weights[name] * (lengths[name] > 0) for name in outputs])
    shares = shares / shares.sum(dim=0).clamp(min=1e-12)
    # where, not a product: the outputs of an absent modality may be anything, even NaN.
    parts = [
        torch.where(share[:, None] > 0, share[:, None] * output, 0.0)
        for share, output in zip(shares, outputs.values(), strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


# From sums to the map -----------------------------------------------------------------------------


def fit_linear(sums: LinearSums, task: Task, prior: Tensor) -> LinearMap:
    """Fit the expert to sums of standardised features, (F, O) and (O,) in float64.

    `prior` is that of `common.model.calibration.prior_of`. Numbers are in its deviations from its
    mean; classes and labels are log-posteriors, classes up to a constant. Features that are
    constant, classes that are absent and labels that do not vary have weight 0.
    """
    varies = sums.of_features.diagonal() > _CONSTANT * sums.count
    kept = torch.cat([varies, varies.new_ones(len(sums.mean) - sums.features)])
    narrow = LinearSums(sums.count, sums.mean[kept], sums.scatter[kept][:, kept], int(varies.sum()))
    if task is Task.regression:
        fitted = _ridge(narrow, prior)
    elif task is Task.classification:
        fitted = _discriminant_of_classes(narrow, prior)
    else:
        fitted = _discriminants_of_labels(narrow, prior)
    weight = fitted.weight.new_zeros(sums.features, len(fitted.bias))
    weight[varies] = fitted.weight
    return LinearMap(weight, fitted.bias)


def _ridge(sums: LinearSums, prior: Tensor) -> LinearMap:
    """Minimise n RSS / (n - df)^2 over the penalties; of equals, the largest."""
    mean, deviation = prior[0], prior[1].sqrt()
    values, vectors = _eigen(sums.of_features)
    crossed = vectors.T @ sums.crossed[:, 0]
    penalties = _PENALTIES * values.mean() if len(values) else _PENALTIES
    # (penalties, F), in the eigenvectors.
    coefficients = crossed / (values + penalties[:, None])
    explained = 2 * (coefficients * crossed).sum(dim=1) - (coefficients**2 * values).sum(dim=1)
    residual = (sums.of_labels[0, 0] - explained).clamp(min=0)
    free = sums.count - 1 - (values / (values + penalties[:, None])).sum(dim=1)
    scores = torch.where(free > 0, sums.count * residual / free**2, math.inf).tolist()
    best = min(range(len(scores)), key=scores.__getitem__)
    weight = (vectors @ coefficients[best])[:, None]
    bias = sums.mean[sums.features :] - sums.mean[: sums.features] @ weight
    return LinearMap(weight / deviation, (bias - mean) / deviation)


def _discriminant_of_classes(sums: LinearSums, prior: Tensor) -> LinearMap:
    """Return log-posteriors; the centre of all items is where no class has an advantage."""
    counts = sums.count * sums.mean[sums.features :]
    present = counts > _CONSTANT * sums.count
    # (F, K), from the mean of all items to that of each class.
    deltas = torch.where(present, sums.crossed / counts.clamp(min=1e-12), 0.0)
    within = sums.of_features - (deltas * counts) @ deltas.T
    weight = _solve_shrunk(within, sums.count, deltas)
    return LinearMap(weight, _log_posterior_at_zero(sums, prior, weight, deltas))


def _discriminants_of_labels(sums: LinearSums, prior: Tensor) -> LinearMap:
    """Return logits of each label, present against absent, each with a covariance of its own."""
    weights, biases = [], []
    for label, share in enumerate(sums.mean[sums.features :].clamp(0, 1).tolist()):
        crossed = sums.crossed[:, label : label + 1]
        counts = sums.count * share, sums.count * (1 - share)
        if min(counts) <= _CONSTANT * sums.count:
            crossed, counts = torch.zeros_like(crossed), (1.0, 1.0)
        # From the mean of all items to those with the label, and to those without.
        sides = crossed / counts[0], -crossed / counts[1]
        delta = sides[0] - sides[1]
        within = sums.of_features - crossed @ delta.T
        weight = _solve_shrunk(within, sums.count, delta)
        # Half the difference of the squared distances from the centre.
        offset = ((sides[0] + sides[1]) * weight).sum() / 2
        weights.append(weight)
        biases.append(prior[label] - offset - sums.mean[: sums.features] @ weight[:, 0])
    return LinearMap(torch.cat(weights, dim=1), torch.stack(biases))


def _log_posterior_at_zero(
    sums: LinearSums, prior: Tensor, weight: Tensor, deltas: Tensor
) -> Tensor:
    """Return (K,): log prior - d' P d / 2 - m' P d, of class means m + d and precision P."""
    return prior - (deltas * weight).sum(dim=0) / 2 - sums.mean[: sums.features] @ weight


def _eigen(scatter: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, at least 0, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(scatter)
    return values.clamp(min=0), vectors


def _solve_shrunk(scatter: Tensor, count: float, right: Tensor) -> Tensor:
    """Solve with the shrunk covariance of `count` items; 0 where nothing varies."""
    values, vectors = _eigen(scatter / max(count, 1))
    level = values.mean().item() if len(values) else 0.0
    if level <= _CONSTANT:
        return torch.zeros_like(right)
    share = oas_shrinkage(values, count)
    shrunk = (1 - share) * values + share * level
    return vectors @ (vectors.T @ right / shrunk[:, None])


def oas_shrinkage(eigenvalues: Tensor, count: float) -> float:
    """Return the share of the mean eigenvalue in the shrunk covariance of `count` items.

    Equation 23 of Chen et al. 2010, as scikit-learn's `OAS` has it: with a the mean of the squares
    of the F x F entries and m the mean eigenvalue, (a + m^2) / ((n + 1) (a - m^2 / F)), at most 1.
    """
    size = len(eigenvalues)
    squares, level = (eigenvalues**2).sum().item() / size**2, eigenvalues.mean().item() ** 2
    spread = (count + 1) * (squares - level / size)
    return min((squares + level) / spread, 1.0) if spread > 0 else 1.0


def calibrated(fitted: LinearMap, factor: float, prior: Tensor, task: Task) -> LinearMap:
    """Scale a fitted map towards the prior, of which 0 leaves nothing else."""
    if task is Task.regression:
        return LinearMap(factor * fitted.weight, factor * fitted.bias)
    return LinearMap(factor * fitted.weight, prior + factor * (fitted.bias - prior))
