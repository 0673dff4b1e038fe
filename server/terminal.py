"""The terminal of every command: lines that are never wrapped, cut or taken for markup."""

from collections.abc import Mapping

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


class Terminal:
    """A terminal; prints to `console`, or by default to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def tell(self, line: str, style: str = "") -> None:
        """Print one line."""
        self.console.print(line, style=style, soft_wrap=True, markup=False, emoji=False)

    def warn(self, line: str) -> None:
        """Print a warning."""
        self.tell(f"warning: {line}", "yellow")

    def data(self, cleaning: Mapping[str, int]) -> None:
        """Print what was cleaned, cut or not used of some data, a line each."""
        for what, count in cleaning.items():
            self.tell(f"data: {count} {what}")

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
