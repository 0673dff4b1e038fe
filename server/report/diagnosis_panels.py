"""What a model confuses, and whether its certainty can be trusted; see `common.metrics`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from server.report.figures import Line, Pens, calibration_figure, scatter_figure
from server.report.panels import MISSING, STRONGEST, Cell, Panel, chart, notes, shown
from server.report.records import TOGETHER

MOST_CLASSES = 20  #: classes up to which a confusion matrix is shown as one
_SIDE_BY_SIDE = 12  #: classes up to which matrices stand side by side
_CONFUSIONS = 20  #: of larger ones, the confusions that are listed
_TITLES = {TOGETHER: "all modalities"}


def diagnosis_panels(diagnostics: Mapping[str, Mapping[str, Any]], pens: Pens) -> Iterator[Panel]:
    """Yield numbers against the truth, calibration, and confusions, of all and of each modality.

    Damaged diagnostics raise the error of the wrong access.
    """
    if pairs := diagnostics.get(TOGETHER, {}).get("predictions"):
        yield _predictions(pairs)
    tables = {k: parts["calibration"] for k, parts in diagnostics.items() if "calibration" in parts}
    if tables:
        yield _calibration(tables, pens)
    else:
        yield notes("Calibration: this model predicts numbers without a deviation.")
    matrices = {k: parts["confusion"] for k, parts in diagnostics.items() if "confusion" in parts}
    for place, (name, matrix) in enumerate(matrices.items()):
        yield confusion_panel(_TITLES.get(name, name), matrix, explained=place == 0)


def confusion_panel(title: str, confusion: Mapping[str, Any], *, explained: bool = True) -> Panel:
    """Return a confusion matrix of `common.metrics`; of a large one its greatest confusions."""
    names, counts = [str(name) for name in confusion["classes"]], np.array(confusion["counts"])
    if counts.ndim == 3:
        return _label_table(title, counts.tolist())
    if len(names) > MOST_CLASSES:
        return _greatest(title, names, counts)
    strength = np.round(STRONGEST * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    rows: list[list[str | Cell]] = [
        [name, *(Cell(str(items), int(level)) for items, level in zip(row, levels, strict=True))]
        for name, row, levels in zip(names, counts, strength, strict=True)
    ]
    note = "Rows: the truth; columns: what was predicted. The stronger, the more of the row."
    kind: Literal["heat", "wide heat"] = "heat" if len(names) <= _SIDE_BY_SIDE else "wide heat"
    header, note = ("truth", *names), note if explained else ""
    return Panel(f"Confusions: {title}", kind, header, rows, note)


def _greatest(title: str, names: Sequence[str], counts: np.ndarray) -> Panel:
    wrong = counts - np.diag(np.diag(counts))
    # The most frequent first; of equals, the first.
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    rows = [
        (names[a], names[b], str(wrong[a, b]), f"{wrong[a, b] / counts[a].sum():.0%}")
        for a, b in places
        if wrong[a, b]
    ]
    note = f"{len(names)} classes; {np.trace(counts)} of {counts.sum()} items are right."
    header = ("truth", "predicted", "items", "of that class")
    return Panel(f"Greatest confusions: {title}", header=header, rows=rows, note=note)


def _label_table(title: str, counts: Sequence[Sequence[Sequence[int]]]) -> Panel:
    rows = []
    for label, ((absent, false_alarms), (missed, hits)) in enumerate(counts):
        predicted, true = hits + false_alarms, hits + missed
        rates = [f"{hits / of:.2f}" if of else MISSING for of in (predicted, true)]
        rows.append((str(label), *map(str, (hits, false_alarms, missed, absent)), *rates))
    header = ("label", "hits", "false alarms", "missed", "rightly absent", "precision", "recall")
    return Panel(f"Confusions: {title}", header=header, rows=rows, note="Each label by itself.")


def _calibration(tables: Mapping[str, Mapping[str, Sequence[float | None]]], pens: Pens) -> Panel:
    x, y, labels, what = "probability", "frequency", None, "Bins of equal width."
    if all("nominal" in table for table in tables.values()):
        x, y, labels = "nominal", "observed", ("promised coverage", "observed coverage")
        what = "Central intervals of what is predicted."
    lines, rows = {}, []
    header = list(dict.fromkeys(name for table in tables.values() for name in table))
    for name, table in tables.items():
        # Null, of an empty bin, becomes NaN.
        numbers = {column: np.array(table[column], dtype=float).tolist() for column in header}
        lines[name] = Line(numbers[x], numbers[y])
        cells = zip(*numbers.values(), strict=True)
        rows += [[_TITLES.get(name, name), *(shown(value, 3) for value in row)] for row in cells]
    figure = calibration_figure(lines, pens, *(labels or (x, y)))
    note = f"{what} Below the dotted line: too sure; above: not sure enough."
    points = [point for line in lines.values() for point in zip(line.x, line.y, strict=True)]
    return chart("Calibration", figure, ("", *header), rows, note, points=points)


def _predictions(table: Mapping[str, Sequence[float]]) -> Panel:
    """Return a chart of what is predicted from all modalities against the truth."""
    truth, predicted = table["truth"], table["predicted"]
    figure = scatter_figure(truth, predicted, "truth", "predicted")
    rows = [[shown(x), shown(y)] for x, y in zip(truth, predicted, strict=True)]
    points = list(zip(truth, predicted, strict=True))
    note = f"{len(rows)} test items, all modalities together; dotted: right."
    title, header = "Predicted against true", ("truth", "predicted")
    return chart(title, figure, header, rows, note, points=points)
