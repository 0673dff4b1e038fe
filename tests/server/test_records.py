"""Every moment of a round is in one phase."""

from collections.abc import Iterator

import pytest

import server.records
from server.records import Phase, PhaseClock


class Clock:
    """Time that passes only where a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server.records, "time", clock)
    return clock


def test_time_since_the_last_phase_is_the_next_ones(clock: Clock) -> None:
    phases = PhaseClock()
    for phase, seconds in ((Phase.configure, 1.0), (Phase.wait, 2.0), (Phase.configure, 4.0)):
        clock.now += seconds
        phases.end(phase)
    clock.now += 8.0
    assert phases.seconds == {"configure": 5.0, "wait": 2.0}


def test_getting_and_using_are_told_apart(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            clock.now += 1.0
            yield number
        clock.now += 10.0  # what never came

    phases = PhaseClock()
    for _ in phases.split(slow(), Phase.wait, Phase.merge):
        clock.now += 0.5
    clock.now += 0.25
    phases.end(Phase.merge)
    assert phases.seconds == {"wait": 13.0, "merge": 1.75}
    assert sum(phases.seconds.values()) == clock.now - 100.0


def test_nothing_to_get_is_waiting(clock: Clock) -> None:
    def silent() -> Iterator[int]:
        clock.now += 7.0
        yield from ()

    phases = PhaseClock()
    assert list(phases.split(silent(), Phase.wait, Phase.merge)) == []
    assert phases.seconds == {"wait": 7.0}


def test_records_have_milliseconds(clock: Clock) -> None:
    phases = PhaseClock()
    clock.now += 1.23456
    phases.end(Phase.evaluate)
    assert phases.rounded() == {"evaluate": 1.235}
