"""Sites' sums for a linear expert, pooled so that no site counts out of proportion.

With m and v the usual means and second moments of `server.aggregation.bounds`, a site is brought
within

    n_i                  at most `most`
    tr S_i / n_i         at most KAPPA sum(v), of its features and of its number apart
    |mean_i - m|         at most REACH sqrt(v), coordinate by coordinate

by scaling its sums, its deviations, and moving its mean. A scaled S is D S D, which stays positive
semi-definite. Classes and labels stay as they are: they are 0 or 1 already.

Notation: S the scatter, F pooled features, V features and labels, M sites.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from common.data.moments import FeatureMoments
from common.model.linear import LinearSums
from common.task import Task
from server.aggregation.bounds import KAPPA, Usual


def pool_linear_sums(
    sites: Sequence[LinearSums], task: Task, own: LinearSums | None = None, most: float = math.inf
) -> LinearSums:
    """Pool the sums of sites, at least one, of equal shape and of standardised features.

    `own` are those of the coordinator's items, None if they are few; a site counts as at most
    `most` examples.
    """
    return reduce(LinearSums.merge, bounded(sites, task, own, most))


def bounded(
    sites: Sequence[LinearSums], task: Task, own: LinearSums | None = None, most: float = math.inf
) -> Iterator[LinearSums]:
    """Bring sites within the bounds, one after the other."""
    return map(_Bounds.of(sites, task, own, most).apply, sites)


@dataclass(frozen=True)
class _Bounds:
    """What a site's sums may be."""

    count: float
    #: (V,) the usual means, and how far a mean may be from them.
    centre: Tensor
    reach: Tensor
    #: Parts of the coordinates to the largest trace per item.
    traces: Sequence[tuple[slice, float]]

    @classmethod
    def of(
        cls, sites: Sequence[LinearSums], task: Task, own: LinearSums | None, most: float
    ) -> "_Bounds":
        """Take what is usual from some sites, or the coordinator."""
        usual = Usual.of(list(map(_moments, sites)), None if own is None else _moments(own))
        reach, features = torch.from_numpy(usual.reach), sites[0].features
        parts = [slice(features)]
        if task is Task.regression:
            parts.append(slice(features, None))
        else:
            reach[features:] = torch.inf
        traces = [(part, KAPPA * float(usual.variance[part].sum())) for part in parts]
        return cls(most, torch.from_numpy(usual.mean), reach, traces)

    def apply(self, site: LinearSums) -> LinearSums:
        """Bring a site within the bounds; one that is there already stays as it is, to the bit."""
        factor, own = torch.ones_like(site.mean), site.scatter.diagonal() / site.count
        for part, most in self.traces:
            if (trace := own[part].sum().item()) > most:
                factor[part] = (most / trace) ** 0.5
        mean = site.mean.clamp(self.centre - self.reach, self.centre + self.reach)
        scaled, share = site.scaled(mean, factor), min(1.0, self.count / site.count)
        return replace(scaled, count=share * site.count, scatter=share * scaled.scatter)


def _moments(site: LinearSums) -> FeatureMoments:
    """Return the moments of all values (V,)."""
    counts = np.full(len(site.mean), site.count)
    return FeatureMoments(counts, site.mean.numpy(), site.scatter.diagonal().numpy())
