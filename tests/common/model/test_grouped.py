"""Slopes among items in groups, against regressions and simulated groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.grouped import slope_in_groups


class Groups:
    """Items of y = 0.6 v_g + n and x = c y + u_g + e, with standard normal v, n, u and e."""

    def __init__(self, seed: int, slope: float, *, groups: int = 12, size: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.groups = np.repeat(np.arange(groups), size)
        self.y = 0.6 * rng.normal(size=groups)[self.groups] + rng.normal(size=groups * size)
        self.effects = rng.normal(size=groups)[self.groups]
        self.x = slope * self.y + self.effects + 0.3 * rng.normal(size=groups * size)


def slope_of(items: Groups) -> tuple[float, float]:
    found = slope_in_groups(items.x, items.y, items.groups)
    assert found is not None
    return found


def test_a_modality_that_knows_only_the_group_tells_nothing_but_by_chance() -> None:
    """The statistic is that of a test which is wrong in one case of twenty."""
    found, naive = [], []
    for seed in range(300):
        items = Groups(seed, 0.0)
        found.append(slope_of(items)[1])
        r = np.corrcoef(items.x, items.y)[0, 1]
        naive.append(r**2 / (1 - r**2) * (len(items.x) - 2))
    assert np.mean(np.array(found) > 3.91) < 0.09
    assert np.mean(np.array(naive) > 3.91) > 0.3


def test_a_slope_inside_groups_is_found_and_sure() -> None:
    slopes, statistics = zip(*(slope_of(Groups(seed, 0.5)) for seed in range(100)), strict=True)
    assert np.mean(slopes) == pytest.approx(0.5, abs=0.01)
    assert min(statistics) > 50


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 1e4), st.floats(-1e3, 1e3))
def test_a_slope_is_of_any_unit_and_order(seed: int, scale: float, shift: float) -> None:
    items = Groups(seed, 0.3)
    slope, statistic = slope_of(items)
    order = np.random.default_rng(seed).permutation(len(items.x))
    items.x, items.y, items.groups = (
        items.x[order] * scale + shift,
        items.y[order],
        items.groups[order],
    )
    other = slope_of(items)
    assert other == pytest.approx((scale * slope, statistic), rel=1e-5, abs=1e-5 * scale)


def test_without_effects_of_groups_it_is_the_regression() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=2000)
    x = 0.4 * y + rng.normal(size=2000)
    slope, statistic = slope_in_groups(x, y, rng.integers(50, size=2000)) or (0.0, 0.0)
    r = np.corrcoef(x, y)[0, 1]
    assert slope == pytest.approx(np.polyfit(y, x, 1)[0], rel=0.02)
    assert statistic == pytest.approx(r**2 / (1 - r**2) * 1998, rel=0.05)


@pytest.mark.parametrize("constant", ["x", "y"])
def test_what_is_constant_in_each_group_is_judged_by_the_groups(constant: str) -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(10), 7)
    means = {"x": rng.normal(size=10), "y": rng.normal(size=10)}
    values = {name: mean[groups] + rng.normal(size=70) for name, mean in means.items()}
    values[constant] = means[constant][groups]
    x, y = (np.bincount(groups, weights=values[name]) / 7 for name in "xy")
    slope, statistic = slope_in_groups(values["x"], values["y"], groups) or (0.0, 0.0)
    r = np.corrcoef(x, y)[0, 1]
    assert slope == pytest.approx(np.polyfit(y, x, 1)[0])
    assert statistic == pytest.approx(r**2 / (1 - r**2) * 8)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 1, 1]])
def test_without_groups_enough_there_is_no_slope(groups: list[int]) -> None:
    values = np.array([1.0, 2, 3, 5])
    assert slope_in_groups(values, values, np.array(groups)) is None
