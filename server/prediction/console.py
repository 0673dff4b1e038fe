"""What `utmp-evaluate` shows."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from common.metrics import HEADLINE
from common.task import Task
from server.prediction.evaluation import Evaluation
from server.terminal import Terminal

#: Columns of what is printed into a file.
_FILE_WIDTH = 200


def show_evaluation(terminal: Terminal, evaluation: Evaluation) -> None:
    """Print scores, subsets, confusions and calibration; into a file whole, however wide."""
    if not terminal.console.is_terminal:
        terminal.console.width = _FILE_WIDTH
    about, results = evaluation.about, evaluation.results
    terminal.tell(f"model {about['model']} on {about['dataset']}, {about['items']} items")
    test, headline = results["test"], HEADLINE[evaluation.task]
    rows = [
        [metric, *(_cell(scores[metric]) for scores in test.values())]
        for metric in test["multimodal"]
    ]
    _show_table(terminal, "Scores", ["", *test], rows)
    _show_scores(terminal, "Every subset of modalities", results["test_by_subset"], headline)
    _show_scores(terminal, "Fusion rules", results["test_by_fusion"], headline)
    diagnosis = results["diagnostics"]["multimodal"]
    _show_confusion(terminal, diagnosis["confusion"], evaluation)
    if calibration := diagnosis.get("calibration"):
        rows = [list(map(_cell, values)) for values in zip(*calibration.values(), strict=True)]
        _show_table(terminal, "Calibration", list(calibration), rows)
    terminal.tell(f"all modalities together: {headline} {test['multimodal'][headline]:.3f}")


def _show_scores(
    terminal: Terminal, title: str, scores: Mapping[str, Mapping[str, float]], headline: str
) -> None:
    """Print a row for each name: the headline metric, and as many others as fit."""
    metrics = sorted(next(iter(scores.values())), key=lambda metric: metric != headline)
    room = terminal.console.width - max(map(len, scores)) - 4
    ends = itertools.accumulate(max(len(metric), 6) + 3 for metric in metrics)
    fitting = metrics[: max(sum(end <= room for end in ends), 1)]
    rows = [[name, *(_cell(row[metric]) for metric in fitting)] for name, row in scores.items()]
    _show_table(terminal, title, ["", *fitting], rows)
    if len(fitting) < len(metrics):
        terminal.tell("more metrics on a wider terminal, and all of them with out=….json", "dim")


def _show_confusion(
    terminal: Terminal, confusion: Mapping[str, Any], evaluation: Evaluation
) -> None:
    names, classes = evaluation.label_names, list(map(str, confusion["classes"]))
    matrices = {"": confusion["counts"]}
    if evaluation.task is Task.multilabel:
        labels = names or [f"label {number}" for number in range(len(confusion["counts"]))]
        matrices = dict(zip((f" of {label}" for label in labels), confusion["counts"], strict=True))
    elif names:
        classes = list(names)
    for of, counts in matrices.items():
        rows = [[f"true {name}", *map(str, row)] for name, row in zip(classes, counts, strict=True)]
        title = f"Confusion{of}: rows are true, columns predicted"
        _show_table(terminal, title, ["", *classes], rows)


def _show_table(
    terminal: Terminal, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    terminal.tell(title, "bold")
    table = Table()
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    terminal.console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
