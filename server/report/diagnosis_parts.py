"""What a run's model takes for what, and whether its certainty can be believed.

From `common.diagnostics`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.report.charts import square_chart
from server.report.drawing import Line
from server.report.palette import Pens
from server.report.records import Details, number
from server.report.results import TOGETHER
from server.report.round_parts import OLDER, left_out
from server.report.view import MISSING, STRONGEST, Cell, Grid, Heat, Notes, Part, shown

#: Classes up to which a confusion matrix is shown as one.
MOST_CLASSES = 20

#: Classes up to which matrices stand side by side.
_SIDE_BY_SIDE = 12

#: Of larger ones, the confusions that are told.
_CONFUSIONS = 20


def diagnosis_parts(anchor: str, details: Details, pens: Pens) -> Iterator[Part]:
    """Draw the calibration, and tabulate the confusions of all modalities and of each."""
    if not details.summary.get("diagnostics"):
        known = "diagnostics" in details.summary
        yield left_out(
            "Confusions and calibration", "no one model predicts in this run." if known else OLDER
        )
        return
    found: Mapping[str, Mapping[str, Any]] = details.summary["diagnostics"]
    tables = {title: each["calibration"] for title, each in found.items() if "calibration" in each}
    if tables:
        yield _calibration(anchor, tables, pens)
    else:
        yield Notes(("Calibration: this model gives its numbers without a deviation.",))
    for place, (title, each) in enumerate(found.items()):
        yield confusion_part(_titled(title), each["confusion"], explained=place == 0)


def _titled(title: str) -> str:
    return "all modalities" if title == TOGETHER else title


def confusion_part(title: str, confusion: Mapping[str, Any], *, explained: bool = True) -> Part:
    """Return a confusion matrix, or of one that is too large its greatest confusions.

    Parameters
    ----------
    title
        What predicted.
    confusion
        From `common.diagnostics.confusion`.
    explained
        Whether it says how to read it.
    """
    names, counts = [str(each) for each in confusion["classes"]], confusion["counts"]
    if counts and isinstance(counts[0][0], list):
        return _label_table(title, counts)
    if len(names) > MOST_CLASSES:
        return _greatest(title, names, counts)
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row)
        cells = [Cell(str(int(each)), _level(each, total)) for each in row]
        rows.append((name, tuple(cells)))
    note = "Rows: the truth; columns: what was predicted. The stronger, the more of the row."
    heading = f"Confusions: {title}"
    kind = "heat" if len(names) <= _SIDE_BY_SIDE else "wide heat"
    return Heat(heading, "truth", tuple(names), tuple(rows), note if explained else "", kind)


def _level(part: float, total: float) -> int:
    return round(STRONGEST * part / total) if total else 0


def _greatest(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Grid:
    wrong = [
        (each, names[row], names[column], each / sum(line))
        for row, line in enumerate(counts)
        for column, each in enumerate(line)
        if row != column and each
    ]
    # The most frequent first; of equals, the first.
    wrong.sort(key=lambda found: -found[0])
    right = sum(line[place] for place, line in enumerate(counts))
    rows = tuple((a, b, str(n), f"{share:.0%}") for n, a, b, share in wrong[:_CONFUSIONS])
    note = f"{len(names)} classes; {right} of {sum(map(sum, counts))} items are right."
    header = ("truth", "predicted", "items", "of that class")
    return Grid(header, rows, f"Greatest confusions: {title}", note)


def _label_table(title: str, counts: Sequence[Sequence[Sequence[int]]]) -> Grid:
    rows = []
    for label, ((true_absent, false_present), (false_absent, true_present)) in enumerate(counts):
        cells = (true_present, false_present, false_absent, true_absent)
        precision = _share(true_present, true_present + false_present)
        recall = _share(true_present, true_present + false_absent)
        rows.append((str(label), *map(str, cells), precision, recall))
    header = ("label", "found", "false alarm", "missed", "rightly absent", "precision", "recall")
    return Grid(header, tuple(rows), f"Confusions: {title}", "Each label by itself.")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else MISSING


def _calibration(
    anchor: str, tables: Mapping[str, Mapping[str, Sequence[Any]]], pens: Pens
) -> Part:
    numbers = all("nominal" in table for table in tables.values())
    x, y = ("nominal", "observed") if numbers else ("probability", "frequency")
    lines = {
        name: Line([number(each) for each in table[x]], [number(each) for each in table[y]])
        for name, table in tables.items()
    }
    labels = (
        ("coverage that was promised", "coverage that came about")
        if numbers
        else ("probability", "frequency")
    )
    note = (
        "Central intervals of what is predicted. Below the dotted line: too sure; above: not sure "
        "enough."
        if numbers
        else "Bins of equal width. Below the dotted line: too sure; above: not sure enough."
    )
    return square_chart(
        f"{anchor}-calibration",
        "Calibration",
        labels,
        lines,
        pens,
        data=_calibration_table(tables),
        note=note,
    )


def _calibration_table(tables: Mapping[str, Mapping[str, Sequence[Any]]]) -> Grid:
    columns = list(dict.fromkeys(column for table in tables.values() for column in table))
    rows = [
        (_titled(name), *(shown(number(table[column][place]), 3) for column in columns))
        for name, table in tables.items()
        for place in range(len(table[columns[0]]))
    ]
    return Grid(("", *columns), tuple(rows))
