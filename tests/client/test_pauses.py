"""A look comes late by a tenth of the time that was waited, and no later than it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.pauses import GrowingPause


@given(longest=st.floats(0.1, 10), looks=st.integers(1, 200))
def test_each_pause_is_a_tenth_of_the_wait_and_at_most_the_longest(
    longest: float, looks: int
) -> None:
    slept: list[float] = []
    pause = GrowingPause(0.05, 1.1, slept.append)
    for _ in range(looks):
        pause.wait(longest)
    for number, each in enumerate(slept):
        assert each == pytest.approx(min(0.05 + 0.1 * sum(slept[:number]), longest), rel=1e-6)


def test_it_begins_anew_when_something_came_and_for_another_wait() -> None:
    slept: list[float] = []
    pause = GrowingPause(1.0, 2.0, slept.append)
    for longest in (9, 9, 9, 5, 9, 9):
        pause.wait(longest)
    pause.reset()
    pause.wait(9)
    assert slept == [1, 2, 4, 1, 1, 2, 1]
