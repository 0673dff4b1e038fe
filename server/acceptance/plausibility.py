"""Sums that no data can have: checks of what a client reports about its labels and predictions.

The sums are those of `common.model.calibration`. Each function returns what is wrong, or None.

Numbers: n, sum y, sum y^2, sum p, sum p^2, sum p y are the products of three vectors, (1 .. 1), y
and p, so their matrix

    [ n     sum y    sum p   ]
    [ sum y sum y^2  sum p y ]
    [ sum p sum p y  sum p^2 ]

is positive semi-definite: no count or sum of squares is negative and Cauchy-Schwarz holds, around
zero and around the means. That items of a group were counted as fewer changes nothing.

Classes and labels: the log-loss L(b) at inverse temperatures b is a sum of -log of probabilities,
so it is at least 0; it is convex in b, since logits are linear in b; and at b = 0 it is that of the
prior, which the server knows. `label_agreement` is a constant minus such a loss: it is concave, 0
at b = 0, and at most n (-log of the rarest of the client's own shares).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.calibration import INVERSE_TEMPERATURES, label_counts, own_shares
from common.task import Task

#: Of a sum, for rounding.
_TOLERANCE = 1e-6

#: A client trains on fewer items than this.
MAX_EXAMPLES = 1_000_000_000

#: Validation items for each train item, at most. They are split by whole groups of any size, so
#: that the share which the configuration asks for gives no more than the order of magnitude.
MAX_HELD_BACK = 10


def most_validated(examples: int, share: float) -> float:
    """Return how many items a client of so many train items can have held back to validate on.

    Parameters
    ----------
    examples
        Train items.
    share
        ``client.validation_fraction``.
    """
    if share == 0:
        return 0.0
    return MAX_HELD_BACK * examples * max(1.0, share / (1 - share))


def calibration_fault(sums: Tensor, task: Task, prior: Tensor, most: float) -> str | None:
    """Say why no predictions have this evidence.

    Parameters
    ----------
    sums
        From `common.model.calibration.calibration_sums`, or what claims to be.
    task, prior
        Kind of label, and the pooled prior that the client was sent.
    most
        Items that the client can have validated on.
    """
    count = sums[0].item()
    if not 0 <= count <= most:
        return f"evidence of {count:g} items, expected at most {most:g}"
    if count == 0:
        return None if (sums == 0).all() else f"evidence of no items: {sums.tolist()}"
    if task is Task.regression:
        return _gram_fault(sums)
    losses = sums[1:]
    if (losses < 0).any():
        return f"a log-loss of {losses.min().item():g}, that of probabilities above 1"
    if _bends(losses, convex=True):
        return f"log-losses {losses.tolist()}, which are not convex in the temperature"
    lowest, highest = (count * bound for bound in _prior_losses(prior, task))
    if not lowest - _slack(lowest) <= losses[0].item() <= highest + _slack(highest):
        return (
            f"a log-loss of the prior of {losses[0].item():g}, expected {lowest:g} to {highest:g}"
        )
    return None


def agreement_fault(
    agrees: Tensor, count: float, labels: Tensor, task: Task, prior: Tensor
) -> str | None:
    """Say why no predictions have this agreement.

    Parameters
    ----------
    agrees
        From `common.model.calibration.label_agreement`, or what claims to be.
    count
        Items that the evidence is of.
    labels
        The client's label sums, as it described itself.
    task, prior
        As for `calibration_fault`.
    """
    if task is Task.regression:
        return None
    pooled = prior.exp() if task is Task.classification else prior.sigmoid()
    own = own_shares(labels, pooled, task)
    _, worst = _prior_losses(own.log() if task is Task.classification else own.logit(), task)
    if abs(agrees[0].item()) > _slack(count * worst):
        return f"an agreement of {agrees[0].item():g} without a model, expected 0"
    if agrees.max().item() > count * worst + _slack(count * worst):
        return f"an agreement of {agrees.max().item():g}, expected at most {count * worst:g}"
    if _bends(agrees, convex=False):
        return f"agreements {agrees.tolist()}, which are not concave in the temperature"
    return None


def label_sums_fault(sums: Tensor, task: Task, examples: int) -> str | None:
    """Say why no labels of so many items have these sums (`calibration.label_sums`)."""
    if len(sums) == 0 or not sums.isfinite().all():
        return f"label sums {sums.tolist()}"
    counts = label_counts(sums, task)
    if (counts < 0).any():
        return f"a negative count of labels: {sums.tolist()}"
    total = counts.sum().item() if task is Task.classification else sums[0].item()
    if total != examples:
        return f"labels of {total:g} items, and has {examples} examples"
    if task is Task.multilabel and (counts > total).any():
        return f"a label more often than it has items: {sums.tolist()}"
    if task is not Task.regression or len(sums) < 3:
        return None
    if len(counts) and counts.sum().item() != total:
        return f"{counts.sum().item():g} labels in bins, and has {examples} examples"
    mean_square, squares = sums[1].item() ** 2 / total, sums[2].item()
    if squares < mean_square - _slack(mean_square):
        return f"squares of labels that sum to {squares:g}, expected at least {mean_square:g}"
    return None


def _slack(size: float) -> float:
    return _TOLERANCE * (1 + abs(size))


def _gram_fault(sums: Tensor) -> str | None:
    n, y, yy, p, pp, py = sums.tolist()
    if min(yy, pp) < 0:
        return f"a negative sum of squares: {sums.tolist()}"
    for square, products in ((n, (y, p)), (yy, (y, py)), (pp, (p, py))):
        if square == 0 and any(products):
            return f"sums of no deviations: {sums.tolist()}"
    # As correlations, so that the unit of the labels does not matter.
    scales = [math.sqrt(square) or 1.0 for square in (n, yy, pp)]
    r, s, t = y / scales[0] / scales[1], p / scales[0] / scales[2], py / scales[1] / scales[2]
    # The matrix of correlations, with d on its diagonal, is to have no negative principal minor.
    d = 1 + _TOLERANCE
    possible = all(abs(correlation) <= d for correlation in (r, s, t))
    if not possible or d**3 + 2 * r * s * t - d * (r**2 + s**2 + t**2) < 0:
        return f"sums that break Cauchy-Schwarz: {sums.tolist()}"
    return None


def _bends(values: Tensor, *, convex: bool) -> bool:
    """Whether values at the inverse temperatures bend the wrong way anywhere."""
    slopes = values.diff() / torch.tensor(INVERSE_TEMPERATURES, dtype=values.dtype).diff()
    bend = slopes.diff() if convex else -slopes.diff()
    return bool((bend < -_slack(values.abs().max().item()) * 10).any())


def _prior_losses(prior: Tensor, task: Task) -> tuple[float, float]:
    """Return the smallest and the largest log-loss of an item that is predicted by shares alone."""
    if task is Task.classification:
        return (-prior).min().item(), (-prior).max().item()
    present, absent = F.softplus(-prior), F.softplus(prior)
    return (
        torch.minimum(present, absent).sum().item(),
        torch.maximum(present, absent).sum().item(),
    )
