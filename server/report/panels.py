"""What a report consists of: panels in sections, for the page, ``report.md`` and the terminal."""

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from server.report.figures import Line, Pen, file_of, line_figure

MISSING = "n/a"  #: stands for a number that is not known
STRONGEST = 8  #: the strongest colour of a cell; the style sheet has a class for each


#: A place on the axes of a chart; None: anywhere along that axis.
Point = tuple[float | None, float | None]


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
    #: Of each row of a chart's data, where it is: shares of the image's width and height, or null.
    places: str = "[]"
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
    points: Sequence[Point] = (),
) -> Panel:
    """Return a panel of a figure and its data; with a file, ``report.md`` shows it too.

    The page has it as an image with its content in the address: nothing in that can run or load.
    `points` say where each row is on the axes, so that the page can show its values there.
    """
    png = file_of(figure, "png") if file else b""
    image = f"data:image/svg+xml;base64,{base64.b64encode(file_of(figure, 'svg')).decode()}"
    places = json.dumps(_shares(figure, points))
    return Panel(title, "chart", header, rows, note, image=image, places=places, file=file, png=png)


def _shares(figure: Figure, points: Sequence[Point]) -> list[list[float | None]]:
    """Return points of a figure's axes as shares of its width and, from above, of its height."""
    if not points:
        return []
    figure.draw_without_rendering()
    axes = figure.axes[0]
    known = [[math.nan if value is None else value for value in point] for point in points]
    pixels = axes.transData.transform(np.nan_to_num(np.array(known, float), nan=1.0))
    x, y = figure.transFigure.inverted().transform(pixels).T
    shares = np.where(np.isfinite(np.array(known, float)), np.stack([x, 1 - y], axis=1), np.nan)
    return [[None if math.isnan(v) else round(v, 4) for v in row] for row in shares.tolist()]


def as_csv(panel: Panel) -> str:
    """Return the address of a chart's data as a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([panel.header, *panel.rows])
    content = base64.b64encode(text.getvalue().encode("utf-8", "replace")).decode()
    return f"data:text/csv;charset=utf-8;base64,{content}"


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
    rounds: list[Point] = [(x, None) for x in places]
    return chart(title, figure, ("round", *lines), rows, note, points=rounds)


def shown(value: float, digits: int = 4) -> str:
    """Return a number in a few significant digits; whole ones whole."""
    if math.isnan(value):
        return MISSING
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.{digits}g}"
