"""What `utmp-evaluate` shows: scores, subsets, confusions, calibration."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.metrics import HEADLINE
from common.task import Task
from server.prediction.evaluation import Evaluation
from server.terminal import Terminal

Scores = Mapping[str, Mapping[str, float]]

#: Columns of what is printed into a file.
_FILE_WIDTH = 200


class EvaluationConsole(Terminal):
    """The terminal of an evaluation.

    Parameters
    ----------
    console
        Where to print; by default the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        if not self.console.is_terminal:
            self.console.width = _FILE_WIDTH

    def show(self, evaluation: Evaluation) -> None:
        """Print all of it."""
        about, results = evaluation.about, evaluation.results
        self.tell(f"model {about['model']} on {about['dataset']}, {about['items']} items")
        test, headline = results["test"], HEADLINE[evaluation.task]
        metrics = list(test["multimodal"])
        rows = [[name, *(_cell(each[name]) for each in test.values())] for name in metrics]
        self._table("Scores", ["", *test], rows)
        self._subsets("Every subset of modalities", results["test_by_subset"], headline)
        self._subsets("Fusion rules", results["test_by_fusion"], headline)
        found = results["diagnostics"]["multimodal"]
        self._confusion(found["confusion"], evaluation.task, evaluation.label_names)
        if "calibration" in found:
            self._calibration(found["calibration"])
        self.tell(f"all modalities together: {headline} {test['multimodal'][headline]:.3f}")

    def _subsets(self, title: str, scores: Scores, headline: str) -> None:
        """Print a row for each name: the headline metric, and what else there is room for."""
        metrics = [headline, *(name for name in next(iter(scores.values())) if name != headline)]
        room = self.console.width
        taken = max(map(len, scores)) + 4
        shown = [
            name
            for name, end in zip(
                metrics,
                itertools.accumulate(max(len(each), 6) + 3 for each in metrics),
                strict=True,
            )
            if taken + end <= room
        ] or [headline]
        rows = [[name, *(_cell(each[m]) for m in shown)] for name, each in scores.items()]
        self._table(title, ["", *shown], rows)
        if len(shown) < len(metrics):
            self.tell("more metrics on a wider terminal, and all of them with out=….json", "dim")

    def _confusion(self, found: Mapping[str, Any], task: Task, names: Sequence[str]) -> None:
        several = task is Task.multilabel
        known = names and not several
        classes = list(names) if known else [str(each) for each in found["classes"]]
        for number, counts in enumerate(found["counts"] if several else [found["counts"]]):
            label = names[number] if names else f"label {number}"
            of = f" of {label}" if several else ""
            rows = [
                [f"true {name}", *map(str, row)] for name, row in zip(classes, counts, strict=True)
            ]
            self._table(f"Confusion{of}: rows are true, columns predicted", ["", *classes], rows)

    def _calibration(self, found: Mapping[str, Sequence[float | None]]) -> None:
        rows = [list(map(_cell, each)) for each in zip(*found.values(), strict=True)]
        self._table("Calibration", list(found), rows)

    def _table(self, title: str, header: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
        self.tell(title, "bold")
        table = Table()
        for number, name in enumerate(header):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
