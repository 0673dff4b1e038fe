"""Sums for a linear expert that no items can have; see `common.model.linear.LinearSums`.

Their scatter S is a sum of products, so it is positive semi-definite, and its part of the labels
follows from the client's label sums: for numbers their sum of squared deviations, for classes of
counts c diag(c) - c c^T / n, for several labels c (1 - c / n) on the diagonal.
"""

import torch
from torch import Tensor

from common.model.linear import LinearSums
from common.task import Task

#: Relative to the size of what is compared; of correlations, how negative an eigenvalue may be.
_TOLERANCE = 1e-6
_NEGATIVE = 1e-8
_ROUNDING = 1e-12

#: So that no square overflows.
_LARGEST = 1e100


def linear_sums_fault(sums: LinearSums, labels: Tensor, task: Task) -> str | None:
    """Say why no items with these label sums, which have been checked, have such sums."""
    width = 1 if task is Task.regression else len(_counts(labels, task))
    if len(sums.mean) != sums.features + width:
        found = len(sums.mean) - sums.features
        return f"sums for a linear expert of {found} labels, expected {width}"
    for array in (sums.mean, sums.scatter):
        if not (array.abs() < _LARGEST).all():
            return f"sums for a linear expert with {array.abs().max().item():g} among them"
    if not _is_product(sums.scatter):
        return "sums for a linear expert that no items have: they are not positive semi-definite"
    if not _agrees(sums, labels, task):
        return "sums for a linear expert that disagree with its label sums"
    return None


def _is_product(scatter: Tensor) -> bool:
    """Whether a scatter is positive semi-definite, as correlations, whatever the units."""
    squares = scatter.diagonal()
    varies = squares > 0
    if (squares < 0).any() or (scatter[~varies] != 0).any():
        return False
    sizes = squares[varies].sqrt()
    correlation = scatter[varies][:, varies] / sizes[:, None] / sizes
    correlation.diagonal().add_(_NEGATIVE)
    _, failed = torch.linalg.cholesky_ex(correlation)
    return not failed


def _agrees(sums: LinearSums, labels: Tensor, task: Task) -> bool:
    count, mean = sums.count, sums.mean[sums.features :]
    found = sums.of_labels
    if task is Task.regression:
        expected, squares = labels[1:2], labels[2:3]
        size = (squares / count).sqrt() + expected.abs()
        # Of equal numbers, what is left of their squares is rounding.
        rounding = _ROUNDING * count * expected**2
        return _close(mean, expected, size) and _close(found, squares[None], squares + rounding)
    counts = _counts(labels, task)
    expected = torch.diag(counts) - torch.outer(counts, counts) / count
    if task is Task.multilabel:
        found, expected = found.diagonal(), expected.diagonal()
    one = torch.tensor(count)
    return _close(count * mean, counts, one) and _close(found, expected, one)


def _counts(labels: Tensor, task: Task) -> Tensor:
    """Return (K,) how often each class or label occurs."""
    return labels[1:] if task is Task.multilabel else labels


def _close(found: Tensor, expected: Tensor, size: Tensor) -> bool:
    return bool(((found - expected).abs() <= _TOLERANCE * (1e-100 + size)).all())
