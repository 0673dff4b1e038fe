"""What a report consists of: panels in sections, for the page, ``report.md`` and the terminal."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from server.report.figures import Line, Pen, file_of, line_figure

MISSING = "n/a"  #: stands for a number that is not known
STRONGEST = 8  #: the strongest colour of a cell; the style sheet has a class for each


class Cell(NamedTuple):
    """A coloured cell: its text, and how strong its colour is, from 0 to `STRONGEST`."""

    text: str
    level: int


@dataclass(frozen=True)
class Panel:
    """A table, a chart with its data, or sentences."""

    title: str = ""
    #: ``table`` of numbers; ``words`` and ``lines``, tables of text; ``heat`` and ``wide heat``,
    #: tables with coloured cells; ``chart``; ``notes``.
    kind: Literal["table", "words", "lines", "heat", "wide heat", "chart", "notes"] = "table"
    header: Sequence[str] = ()  #: of a table, or of a chart's data; the first column names the rows
    rows: Sequence[Sequence[str | Cell]] = ()
    note: str = ""
    lines: Sequence[str] = ()  #: sentences of notes
    image: str = ""  #: address of a chart's image
    file: str = ""  #: name and content of the file that ``report.md`` shows of a chart, if any
    png: bytes = b""
    folded: bool = False  #: whether it is closed at first


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    anchor: str  #: in the table of contents too
    title: str
    panels: Sequence[Panel] = ()  #: inside it; charts and heat tables stand side by side
    sections: Sequence["Section"] = ()
    facts: Sequence[tuple[str, str]] = ()  #: name and value of what is worth a glance
    folded: bool | None = None  #: whether it is closed at first; None: it cannot be closed

    def of_kind(self, kind: str) -> list[Panel]:
        """Return the panels of a kind."""
        return [panel for panel in self.panels if panel.kind == kind]


def notes(*lines: str, title: str = "") -> Panel:
    """Return a panel of sentences."""
    return Panel(title, "notes", lines=lines)


def chart(
    title: str,
    figure: Figure,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
    file: str = "",
) -> Panel:
    """Return a panel of a figure and its data; with a file, ``report.md`` shows it too.

    The page has it as an image with its content in the address: nothing in that can run or load.
    """
    png = file_of(figure, "png") if file else b""
    image = f"data:image/svg+xml;base64,{base64.b64encode(file_of(figure, 'svg')).decode()}"
    return Panel(title, "chart", header, rows, note, image=image, file=file, png=png)


def line_chart(
    title: str,
    label: str,
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    note: str = "",
    **options: Any,
) -> Panel:
    """Return a chart of lines over the rounds; for the options see `line_figure`."""
    columns = []
    for line in lines.values():
        points = zip(line.x, line.y, line.spread or [math.nan] * len(line.x), strict=True)
        # Without "± n/a" where there is no sd.
        cells = {x: f"{shown(y)} ± {shown(sd, 2)}" for x, y, sd in points}
        columns.append({x: cell.removesuffix(f" ± {MISSING}") for x, cell in cells.items()})
    places = sorted(set().union(*columns))
    rows = [[shown(x), *(cells.get(x, "") for cells in columns)] for x in places]
    figure = line_figure(lines, pens, label, **options)
    return chart(title, figure, ("round", *lines), rows, note)


def shown(value: float, digits: int = 4) -> str:
    """Return a number in a few significant digits; whole ones whole."""
    if math.isnan(value):
        return MISSING
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.{digits}g}"
