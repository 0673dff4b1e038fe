"""Numbers as they are shown, and what stands beside what."""

import math
from itertools import pairwise

import pytest

from server.report.view import Cell, Grid, Heat, Notes, Part, Section, shown, thinned


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.65432, "0.6543"),
        (12.0, "12"),
        (3000, "3000"),
        (12345.0, "12345"),
        (-0.00012345, "-0.0001234"),
        (1e9, "1e+09"),
        (math.inf, "inf"),
        (math.nan, "n/a"),
        (None, "n/a"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (3000, 100), (7, 2)])
def test_thinned_places_are_spread_evenly(count: int, most: int) -> None:
    places = thinned(count, most)
    assert len(places) == min(count, most) == len(set(places))
    assert places == sorted(places)
    if count:
        assert (places[0], places[-1]) == (0, count - 1)
    gaps = [after - before for before, after in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_neighbours_stand_side_by_side() -> None:
    grid, notes = Grid(("a",), ()), Notes(("b",))
    heat = Heat("c", "", (), (("d", (Cell("1"),)),))
    parts: list[Part] = [grid, heat, heat, notes, heat]
    assert Section("x", "X", parts).rows() == [
        (False, [grid]),
        (True, [heat, heat]),
        (False, [notes]),
        (True, [heat]),
    ]
