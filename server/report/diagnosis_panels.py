"""What a model confuses, and whether its certainty can be trusted; see `common.diagnostics`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from server.report.figures import Pens, calibration_figure
from server.report.panels import MISSING, STRONGEST, Cell, Panel, chart, notes, shown
from server.report.records import TOGETHER, Summary
from server.report.series import Line

#: Classes up to which a confusion matrix is shown as one.
MOST_CLASSES = 20

#: Classes up to which matrices stand side by side.
_SIDE_BY_SIDE = 12

#: Of larger ones, the confusions that are listed.
_CONFUSIONS = 20


def diagnosis_panels(summary: Summary, pens: Pens) -> Iterator[Panel]:
    """Yield the calibration, and the confusions of all modalities and of each one.

    A damaged summary raises the error of the wrong access.
    """
    if not summary.diagnostics:
        older = "the version that made this run did not record them."
        none = "this run has no single model that predicts."
        recorded = "diagnostics" in summary.model_fields_set
        yield notes(f"Confusions and calibration: {none if recorded else older}")
        return
    tables = {
        name: parts["calibration"]
        for name, parts in summary.diagnostics.items()
        if "calibration" in parts
    }
    if tables:
        yield _calibration(tables, pens)
    else:
        yield notes("Calibration: this model predicts numbers without a deviation.")
    for place, (name, parts) in enumerate(summary.diagnostics.items()):
        yield confusion_panel(_titled(name), parts["confusion"], explained=place == 0)


def _titled(name: str) -> str:
    return "all modalities" if name == TOGETHER else name


def confusion_panel(title: str, confusion: Mapping[str, Any], *, explained: bool = True) -> Panel:
    """Return a confusion matrix of `common.diagnostics`; of a large one its greatest confusions."""
    names, counts = [str(name) for name in confusion["classes"]], confusion["counts"]
    if counts and isinstance(counts[0][0], list):
        return _label_table(title, counts)
    if len(names) > MOST_CLASSES:
        return _greatest(title, names, counts)
    rows: list[list[str | Cell]] = [
        [name, *(Cell(str(int(items)), _level(items, sum(row))) for items in row)]
        for name, row in zip(names, counts, strict=True)
    ]
    note = "Rows: the truth; columns: what was predicted. The stronger, the more of the row."
    return Panel(
        f"Confusions: {title}",
        "heat" if len(names) <= _SIDE_BY_SIDE else "wide heat",
        ("truth", *names),
        rows,
        note if explained else "",
    )


def _level(part: float, total: float) -> int:
    return round(STRONGEST * part / total) if total else 0


def _greatest(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Panel:
    wrong = [
        (names[row], names[column], items, items / sum(line))
        for row, line in enumerate(counts)
        for column, items in enumerate(line)
        if row != column and items
    ]
    # The most frequent first; of equals, the first.
    wrong.sort(key=lambda confusion: -confusion[2])
    right = sum(line[place] for place, line in enumerate(counts))
    rows = [(a, b, str(items), f"{share:.0%}") for a, b, items, share in wrong[:_CONFUSIONS]]
    note = f"{len(names)} classes; {right} of {sum(map(sum, counts))} items are right."
    header = ("truth", "predicted", "items", "of that class")
    return Panel(f"Greatest confusions: {title}", header=header, rows=rows, note=note)


def _label_table(title: str, counts: Sequence[Sequence[Sequence[int]]]) -> Panel:
    rows = []
    for label, ((true_absent, false_present), (false_absent, true_present)) in enumerate(counts):
        cells = (true_present, false_present, false_absent, true_absent)
        precision = _share(true_present, true_present + false_present)
        recall = _share(true_present, true_present + false_absent)
        rows.append((str(label), *map(str, cells), precision, recall))
    header = ("label", "hits", "false alarms", "missed", "rightly absent", "precision", "recall")
    note = "Each label by itself."
    return Panel(f"Confusions: {title}", header=header, rows=rows, note=note)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else MISSING


def _calibration(tables: Mapping[str, Mapping[str, Sequence[float | None]]], pens: Pens) -> Panel:
    if all("nominal" in table for table in tables.values()):
        x, y = "nominal", "observed"
        labels = ("promised coverage", "observed coverage")
        what = "Central intervals of what is predicted."
    else:
        x, y = labels = ("probability", "frequency")
        what = "Bins of equal width."
    # Null, of an empty bin, becomes NaN.
    numbers = {
        name: {column: np.array(values, dtype=float).tolist() for column, values in table.items()}
        for name, table in tables.items()
    }
    lines = {name: Line(columns[x], columns[y]) for name, columns in numbers.items()}
    header = list(dict.fromkeys(column for columns in numbers.values() for column in columns))
    rows = [
        [_titled(name), *map(shown, row, repeat(3))]
        for name, columns in numbers.items()
        for row in zip(*(columns[column] for column in header), strict=True)
    ]
    note = f"{what} Below the dotted line: too sure; above: not sure enough."
    figure = calibration_figure(lines, pens, labels)
    return chart("Calibration", figure, ("", *header), rows, note)
