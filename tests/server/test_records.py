"""Every moment of a round is in one phase."""

from collections.abc import Iterator

import pytest
from fake_nodes import Clock

import server.records
from server.records import Phase, PhaseClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(100.0)
    monkeypatch.setattr(server.records, "time", clock)
    return clock


def test_time_since_the_last_phase_is_the_next_ones(clock: Clock) -> None:
    phases = PhaseClock()
    for phase, seconds in ((Phase.configure, 1.0), (Phase.wait, 2.0), (Phase.configure, 4.0)):
        clock.now += seconds
        phases.end(phase)
    clock.now += 8.0
    assert phases.seconds == {"configure": 5.0, "wait": 2.0}


@pytest.mark.parametrize("count", [0, 3])
def test_getting_and_using_are_told_apart(clock: Clock, count: int) -> None:
    def slow() -> Iterator[int]:
        for number in range(count):
            clock.now += 1.0
            yield number
        clock.now += 10.0  # what never came

    phases = PhaseClock()
    for _ in phases.split(slow(), Phase.wait, Phase.merge):
        clock.now += 0.5
    clock.now += 0.25456
    phases.end(Phase.merge)
    assert phases.seconds == pytest.approx({"wait": 10 + count, "merge": 0.25456 + count / 2})
    assert sum(phases.seconds.values()) == pytest.approx(clock.now - 100.0)
    assert phases.measured()["phases"]["merge"] == pytest.approx(0.255 + count / 2, abs=1e-12)
