"""What the page consists of: panels in sections, which the templates turn into HTML."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from server.report.colours import Pen
from server.report.figures import line_figure, to_svg
from server.report.series import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Stands for a number that is not known.
MISSING = "n/a"


class Cell(NamedTuple):
    """A coloured cell: its text, and how strong its colour is, from 0 to `STRONGEST`."""

    text: str
    level: int


@dataclass(frozen=True)
class Panel:
    """A table, a chart with its data, or sentences.

    Attributes
    ----------
    title, note
        Above and below it.
    kind
        ``table`` of numbers; ``words`` and ``lines``, tables of text; ``heat`` and ``wide heat``,
        tables with coloured cells; ``chart``; ``notes``.
    header, rows
        Cells of a table, or of a chart's data; the first column names the rows.
    lines
        Sentences of notes.
    svg
        Element of a chart, trusted.
    folded
        Whether it is closed at first.
    """

    title: str = ""
    kind: Literal["table", "words", "lines", "heat", "wide heat", "chart", "notes"] = "table"
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str | Cell]] = ()
    note: str = ""
    lines: Sequence[str] = ()
    svg: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    anchor, title
        In the table of contents too.
    panels, sections
        Inside it; charts and heat tables stand side by side.
    facts
        Name and value of what is worth a glance.
    folded
        Whether it is closed at first; None: it cannot be closed.
    """

    anchor: str
    title: str
    panels: Sequence[Panel] = ()
    sections: Sequence["Section"] = ()
    facts: Sequence[tuple[str, str]] = ()
    folded: bool | None = None


def notes(*lines: str, title: str = "") -> Panel:
    """Return a panel of sentences."""
    return Panel(title, "notes", lines=lines)


def chart(
    anchor: str,
    title: str,
    figure: "Figure",
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
) -> Panel:
    """Return a panel of a figure; the anchor is unique on the page."""
    svg = to_svg(figure, anchor, f"{title}. {note}")
    return Panel(title, "chart", header, rows, note, svg=svg)


def line_chart(
    anchor: str,
    title: str,
    y_label: str,
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    note: str = "",
    **options: Any,
) -> Panel:
    """Return a chart of lines over the rounds; for the options see `line_figure`."""
    places = sorted({at for line in lines.values() for at in line.x})
    columns = [_line_cells(line) for line in lines.values()]
    rows = [[shown(at), *(cells.get(at, "") for cells in columns)] for at in places]
    figure = line_figure(lines, pens, ("round", y_label), **options)
    return chart(anchor, title, figure, ("round", *lines), rows, note)


def _line_cells(line: Line) -> dict[float, str]:
    sds = line.spread or [math.nan] * len(line.x)
    return {
        at: shown(y) if math.isnan(sd) else f"{shown(y)} ± {shown(sd, 2)}"
        for at, y, sd in zip(line.x, line.y, sds, strict=True)
    }


def shown(value: float, digits: int = 4) -> str:
    """Return a number in a few significant digits; whole ones whole."""
    if math.isnan(value):
        return MISSING
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.{digits}g}"


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of those that are finite; NaN for none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
