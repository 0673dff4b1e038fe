"""What a run shows: one line a round above a progress bar, and a table at the end; or JSON."""

import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common.config import Config, ConsoleStyle
from common.metrics import HEADLINE
from common.task import Task
from server.evaluate import Scores
from server.records import RoundRecord
from server.terminal import Terminal


class RunConsole(Terminal):
    """The terminal of a run; use as a context manager.

    Parameters
    ----------
    rounds
        How many there will be.
    task
        Kind of label; decides which metric stands in a round's line.
    console
        Where to print; by default the terminal.
    """

    def __init__(self, rounds: int, task: Task, console: Console | None = None) -> None:
        self.task = task
        super().__init__(console)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task("training", total=rounds)
        self._digits = len(str(rounds))

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def round(self, record: RoundRecord) -> None:
        """Print the line of a round."""
        metric = HEADLINE[self.task]
        loss = "  ".join(f"{name} {value:.3f}" for name, value in record.train_loss.items())
        scores = record.validation
        alone = "  ".join(
            f"{name} {values[metric]:.3f}"
            for name, values in scores.items()
            if name != "multimodal"
        )
        self.console.print(
            f"round {record.round:>{self._digits}}  [dim]loss[/] {loss}  "
            f"[dim]val {metric}[/] [bold]multimodal {scores['multimodal'][metric]:.3f}[/]  "
            f"{alone}  "
            f"[dim]{record.seconds:.1f} s[/]",
            soft_wrap=True,
            emoji=False,
        )
        if record.reused:
            self.warn(f"no reply from {', '.join(record.reused)}: the encoder stays as it was")
        for line in record.rejected:
            self.warn(f"left out: {line}")
        self._progress.advance(self._bar)

    def scores(self, title: str, scores: Scores) -> None:
        """Print the table of final scores."""
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for name in scores:
            table.add_column(name, justify="right", style="bold" if name == "multimodal" else "")
        for metric in scores["multimodal"]:
            table.add_row(metric, *(f"{values[metric]:.3f}" for values in scores.values()))
        self.console.print(table)


class JsonConsole(RunConsole):
    """The same for a log collector: one JSON object a line.

    Each has ``time`` (ISO 8601, UTC), ``level`` (``info`` or ``warning``) and ``event``:
    ``message``, ``round`` (with the object of ``rounds.jsonl``) or ``scores``.
    """

    def __enter__(self) -> "JsonConsole":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, line: str, style: str = "") -> None:
        """Print one line as an event."""
        self._event("message", message=line)

    def warn(self, line: str) -> None:
        """Print one line that asks for attention as an event."""
        self._event("message", "warning", message=line)

    def round(self, record: RoundRecord) -> None:
        """Print a round as an event."""
        level = "warning" if record.reused or record.rejected else "info"
        self._event("round", level, **record.to_json())

    def scores(self, title: str, scores: Scores) -> None:
        """Print final scores as an event."""
        self._event("scores", title=title, scores=scores)

    def _event(self, event: str, level: str = "info", **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "level": level, "event": event, **fields})
        self.console.out(line, highlight=False)


def make_console(config: Config, task: Task) -> RunConsole:
    """Return the console that ``console`` asks for."""
    kind = JsonConsole if config.console is ConsoleStyle.json else RunConsole
    return kind(config.rounds, task)
