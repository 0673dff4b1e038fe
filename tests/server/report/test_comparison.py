"""Spreads and paired differences, against SciPy and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from server.report.comparison import Verdict, less_is_better, paired_difference, spread

SCORES = st.floats(-3, 3).map(lambda value: round(value, 6))
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=12)


def by_seed(values: Any) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("values", "mean", "sd"),
    [
        ([1.0, 2.0, 6.0], 3.0, math.sqrt(7)),  # (4 + 1 + 9) / 2
        ([0.5], 0.5, math.nan),
        ([], math.nan, math.nan),
        ([1.0, math.nan], math.nan, math.nan),
        ([math.inf, -math.inf], math.nan, math.nan),
    ],
)
def test_spread_by_hand(values: list[float], mean: float, sd: float) -> None:
    described = spread(values)
    assert (described.mean, described.sd) == pytest.approx((mean, sd), nan_ok=True)
    assert described.count == len(values)


def test_a_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1; t(0.975, 2) = 4.302653; t = 2 √3, p = 0.074180.
    difference = paired_difference({1: 2.0, 2: 4.0, 3: 6.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    half = 4.302652729911275 / math.sqrt(3)
    assert difference.mean == 2
    assert (difference.low, difference.high) == pytest.approx((2 - half, 2 + half))
    assert difference.p == pytest.approx(0.0741799, abs=1e-6)
    assert (difference.pairs, difference.verdict) == (3, Verdict.none)


@given(PAIRS)
def test_it_is_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).T
    assume(np.std(one - other) > 1e-4)
    difference = paired_difference(by_seed(one), by_seed(other))
    expected = scipy.stats.ttest_rel(one, other)
    interval = expected.confidence_interval(0.95)
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-6
    )
    significant = difference.verdict is not Verdict.none
    if abs(difference.p - 0.05) > 1e-6:
        assert significant == (difference.p < 0.05)


@given(PAIRS, st.booleans())
def test_the_verdict_turns_with_the_sides_and_with_the_direction(
    pairs: list[tuple[float, float]], less: bool
) -> None:
    one, other = (by_seed(values) for values in zip(*pairs, strict=True))
    there, back = (paired_difference(*each, less=less) for each in ((one, other), (other, one)))
    turned = paired_difference(one, other, less=not less)
    opposite = {Verdict.better: Verdict.worse, Verdict.worse: Verdict.better}
    assert back.verdict == turned.verdict == opposite.get(there.verdict, there.verdict)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)


@pytest.mark.parametrize(
    ("shift", "p", "verdict"), [(0.0, 1.0, Verdict.none), (0.25, 0.0, Verdict.better)]
)
def test_differences_without_deviation(shift: float, p: float, verdict: Verdict) -> None:
    baseline = {1: 0.5, 2: 0.75}
    difference = paired_difference({seed: x + shift for seed, x in baseline.items()}, baseline)
    assert (difference.mean, difference.low, difference.high, difference.p) == (
        shift,
        shift,
        shift,
        p,
    )
    assert difference.verdict is verdict


@pytest.mark.parametrize(
    ("one", "other", "mean", "pairs", "verdict"),
    [
        ({1: 0.75, 2: 0.5}, {1: 0.5, 3: 0.5}, 0.25, 1, Verdict.one_seed),
        ({1: 0.75}, {2: 0.5}, math.nan, 0, Verdict.no_pair),
        ({1: math.nan, 2: 0.5}, {1: 0.5, 2: math.nan}, math.nan, 2, Verdict.undefined),
        ({1: math.inf, 2: 0.5}, {1: 0.5, 2: 0.5}, math.nan, 2, Verdict.undefined),
    ],
)
def test_what_is_no_test(
    one: dict[int, float], other: dict[int, float], mean: float, pairs: int, verdict: Verdict
) -> None:
    difference = paired_difference(one, other)
    assert (difference.pairs, difference.verdict) == (pairs, verdict)
    assert difference.mean == pytest.approx(mean, nan_ok=True)
    assert all(map(math.isnan, (difference.low, difference.high, difference.p)))


def test_only_shared_seeds_count() -> None:
    both = {1: 0.5, 2: 0.7, 3: 0.6}
    difference = paired_difference({**both, 4: 9.0}, {1: 0.4, 2: 0.5, 3: 0.55, 5: -9.0})
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(0.35 / 3)


def test_which_metrics_are_errors() -> None:
    errors = ["mae", "mse", "log_loss", "ece", "ece_3"]
    others = ["corr", "acc2", "acc7", "f1", "f1_0", "accuracy", "weighted_accuracy_1"]
    assert [less_is_better(metric) for metric in errors + others] == [True] * 5 + [False] * 7
