"""How far one site may be from the others, and from the coordinator's own items.

With n_i the examples of site i, over all sites of a run, a site

    counts as at most KAPPA median(n) examples.

With m and v the mean and variance of a value among the coordinator's validation items, of which
there are `FEW_ITEMS` at least, a site's mean and variance of it are brought within

    |mean_i - m| <= REACH sqrt(v)    and    v_i <= KAPPA v.

Of `QUORUM` sites and more, v is not below the median over them of v_i + (mean_i - m)^2; nor is it
where a value is constant among the coordinator's items. Without so many items, v is that median,
and m that of the means. Then one site, or two, are within these bounds whatever they send, for each
median is at least half of the larger.

What is odd may be honest: a site is named, and counts as at the bound; where its features are, it
trains on them in units of its own, see `server.roster.statistics`. Notation: M sites, V values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.data.moments import FeatureMoments, Float64Array

#: How many times the median a site's number of examples, and the usual its variance, may be.
KAPPA = 4.0

#: How many deviations a site's mean may be from the usual.
REACH = 3.0

#: Sites without whom a median says little.
QUORUM = 3

#: Items of the coordinator below which they say nothing of what is usual.
FEW_ITEMS = 30


def most_examples(examples: Sequence[int]) -> float:
    """Return how many examples a site counts as at most, from those of all sites."""
    return KAPPA * float(np.median(examples))


@dataclass(frozen=True)
class Usual:
    """What is usual of some values: m, and v, of shape (V,) or any other."""

    mean: Float64Array
    variance: Float64Array

    @classmethod
    def of(cls, sites: Sequence[FeatureMoments], own: FeatureMoments | None) -> "Usual":
        """Take it from the coordinator's items, or from the sites; `own` None if they are few."""
        means = np.stack([site.mean for site in sites])
        centre = np.median(means, axis=0) if own is None else own.mean
        with np.errstate(over="ignore"):  # what a site sends may be so far that its square is inf
            spread = np.stack([site.std**2 for site in sites]) + (means - centre) ** 2
        variance = np.median(spread, axis=0)
        if own is not None:
            known = np.where(own.constant, variance, own.std**2)
            variance = np.maximum(known, variance) if len(sites) >= QUORUM else known
        return cls(centre, variance)

    @property
    def reach(self) -> Float64Array:
        """How far a mean may be from the usual one."""
        reach: Float64Array = REACH * np.sqrt(self.variance)
        return reach

    def clamp(self, mean: Float64Array) -> Float64Array:
        """Bring a site's mean within the bounds."""
        return np.clip(mean, self.mean - self.reach, self.mean + self.reach)

    def excess(self, variance: Float64Array) -> Float64Array:
        """Return how many times the largest that it may have a site's variance is, at least 1."""
        most = KAPPA * self.variance
        return np.divide(variance, most, np.ones_like(variance), where=variance > most)
