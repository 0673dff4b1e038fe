"""The terminal of every command: lines that are never cut or taken for markup."""

import re
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def rounded(value: float, scale: float | None = None, sign: str = "") -> str:
    """Return a number with three decimals; with three digits where `scale` is below 0.01.

    The scale is by default that of the number. With `sign` "+", a positive one has its sign.
    """
    kind = "g" if 0 < abs(value if scale is None else scale) < 0.01 else "f"
    return f"{value:{sign}.3{kind}}"


def counted(count: int, what: str) -> str:
    """Return how many there are of something, as in "1 item" and "2 items"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


class Terminal:
    """A terminal; prints to `console`, or by default to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def tell(self, line: str, style: str = "", wrap: bool = False) -> None:
        """Print one line; with `wrap`, of words that nobody pastes, broken to fit a terminal."""
        whole = not (wrap and self.console.is_terminal)
        self.console.print(line, style=style, soft_wrap=whole, markup=False, emoji=False)

    def place(self, path: Path) -> Path:
        """Return a path as whoever sits at this terminal types it; elsewhere it stays absolute."""
        here = Path.cwd()
        below = path.is_absolute() and path != here and path.is_relative_to(here)
        return path.relative_to(here) if below and self.console.is_terminal else path

    def warn(self, line: str) -> None:
        """Print a warning."""
        self.tell(f"warning: {line}", "yellow")

    def data(self, cleaning: Mapping[str, int]) -> None:
        """Print what was cleaned, cut or not used of some data, a line each."""
        for what, count in cleaning.items():
            if count == 1:
                what = re.sub(r"^(item|id|row|segment|file)s\b", r"\1", what)
            self.tell(f"data: {count} {what}", wrap=True)

    def progress(self, unit: str | None = None) -> Progress:
        """Return a bar titled by its tasks, with their count of a unit, or else the time so far.

        It is gone when it stops, and never shown in a file.
        """
        counted = (MofNCompleteColumn(), TextColumn(unit or ""), TimeRemainingColumn())
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *(counted if unit else [TimeElapsedColumn()]),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
