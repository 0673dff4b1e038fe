"""A tracker that fails ends no run, and is tried again."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny

from common.config import TrackingConfig, TrackingTool
from common.errors import UserError
from server.app import prepare
from server.run.interruption import InterruptedRunError
from server.tracking.figures import Outcome, Record
from server.tracking.tracker import Tracking, check_tracking, make_tracking

RECORDS: list[dict[str, Any]] = [{"round": number} for number in range(1, 30)]


class Diary:
    """A tool that is away for some of the times that it is asked, and what reached it."""

    def __init__(self, away: Sequence[int] = ()) -> None:
        self.away, self.asked = set(away), 0
        self.told: list[int] = []
        self.ends: list[str] = []

    def start(self) -> "Diary":
        self._answer()
        return self

    def rounds(self, records: Sequence[Record]) -> None:
        self._answer()
        self.told = [record["round"] for record in records]

    def finish(self, summary: Record) -> None:
        self.ends.append(summary["end"])

    def close(self, outcome: Outcome) -> None:
        self._answer()
        self.ends.append(outcome)

    def _answer(self) -> None:
        self.asked += 1
        if self.asked in self.away:
            raise OSError("it is\naway")


def follow(diary: Diary, rounds: int) -> tuple[Tracking, list[str], list[list[int]]]:
    """Tell of so many rounds; return what was warned of, and what the tool knew after each."""
    lines: list[str] = []
    tracking, known = Tracking("diary", diary.start, lines.append), []
    for number in range(1, rounds + 1):
        tracking.round(RECORDS[:number])
        known.append(list(diary.told))
    return tracking, lines, known


def test_each_round_is_told() -> None:
    diary = Diary()
    tracking, lines, known = follow(diary, 3)
    with tracking:
        tracking.finish(RECORDS[:3], {"end": "summary"})
    assert known == [[1], [1, 2], [1, 2, 3]]
    assert (diary.ends, lines) == (["summary", "FINISHED"], [])


def test_what_was_missed_is_told_later() -> None:
    # Asked to start and to take round 1; away at round 2, and at rounds 3 and 5 for a new start.
    _, lines, known = follow(Diary(away=[3, 4, 5]), 9)
    assert known == [*[[1]] * 8, list(range(1, 10))]
    assert lines == ["tracking=diary failed, and the run goes on: it is away"]


def test_a_tool_that_stays_away_is_asked_ever_less_and_told_of_once() -> None:
    diary = Diary(away=range(1, 100))
    tracking, lines, _ = follow(diary, 29)
    with tracking:
        tracking.finish(RECORDS, {"end": "summary"})
    # In rounds 1, 2, 4, 8 and 16, and at the end.
    assert diary.asked == 6
    assert len(lines) == 1


def test_at_the_end_everything_is_told_that_it_takes() -> None:
    diary = Diary(away=[1, 2])
    tracking, _, known = follow(diary, 3)
    assert known[-1] == []
    with tracking:
        tracking.finish(RECORDS[:3], {"end": "summary"})
    assert diary.told == [1, 2, 3]
    assert diary.ends == ["summary", "FINISHED"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UserError("no client could be merged"), "FAILED"),
        (RuntimeError(), "FAILED"),
        (InterruptedRunError(2), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_run_that_breaks_off_ends_so(error: BaseException, outcome: str) -> None:
    diary = Diary()
    tracking, _, _ = follow(diary, 1)
    with pytest.raises(type(error)), tracking:
        raise error
    assert diary.ends == [outcome]


def test_a_run_without_a_round_leaves_no_trace() -> None:
    diary = Diary()
    with pytest.raises(UserError), Tracking("diary", diary.start, print):
        raise UserError("nodes are missing")
    assert diary.asked == 0


def test_failing_at_the_very_end_is_told_too() -> None:
    diary = Diary(away=[3])
    tracking, lines, _ = follow(diary, 1)
    with tracking:
        pass
    assert lines == ["tracking=diary failed, and the run goes on: it is away"]


def test_none_leaves_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    tracking = make_tracking(tiny("tracking=none"), tmp_path, lines.append)
    with tracking:
        tracking.round(RECORDS[:1])
        tracking.finish(RECORDS[:1], {})
    assert (lines, list(tmp_path.iterdir())) == ([], [])


# What is refused before a run -------------------------------------------------------------------


@pytest.mark.parametrize("package", ["mlflow", "pandas"])
def test_a_package_that_is_missing_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        prepare(tiny("tracking=mlflow"), tmp_path / "run")
    assert str(error.value) == (
        f"tracking=mlflow needs {package}: pip install 'ha-fedformer[tracking]'"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["tracking.uri=http://localhost"], r"^tracking\.uri is a setting of tracking=mlflow"),
        (["tracking=none", "tracking.uri=http://a"], r"^tracking\.uri is a setting of"),
        (["tracking=mlflow", "tracking.uri=mlruns"], "a server, as in http"),
        (["tracking=mlflow", "tracking.uri=file:///tmp/mlruns"], "sqlite:///mlflow.db"),
        (["tracking=mlflow", "tracking.experiment=''"], r"^tracking\.experiment is empty"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    overrides: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        prepare(tiny(*overrides), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_a_password_is_refused_and_not_told(scheme: str) -> None:
    config = TrackingConfig(TrackingTool.mlflow, f"{scheme}://me:hush@example.org/db")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as error:
        check_tracking(config)
    assert "hush" not in str(error.value)


def test_places_that_can_be() -> None:
    for uri in (None, "sqlite:///a.db", "http://127.0.0.1:5000", "https://me@example.org"):
        check_tracking(TrackingConfig(TrackingTool.mlflow, uri))
    check_tracking(TrackingConfig())
