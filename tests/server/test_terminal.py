"""What terminals show of numbers, counts and paths."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from server.terminal import Terminal, rounded


@pytest.mark.parametrize(
    ("value", "scale", "sign", "expected"),
    [
        (0.12345, None, "", "0.123"),
        (-12.3456, None, "+", "-12.346"),
        (1699999999.947, None, "", "1699999999.947"),
        (0.0, None, "", "0.000"),
        (0.0, None, "+", "+0.000"),
        (0.00123456, None, "", "0.00123"),
        (0.00123456, 5.0, "", "0.001"),
        (3.0123e-06, 1e-6, "", "3.01e-06"),
        (4.2968e-7, None, "+", "+4.3e-07"),
        (math.nan, None, "", "nan"),
    ],
)
def test_no_number_but_zero_is_shown_as_zero(
    value: float, scale: float | None, sign: str, expected: str
) -> None:
    assert rounded(value, scale, sign) == expected


def shown_by(terminal: bool) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(Console(file=out, width=40, force_terminal=terminal, highlight=False)), out


def test_one_item_is_not_items() -> None:
    terminal, out = shown_by(terminal=False)
    terminal.data({"items without audio": 1, "ids dropped": 2, "column not used: items": 1})
    assert out.getvalue().splitlines() == [
        "data: 1 item without audio",
        "data: 2 ids dropped",
        "data: 1 column not used: items",
    ]


def test_a_path_is_as_it_is_typed_at_a_terminal_and_whole_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, elsewhere = tmp_path / "runs/a", tmp_path.parent / "b"
    terminal, log = shown_by(terminal=True)[0], shown_by(terminal=False)[0]
    assert [terminal.place(path) for path in (here, elsewhere)] == [Path("runs/a"), elsewhere]
    assert [log.place(path) for path in (here, elsewhere)] == [here, elsewhere]
    assert terminal.place(tmp_path) == tmp_path


@pytest.mark.parametrize(("terminal", "lengths"), [(False, [63, 60]), (True, [40, 23, 60])])
def test_only_words_are_wrapped_and_only_at_a_terminal(terminal: bool, lengths: list[int]) -> None:
    shows, out = shown_by(terminal)
    shows.tell("word " * 12 + "end", wrap=True)
    shows.tell("x/" * 30)
    assert [len(line) for line in out.getvalue().splitlines()] == lengths
