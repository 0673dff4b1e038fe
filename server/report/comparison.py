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

LEVEL = 0.95  #: coverage of the intervals
LESS_IS_BETTER = frozenset({"mae", "mse", "rmse", "log_loss", "ece"})  #: metrics that are errors


class Verdict(StrEnum):
    """What a difference means."""

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
    """A paired difference, method minus baseline, in units of the metric."""

    verdict: Verdict
    pairs: int  #: number of seeds that both have
    mean: float = math.nan  #: with the ends of its interval; NaN where they are not defined
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  #: two-sided, of the paired t-test; NaN where there is none


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
    """Compare scores by seed with the paired t-test, where both have the seed.

    Less is better where `less` says so.
    """
    shared = sorted(method.keys() & baseline.keys())
    differences = spread(method[seed] - baseline[seed] for seed in shared)
    mean, pairs = differences.mean, differences.count
    if math.isnan(mean):
        return Difference(Verdict.undefined if pairs else Verdict.no_pair, pairs)
    if pairs == 1:
        return Difference(Verdict.one_seed, pairs, mean)
    error, freedom = differences.sd / math.sqrt(pairs), pairs - 1
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    verdict = Verdict.better if (mean > 0) is not less else Verdict.worse
    if abs(mean) <= half:
        verdict = Verdict.none
    # Where all differences are equal, the limit of p.
    p = 2 * stdtr(freedom, -abs(mean) / error) if error else float(mean == 0)
    return Difference(verdict, pairs, mean, mean - half, mean + half, float(p))
