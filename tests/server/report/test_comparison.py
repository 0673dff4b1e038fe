"""Spreads and paired differences, against SciPy and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from server.report.comparison import Verdict, less_is_better, paired_difference, spread

NAN, INF = math.nan, math.inf
SCORES = st.floats(-3, 3).map(lambda value: round(value, 6))
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=12)


def by_seed(values: Any) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("values", "mean", "sd"),
    [
        ([1.0, 2.0, 6.0], 3.0, math.sqrt(7)),  # (4 + 1 + 9) / 2
        ([0.5], 0.5, NAN),
        ([], NAN, NAN),
        ([1.0, NAN], NAN, NAN),
        ([INF, -INF], NAN, NAN),
    ],
)
def test_spread_by_hand(values: list[float], mean: float, sd: float) -> None:
    described = spread(values)
    assert (described.mean, described.sd) == pytest.approx((mean, sd), nan_ok=True)
    assert described.count == len(values)


@given(PAIRS, st.booleans())
def test_it_is_the_paired_t_test(pairs: list[tuple[float, float]], less: bool) -> None:
    one, other = np.array(pairs).T
    assume(np.std(one - other) > 1e-4)
    difference = paired_difference(by_seed(one), by_seed(other), less=less)
    expected = scipy.stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-6
    )
    if abs(difference.p - 0.05) > 1e-6:
        better = (difference.mean > 0) is not less
        known = Verdict.better if better else Verdict.worse
        assert difference.verdict is (known if difference.p < 0.05 else Verdict.none)
    back = paired_difference(by_seed(other), by_seed(one), less=less)
    assert (back.mean, back.low, back.high) == pytest.approx(
        (-difference.mean, -difference.high, -difference.low)
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Differences 1, 2, 3: mean 2, sd 1; t(0.975, 2) = 4.302653; t = 2 √3, p = 0.074180.
        (
            {1: 2, 2: 4, 3: 6},
            {1: 1, 2: 2, 3: 3},
            (Verdict.none, 3, 2, 2 - 2.484138, 2 + 2.484138, 0.0741799),
        ),
        # No deviation: the limits.
        ({1: 0.5, 2: 0.75}, {1: 0.5, 2: 0.75}, (Verdict.none, 2, 0, 0, 0, 1)),
        ({1: 0.75, 2: 1}, {1: 0.5, 2: 0.75}, (Verdict.better, 2, 0.25, 0.25, 0.25, 0)),
        # Only shared seeds count.
        (
            {1: 0.75, 2: 1, 4: 9},
            {1: 0.5, 2: 0.75, 5: -9},
            (Verdict.better, 2, 0.25, 0.25, 0.25, 0),
        ),
        ({1: 0.75, 2: 0.5}, {1: 0.5, 3: 0.5}, (Verdict.one_seed, 1, 0.25, NAN, NAN, NAN)),
        ({1: 0.75}, {2: 0.5}, (Verdict.no_pair, 0, NAN, NAN, NAN, NAN)),
        ({1: NAN, 2: 0.5}, {1: 0.5, 2: NAN}, (Verdict.undefined, 2, NAN, NAN, NAN, NAN)),
        ({1: INF, 2: 0.5}, {1: 0.5, 2: 0.5}, (Verdict.undefined, 2, NAN, NAN, NAN, NAN)),
    ],
)
def test_differences_by_hand(
    one: dict[int, float], other: dict[int, float], expected: tuple[Any, ...]
) -> None:
    d = paired_difference(one, other)
    assert (d.verdict, d.pairs) == expected[:2]
    numbers = (d.mean, d.low, d.high, d.p)
    assert numbers == pytest.approx(expected[2:], abs=1e-6, nan_ok=True)


def test_which_metrics_are_errors() -> None:
    assert all(map(less_is_better, ("mae", "rmse", "mse", "log_loss", "ece", "ece_3")))
    assert not any(
        map(less_is_better, ("corr", "ccc", "r2", "acc7", "f1_0", "weighted_accuracy_1"))
    )
