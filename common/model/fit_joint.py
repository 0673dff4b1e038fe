"""Fitting the rule of `common.model.calibrated` to labelled items.

All is fitted to the server's validation items, whose modalities are paired; where it has few, what
clients report of their own counts too. Correlations are shrunk to none by `PAIRED_PRIOR` items, and
the qualities of modalities that tell something towards their mean, as far as chance may have made
them differ (`_alike`). Items of one group, a speaker or a video, are not independent: how much an
opinion on numbers tells is measured with a random effect of each group (`common.model.grouped`).

Notation: N items, M modalities, O outputs, J = 2^M subsets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.model.calibrated import Floats, Joint, Opinion, join_numbers, join_scores, rows, subsets
from common.model.calibration import INVERSE_TEMPERATURES, calibration_sums
from common.model.grouped import Slope, slope_in_groups
from common.task import Task

#: Shares of the linear expert that are tried, and what a share far from one half costs, in nats.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SHARE_COST = 4.0

#: Items of the server below which what clients report of a modality counts too.
FEW_ITEMS = 30

#: Weight, in items, of the belief that opinions err independently.
PAIRED_PRIOR = 30.0

#: Below this share of its mean square, a variance is rounding; and the least share of an opinion's
#: variance that is taken for noise.
_ROUNDING, _LEAST_UNEXPLAINED = 1e-12, 1e-6

#: The statistic of a slope up to which it is taken for chance.
_CHANCE = 4.0

#: Weight, in items, of the belief that errors are normal.
_NORMAL_PRIOR = 100.0

#: Of a normal distribution, deviations from the mean within which 90% lie; and the least factor on
#: a deviation.
_NINETY, _LEAST_SPREAD = 1.6448536269514722, 0.1

#: Overlaps of opinions on classes and labels that are tried.
OVERLAPS = np.linspace(-0.4, 2.0, 49)
_OVERLAP_DEVIATION = 0.5


@dataclass(frozen=True)
class Opinions:
    """What the experts say of N items that are labelled, with the prior of `Fusion`."""

    labels: Tensor  # (N,) or (N, K); numbers in units of the prior's deviation
    outputs: Mapping[str, Tensor]  # modality to (N, O)
    linear: Mapping[str, Tensor]  # (N, O), of the modalities that have a linear expert
    present: Mapping[str, Tensor]  # (N,) bool
    groups: Tensor  # (N,) numbers of the groups that items belong to: speakers, videos

    def __len__(self) -> int:
        return len(self.labels)


def fit_joint(
    task: Task, prior: Tensor, reported: Mapping[str, Tensor], items: Opinions | None
) -> Joint:
    """Fit all opinions.

    `prior` is (0, 1) for numbers, else see `common.model.calibration.prior_of`; `reported` are the
    clients' calibration sums by modality.
    """
    opinions = {
        name: _best_opinion(name, task, prior, sums, items) for name, sums in reported.items()
    }
    if task is Task.regression:
        opinions = _alike(opinions)
    joint = Joint(opinions, rows(np.eye(len(opinions)).tolist()))
    if items is None:
        return joint
    mixed = {
        name: opinion.of(items.outputs[name], items.linear.get(name))
        for name, opinion in opinions.items()
    }
    if task is Task.regression:
        joint = replace(joint, correlations=rows(_correlations(opinions, mixed, items).tolist()))
        return replace(joint, spreads=_spreads(joint, mixed, items))
    if len(opinions) < 2:
        return joint
    return replace(joint, overlap=_overlap(joint, task, prior, mixed, items))


def evidence_of(
    name: str,
    task: Task,
    prior: Tensor,
    reported: Tensor,
    items: Opinions | None,
    share: float = 0.0,
) -> Tensor:
    """Return the calibration sums of a modality's opinion with a share of the linear expert.

    They are those of the server's items and, of fewer than `FEW_ITEMS`, what clients reported too.
    """
    if items is None:
        return reported
    there = items.present[name]
    mixed = Opinion(share).of(items.outputs[name], items.linear.get(name))[there]
    sums = calibration_sums(mixed, items.labels[there], prior, task)
    return sums if sums[0] >= FEW_ITEMS else sums + reported


def _best_opinion(
    name: str, task: Task, prior: Tensor, reported: Tensor, items: Opinions | None
) -> Opinion:
    """Return the opinion, of those with each share, that has the least loss."""
    has_linear = items is not None and name in items.linear
    tried = []
    for share in SHARES if has_linear else (0.0,):
        sums = evidence_of(name, task, prior, reported, items, share)
        if task is Task.regression:
            loss, opinion = _fit_measurement(share, sums, _grouped(name, items, share))
        else:
            loss, opinion = _fit_temperature(share, sums)
        tried.append((loss + _SHARE_COST * (share - 0.5) ** 2, opinion))
    return min(tried, key=lambda pair: pair[0])[1]


def _grouped(name: str, items: Opinions | None, share: float) -> Slope | None:
    """Return the slope of an opinion on the label, if the items are enough, and in groups."""
    if items is None or (there := items.present[name]).sum() < FEW_ITEMS:
        return None
    x = Opinion(share).of(items.outputs[name], items.linear.get(name))[there, 0]
    return slope_in_groups(
        x.double().numpy(), items.labels[there].double().numpy(), items.groups[there].numpy()
    )


def _fit_measurement(share: float, sums: Tensor, grouped: Slope | None) -> tuple[float, Opinion]:
    """Fit x = a + c y + e to the sums of one opinion; return what is left of y in nats, too.

    The slope is that of items in groups, where it is known. With F the statistic of c = 0, c is
    shrunk by 1 - 4/F, to nothing within two standard errors: of several shares and many rounds the
    best are taken, and with them the luckiest.
    """
    n, y, yy, x, xx, xy = sums.tolist()
    if n < 3:
        return 0.0, Opinion(share)
    variance_y, variance_x = yy / n - (y / n) ** 2, xx / n - (x / n) ** 2
    covariance = xy / n - x * y / n**2
    nothing = Opinion(share, offset=x / n)
    if variance_y <= _ROUNDING * yy / n or variance_x <= _ROUNDING * xx / n or covariance <= 0:
        return 0.0, nothing
    explained = min(covariance**2 / (variance_y * variance_x), 1 - _LEAST_UNEXPLAINED)
    slope = grouped or Slope(covariance / variance_y, explained / (1 - explained) * (n - 2))
    if slope.value <= 0 or slope.statistic <= _CHANCE:
        return 0.0, nothing
    loading = slope.value * (1 - _CHANCE / slope.statistic)
    noise = variance_x - 2 * loading * covariance + loading**2 * variance_y
    noise = max(noise, _LEAST_UNEXPLAINED * variance_x) * n / (n - 2)
    opinion = Opinion(
        share,
        offset=(x - loading * y) / n,
        loading=loading,
        noise=noise**0.5,
        information=loading**2 / noise,
        count=n,
    )
    return 0.5 * n * float(np.log1p(-explained)), opinion


def _alike(opinions: Mapping[str, Opinion]) -> dict[str, Opinion]:
    """Shrink the correlations with the label of M opinions that have one towards each other.

    In Fisher's z, whose variance is v = 1/(n-3), towards their mean by
    1 - (M-1) v / sum (z - mean)^2 (James and Stein 1961).
    """
    telling = {name: own for name, own in opinions.items() if own.loading > 0 and own.count > 3}
    z = np.array([np.arcsinh(own.loading / own.noise) for own in telling.values()])
    spread = ((z - z.mean()) ** 2).sum() if len(z) > 1 else 0.0
    if spread <= 0:
        return dict(opinions)
    chance = (len(z) - 1) * float(np.mean([1 / (own.count - 3) for own in telling.values()]))
    shrunk = z.mean() + max(0.0, 1 - chance / spread) * (z - z.mean())
    moved = dict(opinions)
    for (name, own), quality in zip(telling.items(), shrunk.tolist(), strict=True):
        size = np.hypot(own.loading, own.noise)
        loading, noise = float(size * np.tanh(quality)), float(size / np.cosh(quality))
        information = (loading / noise) ** 2
        moved[name] = replace(own, loading=loading, noise=noise, information=information)
    return moved


def _fit_temperature(share: float, sums: Tensor) -> tuple[float, Opinion]:
    """Choose the temperature with the least log-loss; return the loss, too.

    The prior of log2 of the temperature is N(0, 2), see `common.model.fusion`.
    """
    n, losses = sums[0].item(), sums[1:]
    betas = torch.tensor(INVERSE_TEMPERATURES, dtype=losses.dtype).clamp(min=1 / 16)
    penalised = losses + betas.log2() ** 2 / 4
    best = int(penalised.argmin())
    gain = max((losses[0] - losses[best]).item(), 0.0) / max(n, 1.0)
    opinion = Opinion(share, loading=INVERSE_TEMPERATURES[best], information=2 * gain, count=n)
    return penalised[best].item(), opinion


def _correlations(
    opinions: Mapping[str, Opinion], mixed: Mapping[str, Tensor], items: Opinions
) -> Floats:
    """Return (M, M) the correlations of errors, of the items that have every modality, shrunk."""
    complete = torch.stack([items.present[name] for name in opinions]).all(dim=0)
    count, size = int(complete.sum()), len(opinions)
    if count < 3:
        return np.eye(size)
    labels = items.labels[complete].double().numpy()
    errors = np.stack(
        [
            mixed[name][complete][:, 0].double().numpy() - opinion.loading * labels
            for name, opinion in opinions.items()
        ]
    )
    errors -= errors.mean(axis=1, keepdims=True)
    deviations = np.sqrt((errors**2).sum(axis=1))
    products = errors @ errors.T
    scale = np.outer(deviations, deviations)
    found = np.divide(products, scale, np.zeros_like(products), where=scale > 0)
    found[np.diag_indices(size)] = 1.0
    weight = count / (count + PAIRED_PRIOR)
    shrunk: Floats = weight * found + (1 - weight) * np.eye(size)
    return shrunk


def _spreads(joint: Joint, mixed: Mapping[str, Tensor], items: Opinions) -> tuple[float, ...]:
    """Return (J,) what makes the 90% intervals of each subset hold 90% of the items that have it.

    Errors are not normal: labels are bounded, and some items are understood and others not. Of n
    items the factor counts n / (n + 100), on a log scale; of fewer than `FEW_ITEMS` it is 1.
    """
    factors = []
    for inside in subsets(len(mixed)):
        names = [name for name, held in zip(mixed, inside, strict=True) if held]
        there = torch.stack([items.present[name] for name in names]).all(dim=0) if names else None
        if there is None or (count := int(there.sum())) < FEW_ITEMS:
            factors.append(1.0)
            continue
        opinions = {name: mixed[name][there][:, 0].double() for name in names}
        mean, std = join_numbers(
            joint, opinions, {name: items.present[name][there] for name in names}
        )
        errors = ((items.labels[there] - mean) / std).abs().numpy()
        factor = max(float(np.quantile(errors, 0.9)) / _NINETY, _LEAST_SPREAD)
        factors.append(factor ** (count / (count + _NORMAL_PRIOR)))
    return tuple(factors)


def _overlap(
    joint: Joint, task: Task, prior: Tensor, mixed: Mapping[str, Tensor], items: Opinions
) -> float:
    """Return the overlap with the least log-loss on items of two modalities or more."""
    several = torch.stack([items.present[name] for name in mixed]).sum(dim=0) > 1
    if not several.any():
        return 0.0
    opinions = {name: scores[several].double() for name, scores in mixed.items()}
    present = {name: items.present[name][several] for name in mixed}
    losses = []
    for overlap in OVERLAPS.tolist():
        tried = Joint(joint.opinions, joint.correlations, overlap)
        scores = join_scores(tried, task, prior, opinions, present)
        loss = calibration_sums(scores, items.labels[several], prior, task)[1 + _AT_ONE].item()
        losses.append(loss + overlap**2 / (2 * _OVERLAP_DEVIATION**2))
    return float(OVERLAPS[int(np.argmin(losses))])


#: Where a temperature of 1 is among those that `calibration_sums` tries.
_AT_ONE = INVERSE_TEMPERATURES.index(1.0)
