"""Scores over seeds: their spread, and paired differences.

With d_i the difference of two methods at seed i of n,

    t = mean(d) / (sd(d) / √n),  Student's t with n - 1 degrees of freedom
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtr, stdtrit

#: Coverage of the intervals.
LEVEL = 0.95

#: Metrics that are errors.
LESS_IS_BETTER = frozenset({"mae", "mse", "log_loss", "ece"})


class Verdict(StrEnum):
    """What a difference says."""

    better = "better"
    worse = "worse"
    none = "no difference"
    one_seed = "one seed"
    no_pair = "no pair"
    undefined = "not a number"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some values; NaN where they are not defined."""

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A paired difference, method less baseline.

    Attributes
    ----------
    mean, low, high
        In units of the metric, with the interval's ends; NaN where they are not defined.
    p
        Two-sided, of the paired t-test; NaN where there is none.
    pairs
        Seeds that both have.
    verdict
        In words; whether more or less is better is in it.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    verdict: Verdict


def less_is_better(metric: str) -> bool:
    """Whether a metric is an error; ``log_loss_3`` is one as ``log_loss`` is."""
    return re.sub(r"_\d+$", "", metric) in LESS_IS_BETTER


def spread(values: Iterable[float]) -> Spread:
    """Describe values over seeds; one that is not finite makes the mean NaN."""
    array = np.array(list(values), dtype=np.float64)
    if len(array) == 0 or not np.isfinite(array).all():
        return Spread(math.nan, math.nan, len(array))
    sd = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return Spread(float(array.mean()), sd, len(array))


def paired_difference(
    method: Mapping[int, float], baseline: Mapping[int, float], *, less: bool = False
) -> Difference:
    """Compare two methods seed by seed.

    Parameters
    ----------
    method, baseline
        Seed to score; seeds that only one has are left out.
    less
        Whether less is better.

    Returns
    -------
    Difference
        With the `LEVEL` interval of the paired t-test, from two shared seeds on.
    """
    seeds = sorted(method.keys() & baseline.keys())
    differences = [method[seed] - baseline[seed] for seed in seeds]
    found = spread(differences)
    if not seeds or math.isnan(found.mean):
        verdict = Verdict.undefined if seeds else Verdict.no_pair
        return Difference(math.nan, math.nan, math.nan, math.nan, len(seeds), verdict)
    if len(seeds) == 1:
        return Difference(found.mean, math.nan, math.nan, math.nan, 1, Verdict.one_seed)
    error, freedom = found.sd / math.sqrt(len(seeds)), len(seeds) - 1
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    low, high = found.mean - half, found.mean + half
    if low <= 0 <= high:
        verdict = Verdict.none
    else:
        verdict = Verdict.better if (found.mean > 0) is not less else Verdict.worse
    return Difference(found.mean, low, high, _p(found.mean, error, freedom), len(seeds), verdict)


def _p(mean: float, error: float, freedom: int) -> float:
    """Two-sided p of Student's t; where all differences are equal, its limit."""
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / error))
