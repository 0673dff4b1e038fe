"""What a run prints, as text: the numbers are there, whole and in their places."""

import io
from typing import Any

import pytest
from rich.console import Console

from common.task import Task
from server.records import RoundRecord
from server.run.console import RunConsole


def console(width: int = 100) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), highlight=False)


def text_of(screen: Console) -> str:
    return screen.export_text(styles=False)


def record(**changes: Any) -> RoundRecord:
    scores = {"multimodal": 0.6126, "language": 0.5994, "audio": -0.1}
    parts = {
        "round": 7,
        "train_loss": {"language": 0.91239, "audio": 1.25},
        "validation": {name: {"corr": value, "mae": 99.0} for name, value in scores.items()},
        "seconds": 12.34,
    }
    return RoundRecord(**(parts | changes))


def printed(width: int = 100, rounds: int = 120, **changes: Any) -> str:
    screen = console(width)
    with RunConsole(rounds, Task.regression, screen) as run:
        run.round(record(**changes))
    return text_of(screen)


def test_round_is_one_line_with_its_numbers() -> None:
    assert printed() == (
        "round   7  loss language 0.912  audio 1.250  "
        "val corr multimodal 0.613  language 0.599  audio -0.100  12.3 s\n"
    )


@pytest.mark.parametrize("width", [20, 60, 200])
def test_round_stays_one_line_in_a_narrow_terminal(width: int) -> None:
    text = printed(width)
    assert text.count("\n") == 1
    assert "12.3 s" in text and "audio -0.100" in text


def test_round_numbers_are_aligned() -> None:
    lines = [printed(rounds=1000, round=number) for number in (1, 10, 1000)]
    assert len({line.index("loss") for line in lines}) == 1
    assert printed(rounds=9, round=3).startswith("round 3  ")


@pytest.mark.parametrize(
    ("task", "metric"), [(Task.classification, "accuracy"), (Task.multilabel, "f1")]
)
def test_metric_is_that_of_the_task(task: Task, metric: str) -> None:
    screen = console()
    scores = {"multimodal": {metric: 0.75, "x": 0.1}, "audio": {metric: 0.25, "x": 0.1}}
    RunConsole(3, task, screen).round(record(validation=scores))
    assert f"val {metric} multimodal 0.750  audio 0.250" in text_of(screen)


def test_modality_without_a_reply_is_missing_from_the_losses_and_warned_of() -> None:
    text = printed(train_loss={"language": 0.5}, reused=["audio", "vision"])
    assert "loss language 0.500  val" in text
    assert "warning: no reply from audio, vision: the encoder stays as it was\n" in text


def test_every_update_that_was_left_out_has_its_line() -> None:
    rejected = [
        "node of audio-0: array 'w' is torch.float32 (3,)",
        "node of audio-1: [red]x[/blue]",
    ]
    lines = printed(rejected=rejected).splitlines()
    assert lines[1:] == [f"warning: left out: {line}" for line in rejected]


def test_long_warning_is_not_cut() -> None:
    text = printed(width=40, rejected=["x" * 300 + " end"])
    assert "x" * 300 + " end\n" in text


@pytest.mark.parametrize("line", ["plain", "run folder: /data/[old]/run", "a [/b] c", "[bold]x"])
def test_line_is_printed_as_it_is(line: str) -> None:
    screen = console()
    RunConsole(1, Task.regression, screen).tell(line)
    assert text_of(screen) == f"{line}\n"


def test_table_has_every_score_in_its_column() -> None:
    scores = {
        "multimodal": {"mae": 0.61251, "corr": 0.7},
        "audio": {"mae": 1.2, "corr": -0.0321},
        "vision": {"mae": 1.3, "corr": 0.05},
    }
    screen = console()
    RunConsole(1, Task.regression, screen).scores("Test, 26 items", scores)
    lines = text_of(screen).splitlines()
    assert lines[0].startswith("Test, 26 items")
    cells = [line.replace("┃", "│").replace("│", " ").split() for line in lines]
    assert ["multimodal", "audio", "vision"] in cells
    assert ["mae", "0.613", "1.200", "1.300"] in cells
    assert ["corr", "0.700", "-0.032", "0.050"] in cells


def test_screen_that_is_no_terminal_gets_no_progress_bar() -> None:
    screen = console()
    with RunConsole(3, Task.regression, screen) as run:
        run.tell("one")
        run.tell("two")
    assert text_of(screen) == "one\ntwo\n"


def test_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    out = io.StringIO()
    screen = Console(width=100, file=out, force_terminal=True, highlight=False)
    with RunConsole(4, Task.regression, screen) as run:
        run.round(record())
    assert "1/4" in out.getvalue()
    # The bar is transient: the last thing that is written erases its line.
    assert out.getvalue().rstrip().endswith("\x1b[2K")
