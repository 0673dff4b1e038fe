"""What `utmp-predict` and `utmp-evaluate` show."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from common.data.dataset import describe_shape
from common.data.item_stream import ItemStream
from common.metrics import HEADLINE
from common.task import Task
from server.prediction.predictor import Predictor
from server.terminal import Terminal

if TYPE_CHECKING:
    # Not for utmp-predict, which needs nothing of a run's code.
    from server.prediction.evaluation import Evaluation

#: Columns of what is printed into a file.
_FILE_WIDTH = 200


# Predictions ------------------------------------------------------------------------------------


def show_input(terminal: Terminal, predictor: Predictor, path: str, stream: ItemStream) -> None:
    """Print the model and what it predicts."""
    takes = ", ".join(
        f"{name} ({describe_shape(shape)})" for name, shape in predictor.features.items()
    )
    terminal.tell(f"model {path}: {predictor.task}; {takes}; fusion {predictor.fusion.rule}")
    terminal.tell(f"input: {stream.format}, {stream.why}; {stream.count} items")
    for what, count in stream.cleaning.items():
        terminal.tell(f"cleaned: {count} {what}")


@contextmanager
def progress(terminal: Terminal, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar while items are predicted; the function advances it by so many items."""
    bar = Progress(
        TextColumn("predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeRemainingColumn(),
        console=terminal.console,
        transient=True,
        disable=not terminal.console.is_terminal,
    )
    with bar:
        task = bar.add_task("predicting", total=total)
        yield lambda items: bar.advance(task, items)


def show_predicted(
    terminal: Terminal, from_modalities: Mapping[str, int], not_finite: Mapping[str, int], out: str
) -> None:
    """Print which modalities the predictions are from.

    Parameters
    ----------
    terminal
        Where to print.
    from_modalities
        Modalities joined by ``+``, "" for none, to the number of items.
    not_finite
        Modality to the number of its values that are NaN or infinite.
    out
        The file.
    """
    for names, count in sorted(from_modalities.items(), key=lambda item: (-item[1], item[0])):
        if names:
            terminal.tell(f"{count} items from {names}")
    if without := from_modalities.get(""):
        terminal.warn(f"{without} items have no modality: they get no prediction")
    for name, count in not_finite.items():
        if count:
            terminal.warn(f"{count} values of {name} are not finite and count as the mean")
    terminal.tell(f"predictions: {out}")


# Evaluations ------------------------------------------------------------------------------------


def show_evaluation(terminal: Terminal, evaluation: "Evaluation") -> None:
    """Print scores, subsets, confusions and calibration; wide tables go into a file whole."""
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
    """Print a row for each name: the headline metric, and others that there is room for."""
    others = [metric for metric in next(iter(scores.values())) if metric != headline]
    metrics = [headline, *others]
    room = terminal.console.width - max(map(len, scores)) - 4
    ends = itertools.accumulate(max(len(metric), 6) + 3 for metric in metrics)
    fitting = [metric for metric, end in zip(metrics, ends, strict=True) if end <= room]
    fitting = fitting or [headline]
    rows = [[name, *(_cell(row[metric]) for metric in fitting)] for name, row in scores.items()]
    _show_table(terminal, title, ["", *fitting], rows)
    if len(fitting) < len(metrics):
        terminal.tell("more metrics on a wider terminal, and all of them with out=….json", "dim")


def _show_confusion(
    terminal: Terminal, confusion: Mapping[str, Any], evaluation: "Evaluation"
) -> None:
    names, classes = evaluation.label_names, [str(each) for each in confusion["classes"]]
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
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    terminal.console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
