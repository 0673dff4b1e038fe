"""The terminal of every command: lines that are never wrapped, cut or taken for markup."""

from rich.console import Console


class Terminal:
    """A terminal.

    Parameters
    ----------
    console
        Where to print; by default the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def tell(self, line: str, style: str = "") -> None:
        """Print one line."""
        self.console.print(line, style=style, soft_wrap=True, markup=False, emoji=False)

    def warn(self, line: str) -> None:
        """Print one line that asks for attention."""
        self.tell(f"warning: {line}", "yellow")
