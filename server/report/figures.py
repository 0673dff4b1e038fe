"""The charts of a report: series over the rounds, and matplotlib's figures of them.

The page takes a figure as SVG, ``report.md`` as PNG. Sizes are in inches: a narrow screen shows one
chart in a row, a wide one several. The colours are those of a light ground; on a dark one the page
inverts charts.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from common.errors import printable
from server.report.comparison import spread
from server.report.records import TOGETHER

TEXT, MUTED = "#1a1e24", "#59616c"

#: The first four are far apart for colour-blind people too; lines differ in their dashes, marks in
#: their shapes besides.
MODALITY_COLOURS = ("#004e98", "#d45500", "#00996b", "#c068c0", "#5e4b00", "#64798a")
STEP_COLOURS = ("#332288", "#882255", "#11708f", "#7a6a00", "#8a4b2a", "#6b7280")
BETTER, WORSE = MODALITY_COLOURS[:2]

_DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))

LEGEND = 8  #: the most names in a legend; more are in the data table alone

_WIDTH, _HEIGHT, _TALLEST = 3.8, 2.6, 30.0

_LARGEST = 1e30  #: numbers above this are drawn as gaps: no axis holds them

_styled = matplotlib.rc_context(fname=Path(__file__).parent / "templates" / "report.mplstyle")

_DOTTED: Any = {"color": MUTED, "linewidth": 0.8, "linestyle": (0, (2, 2))}

Series = dict[int, float]  #: round to value


# Lines over the rounds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A series with its band, if any; NaN is a gap. `spread` is the sd that a table shows."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    spread: Sequence[float] = ()


def over_rounds(rounds: Mapping[int, Mapping[str, float]]) -> dict[str, Series]:
    """Turn the values by name of each round into a series of each name."""
    series: dict[str, Series] = {}
    for number, values in rounds.items():
        for name, value in values.items():
            series.setdefault(name, {})[number] = value
    return series


def lines_of(rounds: Mapping[int, Mapping[str, float]]) -> dict[str, Line]:
    """Return a line of each name through the values of each round, with gaps where it has none."""
    return {
        name: Line(list(rounds), [series.get(number, math.nan) for number in rounds])
        for name, series in over_rounds(rounds).items()
    }


def band(seeds: Sequence[Series], rounds: Sequence[int]) -> Line:
    """Return the mean over the seeds ± one sd at some rounds; no band for one seed."""
    points = [spread(one[number] for one in seeds if number in one) for number in rounds]
    means, sds = [point.mean for point in points], [point.sd for point in points]
    if len(seeds) == 1:
        return Line(rounds, means)
    widths = np.nan_to_num(sds)  # no width where only one seed of several has the round
    return Line(rounds, means, list(means - widths), list(means + widths), sds)


def envelope(rounds: Sequence[int], values: Iterable[Iterable[float]]) -> Line:
    """Return the median of many values at each round, in a band from the least to the greatest."""
    points = [sorted(filter(math.isfinite, column)) or [math.nan] for column in values]
    lows, highs = [point[0] for point in points], [point[-1] for point in points]
    return Line(rounds, list(map(median, points)), lows, highs)


# Pens -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pen:
    """How a series is drawn: colour, lengths of dashes, and a width in points."""

    colour: str = MUTED
    dashes: tuple[float, ...] = ()
    width: float = 1.4


class Pens(dict[str, Pen]):
    """Name to pen; a muted one for an unknown name."""

    def __missing__(self, name: str) -> Pen:
        return Pen()

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return names in the order of the pens, unknown ones last."""
        given = dict.fromkeys(names)
        return [*(name for name in self if name in given), *(n for n in given if n not in self)]


def modality_pens(names: Iterable[str]) -> Pens:
    """Return a pen for all modalities together, and one for each in its order."""
    pens = Pens({TOGETHER: Pen(TEXT, width=2.2)})
    for place, name in enumerate(name for name in dict.fromkeys(names) if name != TOGETHER):
        turn, index = divmod(place, 6)
        pens[name] = Pen(MODALITY_COLOURS[index], _DASHES[(index + turn + 1) % len(_DASHES)])
    return pens


def step_pens(names: Iterable[str]) -> Pens:
    """Return a pen for each of a few methods or phases."""
    return Pens(zip(names, map(Pen, cycle(STEP_COLOURS), cycle(_DASHES)), strict=False))


# Charts -----------------------------------------------------------------------------------------


@_styled
def line_figure(
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    label: str,
    *,
    log: bool = False,
    least: float = 0.0,
    legend: Mapping[str, str] | None = None,
) -> Figure:
    """Draw series, by name, over the rounds; with `log`, logarithmic where the values span much.

    The y axis spans `least` at least, so that a tiny change does not look like much. The legend
    maps words to the names of lines, by default all to themselves.
    """
    figure, axes = _axes("round", label)
    handles = {name: _draw_line(axes, line, pens[name], log) for name, line in lines.items()}
    if log:
        _log_scale(axes, lines.values())
    axes.set_ylim(*_widened(axes.get_ylim(), least))
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    words = {word: handles[name] for word, name in legend.items()} if legend else handles
    if len(words) <= LEGEND:
        _legend(figure, words)
    return figure


@_styled
def calibration_figure(
    lines: Mapping[str, Line], pens: Mapping[str, Pen], x_label: str, y_label: str
) -> Figure:
    """Draw shares against shares, with the diagonal on which they are equal."""
    figure, axes = _axes(x_label, y_label, 3.5)
    axes.plot([0, 1], [0, 1], **_DOTTED)
    handles = {name: _draw_line(axes, line, pens[name], dots=True) for name, line in lines.items()}
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.grid()
    _legend(figure, handles)
    return figure


@_styled
def scatter_figure(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> Figure:
    """Draw points, with the diagonal on which both are equal, over one range."""
    figure, axes = _axes(x_label, y_label, 3.5)
    known = _drawable([*x, *y])
    low, high = _widened((float(np.nanmin(known)), float(np.nanmax(known))), 1e-3)
    axes.plot([low, high], [low, high], **_DOTTED)
    axes.scatter(_drawable(x), _drawable(y), s=9, color=MODALITY_COLOURS[0], alpha=0.5, linewidth=0)
    edge = 0.03 * (high - low)
    axes.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge), aspect="equal")
    axes.grid()
    return figure


@_styled
def bar_figure(
    starts: Sequence[float], width: float, parts: Mapping[str, Sequence[float]], label: str
) -> Figure:
    """Draw bars, which begin at some rounds and are stacked of parts, each at least 0 high."""
    figure, axes = _axes("round", label)
    below, handles = np.zeros(len(starts)), {}
    style: Any = {"width": 0.86 * width, "align": "edge", "linewidth": 0}
    for (name, values), pen in zip(parts.items(), step_pens(parts).values(), strict=True):
        heights = np.nan_to_num(_drawable(values))
        handles[name] = axes.bar(starts, heights, bottom=below, color=pen.colour, **style)
        below = below + heights
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if len(parts) > 1:
        _legend(figure, handles)
    return figure


@dataclass(frozen=True)
class Mark:
    """A value with what it reaches to either side; NaN: not drawn."""

    value: float
    reach: float = math.nan
    colour: str = TEXT
    shape: str = "o"


@_styled
def mark_figure(
    rows: Sequence[str],
    marks: Mapping[str, Sequence[Mark]],
    label: str,
    *,
    reference: float | None = None,
    least: float = 0.0,
) -> Figure:
    """Draw marks of one or several series, a row for each name, and a dotted line, if any.

    The x axis spans `least` at least.
    """
    names = list(map(_wrapped, rows))
    # Rows are equally far apart, so the longest label sets their height.
    lines = max((name.count("\n") + 1.3 for name in names), default=0)
    figure, axes = _axes(label, "", min(0.75 + 0.18 * len(rows) * max(1.5, lines), _TALLEST))
    if reference is not None:
        axes.axvline(reference, **_DOTTED)
    handles: dict[str, Any] = {}
    for series, column in marks.items():
        for place, mark in enumerate(column):
            value, reach = _drawable([mark.value, mark.reach])
            if not np.isnan(value):
                bar, style = None if np.isnan(reach) else reach, mark.shape
                handles[series] = axes.errorbar(value, place, None, bar, style, color=mark.colour)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlim(*_widened(axes.get_xlim(), least))
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x")
    if len(marks) > 1:
        _legend(figure, handles)
    return figure


@_styled
def file_of(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """Return a picture as a file; equal figures give equal bytes."""
    buffer, svg = io.BytesIO(), kind == "svg"
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type") if svg else ("Software",))
    figure.savefig(buffer, format=kind, transparent=svg, metadata=metadata)
    return buffer.getvalue()


# Drawing ----------------------------------------------------------------------------------------


def _axes(x_label: str, y_label: str, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=_wrapped(x_label, 60), ylabel=_wrapped(y_label, 60))
    return figure, axes


def _draw_line(axes: Axes, line: Line, pen: Pen, log: bool = False, dots: bool = False) -> Line2D:
    """Draw a line with its band, and return its handle for a legend."""
    y, low, high = (_drawable(part, positive=log) for part in (line.y, line.low, line.high))
    if len(low):
        axes.fill_between(line.x, low, high, color=pen.colour, alpha=0.13, linewidth=0)
    # A few points are marked, and a lone one, which is no line.
    marker = "o" if dots or np.isfinite(y).sum() == 1 or len(y) <= 4 else None
    style: Any = {"linestyle": (0, pen.dashes) if pen.dashes else "-", "linewidth": pen.width}
    (handle,) = axes.plot(line.x, y, color=pen.colour, marker=marker, markersize=2.6, **style)
    return handle


def _drawable(values: Sequence[float], *, positive: bool = False) -> NDArray[np.float64]:
    """Return an array with a gap where an axis has no place."""
    array = np.array(values, dtype=np.float64)
    array[~(np.abs(array) < _LARGEST) | (positive & (array <= 0))] = np.nan
    return array


def _log_scale(axes: Axes, lines: Iterable[Line]) -> None:
    """Make the y axis logarithmic with plain numbers, if its values span much."""
    values = [value for line in lines for value in (*line.y, *line.low, *line.high) if value > 0]
    if not values or max(values) < 8 * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _widened(limits: tuple[float, float], least: float) -> tuple[float, float]:
    """Return limits around the same middle that are at least so far apart."""
    more = max(0.0, (least - (limits[1] - limits[0])) / 2)
    return limits[0] - more, limits[1] + more


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put the names above the chart, in as many columns as have room; many make it taller."""
    columns = max(1, 70 // (max(map(len, handles), default=0) + 7))
    words = [_wrapped(name, 60) for name in handles]
    lines = sum(1 + word.count("\n") for word in words) / columns
    figure.set_figheight(min(figure.get_figheight() + 0.16 * max(lines - 1, 0), _TALLEST))
    figure.legend(list(handles.values()), words, loc="outside upper left", ncols=columns)


def _wrapped(text: str, width: int = 20) -> str:
    """Return a text in short lines, with nothing unprintable in it."""
    return "\n".join(textwrap.wrap(printable(text), width) or [""])
