"""What a run shows: the numbers are there, whole and in their places, as text and as a picture."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from common.task import Task
from server.records import RoundRecord
from server.run.console import JsonConsole, RunConsole


def record(**changes: Any) -> RoundRecord:
    scores = {"multimodal": 0.6126, "language": 0.5994, "audio": -0.1}
    parts = {
        "round": 7,
        "train_loss": {"language": 0.91239, "audio": 1.25},
        "validation": {name: {"corr": value, "mae": 99.0} for name, value in scores.items()},
        "seconds": 12.34,
    }
    return RoundRecord(**(parts | changes))


def shown(show: Callable[[RunConsole], None], width: int = 100, task: str = "regression") -> str:
    """What is printed of 120 rounds where there is no terminal."""
    screen = Console(width=width, file=io.StringIO(), record=True, highlight=False)
    with RunConsole(120, Task(task), screen) as console:
        show(console)
    return screen.export_text(styles=False)


def printed(width: int = 100, task: str = "regression", **changes: Any) -> str:
    return shown(lambda console: console.round(record(**changes)), width, task)


@pytest.mark.parametrize("width", [20, 100])
def test_round_is_one_line_with_its_numbers_even_in_a_narrow_terminal(width: int) -> None:
    assert printed(width=width) == (
        "round   7  val corr 0.613  language 0.599  audio -0.100  12.3 s\n"
    )


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("multilabel", "f1")])
def test_metric_is_that_of_the_task(task: str, metric: str) -> None:
    text = printed(task=task, validation={"multimodal": {metric: 0.75}, "x": {metric: 0.1}})
    assert f"val {metric} 0.750  x 0.100  12.3 s" in text


def test_what_is_missing_from_a_round_is_warned_of_and_never_cut() -> None:
    rejected = ["node of audio-0: array 'w' is (3,)", "[red]x[/blue]", "x" * 300 + " end"]
    text = printed(width=40, train_loss={"a": 0.5}, reused=["audio", "vision"], rejected=rejected)
    assert text.splitlines()[1:] == [
        "warning: no reply from audio, vision: the encoder stays as it was",
        *(f"warning: left out: {line}" for line in rejected),
    ]


def test_a_client_whose_changes_are_scaled_down_by_much_is_named_once() -> None:
    clipped = [{"audio-0": 3.0, "audio-1": 37.21}, {"audio-0": 12.0, "audio-1": 1e9}]

    def show(console: RunConsole) -> None:
        for each in clipped:
            console.round(record(clipped=each))

    warnings = [line for line in shown(show).splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: audio-1: 37.2 times the usual change: scaled down",
        "warning: audio-0: 12 times the usual change: scaled down",
    ]


@pytest.mark.parametrize("line", ["run folder: /data/[old]/run", "a [/b] c", "[bold]x"])
def test_line_is_printed_as_it_is_without_a_bar(line: str) -> None:
    assert shown(lambda console: console.tell(line)) == f"{line}\n"


def test_table_has_every_score_and_the_fusion_its_weights() -> None:
    pairs = {"multimodal": (0.61251, 0.7), "audio": (1.2, -0.0321), "vision": (1.3, 0.05)}
    scores = {name: {"mae": mae, "corr": corr} for name, (mae, corr) in pairs.items()}

    def show(console: RunConsole) -> None:
        console.scores("Test, 26 items", scores)
        console.fusion("mean", {"audio": 0.5, "vision": 0.5})

    lines = shown(show).splitlines()
    assert lines[0].startswith("Test, 26 items")
    cells = [line.replace("┃", "│").replace("│", " ").split() for line in lines]
    assert ["multimodal", "audio", "vision"] in cells
    assert ["mae", "0.613", "1.200", "1.300"] in cells
    assert ["corr", "0.700", "-0.032", "0.050"] in cells
    assert lines[-1] == "fusion: mean (audio 0.50, vision 0.50)"


def terminal(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(width=width, file=out, force_terminal=True, highlight=False), out


def test_a_verdict_and_three_modalities_fit_a_terminal_of_80_columns() -> None:
    screen, out = terminal(80)
    verdict = "verdict: no clear difference from language alone, the best: mae 1.597 against 1.597"
    scores = {name: {"accuracy": 0.5} for name in ("multimodal", "language", "audio", "vision")}
    with RunConsole(20, Task.classification, screen) as console:
        console.tell(f"{verdict} (± 0.123)", "bold", wrap=True)
        console.round(record(validation=scores))
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    assert f"{verdict} (± 0.123)" in " ".join(" ".join(lines).split())


def test_a_log_collector_gets_objects_and_no_bar_even_on_a_terminal() -> None:
    screen, out = terminal(20)
    with JsonConsole(4, Task.regression, screen) as console:
        console.tell("[bold]x")
        console.round(record(rejected=["a"]))
        console.scores("Test", {"multimodal": {"corr": 0.5}})
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    said = [(each["event"], each["level"]) for each in events]
    assert said == [("message", "info"), ("round", "warning"), ("scores", "info")]
    assert events[0]["message"] == "[bold]x" and events[1]["round"] == 7


def test_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    screen, out = terminal(100)
    with RunConsole(4, Task.regression, screen) as console:
        console.round(record())
    # The bar is transient: the last thing that is written erases its line.
    assert "1/4" in out.getvalue() and out.getvalue().rstrip().endswith("\x1b[2K")


# The picture --------------------------------------------------------------------------------------


def rounds(count: int, *, metric: str = "corr", **losses: list[float | None]) -> list[RoundRecord]:
    """Make records; `losses` are a modality's, round by round, None where it did not reply."""
    losses = losses or {name: [1 / (n + 1) for n in range(count)] for name in ("audio", "vision")}
    records = []
    for n in range(count):
        told = {name: each[n] for name, each in losses.items() if each[n] is not None}
        scores = {name: {metric: 0.1 * n, "other": 5.0} for name in ("multimodal", *losses)}
        records.append(RoundRecord(n + 1, told, validation=scores))
    return records


Lines = dict[str, list[tuple[list[float], list[float]]]]
