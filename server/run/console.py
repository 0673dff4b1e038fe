"""What a run shows: a line a round above a progress bar and a table, or JSON."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from common.metrics import HEADLINE
from common.task import Task
from server.evaluate import Scores
from server.records import RoundRecord
from server.terminal import Terminal, rounded

#: How many times the usual change is worth a line.
_WORTH_A_LINE = 10.0


class RunConsole(Terminal):
    """The terminal of a run of so many rounds; use as a context manager.

    A round's line has the headline metric of the task: of all modalities together, then of each.
    """

    def __init__(self, rounds: int, task: Task, console: Console | None = None) -> None:
        super().__init__(console)
        self._metric = HEADLINE[task]
        self._digits = len(str(rounds))
        self._progress = self.progress("rounds")
        self._bar = self._progress.add_task("training", total=rounds)
        #: Clients of whom it has been said that their changes are scaled down.
        self._clipped: set[str] = set()

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def round(self, record: RoundRecord) -> None:
        """Print the line of a round, and warnings of the clients it lacks."""
        scores = {name: values[self._metric] for name, values in record.validation.items()}
        together = scores.pop("multimodal")
        alone = "  ".join(f"{name} {rounded(score)}" for name, score in scores.items())
        self.console.print(
            f"round {record.round:>{self._digits}}  "
            f"[dim]val {self._metric}[/] [bold]{rounded(together)}[/]  {alone}  "
            f"[dim]{record.seconds:.1f} s[/]",
            soft_wrap=True,
            emoji=False,
        )
        if record.reused:
            self.warn(f"no reply from {', '.join(record.reused)}: the encoder stays as it was")
        for line in record.rejected:
            self.warn(f"left out: {line}")
        for client, times in record.clipped.items():
            if times >= _WORTH_A_LINE and client not in self._clipped:
                self._clipped.add(client)
                self.warn(f"{client}: {times:.3g} times the usual change: scaled down")
        self._progress.advance(self._bar)

    def scores(self, title: str, scores: Scores) -> None:
        """Print the table of final scores."""
        self.tell(title, "bold")  # as the table's own it would be wrapped to the table's width
        table = Table()
        table.add_column("")
        for name in scores:
            table.add_column(name, justify="right", style="bold" if name == "multimodal" else "")
        for metric in scores["multimodal"]:
            table.add_row(metric, *(rounded(values[metric]) for values in scores.values()))
        self.console.print(table)

    def fusion(self, rule: str, weights: Mapping[str, float]) -> None:
        """Print how the modalities are joined."""
        shares = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        self.tell(f"fusion: {rule}" + (f" ({shares})" if shares else ""))


class JsonConsole(RunConsole):
    """The same for a log collector: one JSON object a line.

    Each has ``time`` (ISO 8601, UTC), ``level`` (``info`` or ``warning``) and ``event``:
    ``message``, ``round`` (with the object of ``rounds.jsonl``) or ``scores``.
    """

    def __enter__(self) -> "JsonConsole":
        return self

    def tell(self, line: str, style: str = "", wrap: bool = False) -> None:
        """Print one line as an event."""
        self._event("message", message=line)

    def warn(self, line: str) -> None:
        """Print a warning as an event."""
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
