"""A tracker takes the figures by name; one that fails does not end a run, and is tried again."""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from data_checks import refusal
from tiny_runs import tiny

from common.config import TrackingConfig, TrackingTool
from common.errors import UserError
from server.app import prepare
from server.run.interruption import InterruptedRunError
from server.tracking.figures import round_figures, summary_figures
from server.tracking.tracker import Tracking, check_tracking, make_tracking

RECORDS: list[dict[str, Any]] = [{"round": number, "seconds": 0.5} for number in range(1, 30)]
SUMMARY = {"rounds": 29, "test": {"audio": {"corr": 0.5}}}


class Diary:
    """A tool that fails at some of its calls, and records what it takes."""

    known = 0

    def __init__(self, down: Sequence[int] = ()) -> None:
        self.down, self.asked = set(down), 0
        self.steps: dict[int, float] = {}
        self.ends: list[str] = []

    def start(self) -> "Diary":
        self.known = len(self.steps)
        self._answer()
        return self

    def log(self, figures: Mapping[str, float], step: int, when: float) -> None:
        self._answer()
        if "seconds" in figures:
            self.steps[step] = when
        else:
            self.ends += figures

    def finish(self) -> None:
        self.ends.append("files")

    def close(self, status: str) -> None:
        self._answer()
        self.ends.append(status)

    def _answer(self) -> None:
        self.asked += 1
        if self.asked in self.down:
            raise OSError("it is\ndown")


def follow(diary: Diary, rounds: int) -> tuple[Tracking, list[str], list[list[int]]]:
    """Track some rounds; return the warnings, and what the tool had after each round."""
    lines: list[str] = []
    tracking, known = Tracking("diary", diary.start, lines.append), []
    for number in range(1, rounds + 1):
        tracking.round(RECORDS[:number])
        known.append(list(diary.steps))
    return tracking, lines, known


def test_each_round_is_tracked() -> None:
    diary = Diary()
    tracking, lines, known = follow(diary, 3)
    with tracking:
        tracking.finish(RECORDS[:3], SUMMARY)
    assert known == [[1], [1, 2], [1, 2, 3]]
    assert (diary.ends, lines) == (["test/corr/audio", "files", "FINISHED"], [])


def test_missed_rounds_are_tracked_later_with_the_times_at_which_they_ended() -> None:
    # Asked to start and to take round 1; down at round 2, and at rounds 3 and 5 for a new start.
    diary = Diary(down=[3, 4, 5])
    _, lines, known = follow(diary, 9)
    assert known == [*[[1]] * 8, list(range(1, 10))]
    assert lines == ["tracking=diary failed, and the run goes on: it is down"]
    times = [diary.steps[number] for number in range(2, 10)]
    assert [later - time for time, later in pairwise(times)] == pytest.approx([0.5] * 7)


def test_a_tool_that_keeps_failing_is_tried_ever_less() -> None:
    diary = Diary(down=range(1, 100))
    tracking, lines, _ = follow(diary, 29)
    # In rounds 1, 2, 4, 8 and 16.
    assert diary.asked == 5
    with tracking:
        diary.down = set()
        tracking.finish(RECORDS, SUMMARY)
    assert len(diary.steps) == 29 and diary.ends[-1] == "FINISHED"
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UserError("no client could be merged"), "FAILED"),
        (RuntimeError(), "FAILED"),
        (InterruptedRunError(2), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_the_status_of_a_run_that_fails(error: BaseException, outcome: str) -> None:
    diary = Diary()
    tracking, _, _ = follow(diary, 1)
    with pytest.raises(type(error)), tracking:
        raise error
    assert diary.ends == [outcome]
    untouched = Diary()
    with pytest.raises(type(error)), Tracking("diary", untouched.start, print):
        raise error  # before any round
    assert untouched.asked == 0


def test_a_failure_at_the_very_end_is_reported() -> None:
    diary = Diary(down=[3])
    tracking, lines, _ = follow(diary, 1)
    with tracking:
        pass
    assert lines == ["tracking=diary failed, and the run goes on: it is down"]


def test_none_tracks_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    with make_tracking(tiny("tracking=none"), tmp_path, lines.append) as tracking:
        tracking.round(RECORDS[:1])
        tracking.finish(RECORDS[:1], SUMMARY)
    assert (lines, list(tmp_path.iterdir())) == ([], [])


# Figures ---------------------------------------------------------------------------------------


SCORES = {"multimodal": {"corr": 0.5, "mae": float("nan")}, "audio": {"corr": 0.25, "mae": None}}
WEIGHTS = {"head.weight": {"audio": 0.4, "vision": 0.6}}


@pytest.mark.parametrize(
    ("record", "figures"),
    [
        ({"round": 3, "train_loss": {"audio": 1.5}}, {"train_loss/audio": 1.5}),
        (
            {"validation": SCORES},
            {"validation/corr/multimodal": 0.5, "validation/corr/audio": 0.25},
        ),
        (
            {"decoder_weights": WEIGHTS},
            {f"decoder_weights/head.weight/{n}": w for n, w in WEIGHTS["head.weight"].items()},
        ),
        ({"rejected": ["audio-0: its disk is full", "late"]}, {"rejected": 2.0}),
        ({"reused": [], "posterior_widths": None}, {"reused": 0.0}),
        ({"privacy": {"epsilon": 2.0, "note": "per client"}}, {"privacy/epsilon": 2.0}),
        ({"bytes_down": 20, "bytes_up": 10}, {"bytes/down": 20.0, "bytes/up": 10.0}),
        ({"seconds": 0.5, "phases": {"wait": 0.25}}, {"seconds": 0.5, "phases/wait": 0.25}),
    ],
)
def test_names_are_paths_and_scores_stand_by_metric(
    record: dict[str, Any], figures: dict[str, float]
) -> None:
    assert round_figures(record) == figures


def test_of_a_summary_the_scores_count() -> None:
    summary = {"test": {"audio": {"corr": 0.5}}, "test_by_subset": {"a+b": {"corr": 0.75}}}
    expected = {"test/corr/audio": 0.5, "test_by_subset/corr/a+b": 0.75}
    assert summary_figures(summary | {"items": {"train": 9}, "seconds": 3.0}) == expected


# Refused before a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["mlflow", "pandas"])
def test_a_package_that_is_missing_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(lambda: prepare(tiny("tracking=mlflow"), tmp_path / "run"))
    assert message.startswith(f"tracking=mlflow needs {package}: pip install 'ha-fed")
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
def test_settings_that_cannot_work(overrides: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        prepare(tiny(*overrides), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_a_password_is_refused_and_not_shown(scheme: str) -> None:
    config = TrackingConfig(TrackingTool.mlflow, f"{scheme}://me:hush@example.org/db")
    assert "hush" not in refusal(lambda: check_tracking(config), "MLFLOW_TRACKING_URI")


def test_valid_uris() -> None:
    for uri in (None, "sqlite:///a.db", "http://127.0.0.1:5000", "https://me@example.org"):
        check_tracking(TrackingConfig(TrackingTool.mlflow, uri))
    check_tracking(TrackingConfig())
