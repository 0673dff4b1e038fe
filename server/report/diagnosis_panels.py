"""What a model confuses, and whether its certainty can be trusted; see `common.diagnostics`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.report.colours import STRONGEST, Pens
from server.report.figures import calibration_figure
from server.report.records import number
from server.report.results import TOGETHER
from server.report.series import Line
from server.report.view import MISSING, Cell, Panel, chart, notes, shown

#: Classes up to which a confusion matrix is shown as one.
MOST_CLASSES = 20

#: Classes up to which matrices stand side by side.
_SIDE_BY_SIDE = 12

#: Of larger ones, the confusions that are listed.
_CONFUSIONS = 20


def diagnosis_panels(anchor: str, summary: Mapping[str, Any], pens: Pens) -> Iterator[Panel]:
    """Yield the calibration, and the confusions of all modalities and of each one.

    A damaged summary raises the error of the wrong access.
    """
    diagnostics: Mapping[str, Mapping[str, Any]] = summary.get("diagnostics", {})
    if not diagnostics:
        older = "the version that made this run did not record them."
        none = "this run has no single model that predicts."
        yield notes(f"Confusions and calibration: {none if 'diagnostics' in summary else older}")
        return
    tables = {
        name: parts["calibration"] for name, parts in diagnostics.items() if "calibration" in parts
    }
    if tables:
        yield _calibration(anchor, tables, pens)
    else:
        yield notes("Calibration: this model predicts numbers without a deviation.")
    for place, (name, parts) in enumerate(diagnostics.items()):
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


def _calibration(
    anchor: str, tables: Mapping[str, Mapping[str, Sequence[Any]]], pens: Pens
) -> Panel:
    if all("nominal" in table for table in tables.values()):
        x, y = "nominal", "observed"
        labels = ("promised coverage", "observed coverage")
        what = "Central intervals of what is predicted."
    else:
        x, y = labels = ("probability", "frequency")
        what = "Bins of equal width."
    lines = {
        name: Line(list(map(number, table[x])), list(map(number, table[y])))
        for name, table in tables.items()
    }
    columns = list(dict.fromkeys(column for table in tables.values() for column in table))
    rows = [
        [_titled(name), *(shown(number(table[column][place]), 3) for column in columns)]
        for name, table in tables.items()
        for place in range(len(table[columns[0]]))
    ]
    figure = calibration_figure(lines, pens, labels)
    note = f"{what} Below the dotted line: too sure; above: not sure enough."
    return chart(f"{anchor}-calibration", "Calibration", figure, ("", *columns), rows, note)
