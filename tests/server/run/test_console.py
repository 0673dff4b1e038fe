"""What a run prints, as text: the numbers are there, whole and in their places."""

import io
import json
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


def shown(
    show: Callable[[RunConsole], None],
    rounds: int = 120,
    width: int = 100,
    task: str = "regression",
) -> str:
    """What is printed where there is no terminal."""
    screen = Console(width=width, file=io.StringIO(), record=True, highlight=False)
    with RunConsole(rounds, Task(task), screen) as console:
        show(console)
    return screen.export_text(styles=False)


def printed(rounds: int = 120, width: int = 100, task: str = "regression", **changes: Any) -> str:
    return shown(lambda console: console.round(record(**changes)), rounds, width, task)


@pytest.mark.parametrize("width", [20, 100])
def test_round_is_one_line_with_its_numbers_even_in_a_narrow_terminal(width: int) -> None:
    assert printed(width=width) == (
        "round   7  loss language 0.912  audio 1.250  "
        "val corr multimodal 0.613  language 0.599  audio -0.100  12.3 s\n"
    )


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("multilabel", "f1")])
def test_metric_is_that_of_the_task(task: str, metric: str) -> None:
    text = printed(task=task, validation={"multimodal": {metric: 0.75, "x": 0.1}})
    assert f"val {metric} multimodal 0.750    12.3 s" in text


def test_what_is_missing_from_a_round_is_warned_of_and_never_cut() -> None:
    rejected = ["node of audio-0: array 'w' is (3,)", "[red]x[/blue]", "x" * 300 + " end"]
    text = printed(width=40, train_loss={"a": 0.5}, reused=["audio", "vision"], rejected=rejected)
    assert "loss a 0.500  val" in text
    assert text.splitlines()[1:] == [
        "warning: no reply from audio, vision: the encoder stays as it was",
        *(f"warning: left out: {line}" for line in rejected),
    ]


@pytest.mark.parametrize("line", ["run folder: /data/[old]/run", "a [/b] c", "[bold]x"])
def test_line_is_printed_as_it_is_without_a_bar(line: str) -> None:
    assert shown(lambda console: console.tell(line)) == f"{line}\n"


def test_table_and_gain_have_every_score() -> None:
    pairs = {"multimodal": (0.61251, 0.7), "audio": (1.2, -0.0321), "vision": (1.3, 0.05)}
    scores = {name: {"mae": mae, "corr": corr} for name, (mae, corr) in pairs.items()}

    def show(console: RunConsole) -> None:
        console.scores("Test, 26 items", scores)
        console.gain(scores, "mean", {"audio": 0.5, "vision": 0.5})

    lines = shown(show).splitlines()
    assert lines[0].startswith("Test, 26 items")
    cells = [line.replace("┃", "│").replace("│", " ").split() for line in lines]
    assert ["multimodal", "audio", "vision"] in cells
    assert ["mae", "0.613", "1.200", "1.300"] in cells
    assert ["corr", "0.700", "-0.032", "0.050"] in cells
    assert "corr +0.650 against vision alone" in lines[-1]
    assert lines[-1].endswith("fusion mean (audio 0.50, vision 0.50)")


def test_a_log_collector_gets_objects_and_no_bar_even_on_a_terminal() -> None:
    out = io.StringIO()
    screen = Console(width=20, file=out, force_terminal=True, highlight=False)
    with JsonConsole(4, Task.regression, screen) as console:
        console.tell("[bold]x")
        console.round(record(rejected=["a"]))
        console.scores("Test", {"multimodal": {"corr": 0.5}})
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    said = [(each["event"], each["level"]) for each in events]
    assert said == [("message", "info"), ("round", "warning"), ("scores", "info")]
    assert events[0]["message"] == "[bold]x" and events[1]["round"] == 7


def test_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    out = io.StringIO()
    screen = Console(width=100, file=out, force_terminal=True, highlight=False)
    with RunConsole(4, Task.regression, screen) as console:
        console.round(record())
    # The bar is transient: the last thing that is written erases its line.
    assert "1/4" in out.getvalue() and out.getvalue().rstrip().endswith("\x1b[2K")
