"""Sums that no data can have: checks of what a client reports about its labels and predictions.

The sums are those of `common.model.calibration`. Each function returns what is wrong, or None.

Numbers: n, sum y, sum y^2, sum p, sum p^2, sum p y are the products of three vectors, (1 .. 1), y
and p, so their matrix

    [ n     sum y    sum p   ]
    [ sum y sum y^2  sum p y ]
    [ sum p sum p y  sum p^2 ]

is positive semi-definite.

Classes and labels: the log-loss L(b) at inverse temperatures b is a sum of -log of probabilities,
so it is at least 0; it is convex in b, since logits are linear in b; and at b = 0 it is that of the
prior, which the server knows. `label_agreement` is a constant minus such a loss: it is concave, 0
at b = 0, and at most n (-log of the rarest of the client's own shares).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.calibration import INVERSE_TEMPERATURES, own_prior
from common.task import Task

#: Of a sum, for rounding.
_TOLERANCE = 1e-6

#: Numbers up to which a file may hold, see `common.data.labels`.
_LARGEST = float(np.finfo(np.float32).max)

#: Validation items for each train item, at most. They are split by whole groups of any size, so
#: that the share which the configuration asks for gives no more than the order of magnitude.
MAX_HELD_BACK = 10


def most_validated(examples: int, share: float) -> float:
    """Return the most items that a client of so many train items can have validated on.

    `share` is ``client.validation_fraction``.
    """
    return MAX_HELD_BACK * examples * max(1.0, share / (1 - share)) if share else 0.0


def calibration_fault(sums: Tensor, task: Task, prior: Tensor, most: float) -> str | None:
    """Say why no predictions on `most` items at most have these calibration sums.

    `prior` is the pooled one that the client was sent.
    """
    count, losses = sums[0].item(), sums[1:]
    if not 0 <= count <= most:
        return f"evidence of {count:g} items, expected at most {most:g}"
    if count == 0:
        return None if (sums == 0).all() else f"evidence of no items: {sums.tolist()}"
    if task is Task.regression:
        fault = f"sums that no numbers have, by Cauchy-Schwarz: {sums.tolist()}"
        return None if _are_products(sums) else fault
    if (losses < 0).any():
        return f"a log-loss of {losses.min().item():g}, that of probabilities above 1"
    if not _is_convex(losses):
        return f"log-losses {losses.tolist()}, which are not convex in the temperature"
    low, high = (count * bound for bound in _prior_losses(prior, task))
    if not low - _slack(low) <= losses[0].item() <= high + _slack(high):
        return f"a log-loss of the prior of {losses[0].item():g}, expected {low:g} to {high:g}"
    return None


def agreement_fault(
    agrees: Tensor, count: float, labels: Tensor, task: Task, prior: Tensor
) -> str | None:
    """Say why no predictions on `count` items have this label agreement.

    `labels` are the client's label sums as it described itself; `prior` as in `calibration_fault`.
    """
    if task is Task.regression:
        return None
    worst = count * _prior_losses(own_prior(labels, prior, task), task)[1]
    if abs(agrees[0].item()) > _slack(worst):
        return f"an agreement of {agrees[0].item():g} without a model, expected 0"
    if agrees.max().item() > worst + _slack(worst):
        return f"an agreement of {agrees.max().item():g}, expected at most {worst:g}"
    if not _is_convex(-agrees):
        return f"agreements {agrees.tolist()}, which are not concave in the temperature"
    return None


def label_sums_fault(sums: Tensor, task: Task, examples: int) -> str | None:
    """Say why no labels of so many items have these sums (`calibration.label_sums`)."""
    if len(sums) == 0 or not sums.isfinite().all():
        return f"label sums {sums.tolist()}"
    counts = sums[1:] if task is Task.multilabel else sums
    total = counts.sum().item() if task is Task.classification else sums[0].item()
    if total != examples:
        return f"labels of {total:g} items, and has {examples} examples"
    if task is Task.regression:
        return _moments_fault(sums)
    if (counts < 0).any():
        return f"a negative count of labels: {sums.tolist()}"
    if task is Task.multilabel and (counts > total).any():
        return f"a label more often than it has items: {sums.tolist()}"
    return None


def _moments_fault(sums: Tensor) -> str | None:
    if len(sums) != 3:
        return f"label sums {sums.tolist()}, expected three"
    count, mean, squares = sums.tolist()
    if abs(mean) > _LARGEST:
        return f"a mean label of {mean:g}, too large for a number"
    # No variance of numbers between two bounds is more than the square of half their distance.
    most = count * _LARGEST**2 if count > 1 else 0.0
    if not 0 <= squares <= most:
        return f"squared deviations of labels that sum to {squares:g}, expected 0 to {most:g}"
    return None


def _slack(size: float) -> float:
    return _TOLERANCE * (1 + abs(size))


def _are_products(sums: Tensor) -> bool:
    """Whether n, y, yy, p, pp, py are sums of products of three vectors."""
    n, y, yy, p, pp, py = sums.tolist()
    if min(yy, pp) < 0:
        return False
    # As correlations, so that the unit of the labels does not matter.
    i, j, k = (max(math.sqrt(square), 1e-150) for square in (n, yy, pp))
    r, s, t = y / i / j, p / i / k, py / j / k
    # Their matrix, with d on its diagonal, is to have no negative principal minor.
    d = 1 + _TOLERANCE
    is_bounded = max(abs(r), abs(s), abs(t)) <= d
    return is_bounded and bool(d**3 + 2 * r * s * t - d * (r**2 + s**2 + t**2) >= 0)


def _is_convex(losses: Tensor) -> bool:
    """Whether losses at the inverse temperatures are convex in these."""
    slopes = losses.diff() / torch.tensor(INVERSE_TEMPERATURES, dtype=losses.dtype).diff()
    return bool((slopes.diff() >= -10 * _slack(losses.abs().max().item())).all())


def _prior_losses(prior: Tensor, task: Task) -> tuple[float, float]:
    """Return the smallest and the largest log-loss of an item that is predicted by shares alone."""
    if task is Task.classification:
        return (-prior).min().item(), (-prior).max().item()
    sides = torch.stack([F.softplus(-prior), F.softplus(prior)])
    return sides.amin(dim=0).sum().item(), sides.amax(dim=0).sum().item()
