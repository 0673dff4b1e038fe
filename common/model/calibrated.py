"""The rule ``calibrated``: each modality's opinion, and how much opinions share.

A modality has two experts, the network's whole output p and the linear expert q of
`common.model.linear`. Its opinion mixes them, x = (1-d) p + d q, with the share d that explains the
labels best.

Numbers, in units of the prior's deviation: an opinion is taken for a measurement of the label,

    x_m = a_m + c_m y + e_m,   y ~ N(0, 1),   Cov(e) = E

so that for any subset S of the modalities, with c and E of these alone,

    precision = 1 + c' E^-1 c,   mean = c' E^-1 (x - a) / precision

and the deviation is f_S / sqrt(precision), where f_S makes 90% intervals hold 90% of the labels. If
E is diagonal, the mean is that of the product of experts. Errors that go together count once, and
errors that make up for each other, as where each modality holds a part of the label, count for
more.

Classes and labels: opinions hold the prior each, and are pooled in log space,

    log p = log pi + s_S sum_m b_m (x_m - log pi),   s_S = 1 / (1 + r (k_S - 1))

with a temperature 1/b_m for each modality, one overlap r for all, and k_S the number of opinions of
equal information that S amounts to, (sum i)^2 / sum i^2. It is the same in the case of equally good
opinions whose errors have the correlation r.

How it is fitted: `common.model.fit_joint`. Sources: factor analysis (Thomson's and Bartlett's
scores); Genest and Zidek 1986 for logarithmic pools.

Notation: N items, M modalities, O outputs, J = 2^M subsets; bit m of a subset's number stands for
modality m.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.model.calibration import temper
from common.task import Task

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Opinion:
    """One modality's, fitted."""

    share: float = 0.0  # d, of the linear expert
    offset: float = 0.0  # a, of numbers
    loading: float = 0.0  # c, of numbers, at least 0; b, the inverse temperature, otherwise
    noise: float = 1.0  # the deviation of e, of numbers, above 0
    information: float = 0.0  # about the label, at least 0; see `common.model.fusion.Expert`
    count: float = 0.0  # items that it was fitted to

    def of(self, output: Tensor, linear: Tensor | None) -> Tensor:
        """Mix outputs (N, O)."""
        if linear is None or not self.share:
            return output
        return (1 - self.share) * output + self.share * linear


@dataclass(frozen=True)
class Joint:
    """All modalities' opinions, and how they go together."""

    opinions: Mapping[str, Opinion] = field(default_factory=dict)
    correlations: tuple[tuple[float, ...], ...] = ()  # (M, M) of errors, of numbers
    overlap: float = 0.0  # r, of classes and labels
    spreads: tuple[float, ...] = ()  # (J,) factors on deviations, of numbers; none: 1

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Joint":
        """Rebuild from plain values."""
        opinions = {name: Opinion(**opinion) for name, opinion in plain["opinions"].items()}
        spreads = tuple(plain.get("spreads", ()))
        return cls(opinions, rows(plain["correlations"]), plain["overlap"], spreads)

    def column(self, field: str) -> Floats:
        """Return (M,) one figure of every opinion."""
        return np.array([getattr(opinion, field) for opinion in self.opinions.values()])

    @cached_property
    def gaussian_table(self) -> tuple[Floats, Floats, Floats]:
        """Of numbers, (J, M) weights of opinions, and (J,) constants and deviations."""
        loading, noise = self.column("loading"), self.column("noise")
        errors = np.asarray(self.correlations) * np.outer(noise, noise)
        count = len(loading)
        inside = subsets(count)
        # Outside of a subset: errors of their own, and nothing known of the label.
        within = inside[:, :, None] & inside[:, None, :]
        masked = np.where(within, errors, np.eye(count))
        known = np.where(inside, loading, 0.0)
        gains = np.linalg.solve(masked, known[:, :, None])[:, :, 0]
        precision = 1 + (gains * known).sum(axis=1)
        weights = gains / precision[:, None]
        deviations = precision**-0.5 * (np.array(self.spreads) if self.spreads else 1.0)
        return weights, -(weights @ self.column("offset")), deviations

    @cached_property
    def strengths(self) -> Floats:
        """Of classes and labels, (J,) the factors s on what opinions add to the prior."""
        held = np.where(subsets(len(self.opinions)), self.column("information"), 0.0)
        squares = (held**2).sum(axis=1)
        amount = np.divide(held.sum(axis=1) ** 2, squares, np.ones(len(held)), where=squares > 0)
        strength: Floats = 1 / (1 + self.overlap * (amount - 1))
        return strength

    def weights(self, task: Task) -> dict[str, float]:
        """Return each modality's share in the information of all together; they sum to 1."""
        if task is Task.regression:
            shares = np.maximum(self.gaussian_table[0][-1] * self.column("loading"), 0.0)
        else:
            shares = self.column("information")
        total, count = shares.sum(), len(shares)
        shares = shares / total if total > 0 else np.full(count, 1 / count)
        return dict(zip(self.opinions, shares.tolist(), strict=True))


def rows(matrix: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain values."""
    return tuple(tuple(row) for row in matrix)


def subsets(count: int) -> NDArray[np.bool_]:
    """Return (J, M) which modalities each subset has."""
    numbers: NDArray[np.int64] = np.arange(1 << count)
    inside: NDArray[np.bool_] = (numbers[:, None] >> np.arange(count)) & 1 == 1
    return inside


def subset_numbers(modalities: Iterable[str], present: Mapping[str, Tensor]) -> Tensor:
    """Return (B,) the number of the subset that each item has, of presence (B,) by modality."""
    bits = [present[name].long() << bit for bit, name in enumerate(modalities) if name in present]
    return torch.stack(bits).sum(dim=0)


def join_numbers(
    joint: Joint, opinions: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return means and deviations (B,) of opinions (B,), in units of the prior's deviation."""
    weights, constants, deviations = (
        torch.from_numpy(table).to(next(iter(opinions.values()))) for table in joint.gaussian_table
    )
    numbers = subset_numbers(joint.opinions, present)
    mean = constants[numbers]
    for bit, name in enumerate(joint.opinions):
        if name in opinions:
            # where, not a product: the opinion of an absent modality may be anything, even NaN.
            mean = mean + torch.where(present[name], weights[numbers, bit] * opinions[name], 0.0)
    return mean, deviations[numbers]


def join_scores(
    joint: Joint,
    task: Task,
    prior: Tensor,
    opinions: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
) -> Tensor:
    """Return (B, K) log-probabilities up to a constant, or logits, of such opinions (B, K)."""
    added: Tensor | float = 0.0
    for name, scores in opinions.items():
        own = temper(scores, prior, joint.opinions[name].loading, task) - prior
        added = added + torch.where(present[name][:, None], own, 0.0)
    strengths = torch.from_numpy(joint.strengths).to(prior)
    return prior + strengths[subset_numbers(joint.opinions, present)][:, None] * added
