"""How the charts of the page are drawn: their style, lines, legends and words.

Sizes are in inches, of which a narrow screen shows one chart and a wide one several.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from server.report.palette import GROUND, Pen
from server.report.svg import inline_svg
from server.report.view import Chart, Grid, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 4.6, 2.8

#: Larger numbers are drawn as gaps: no axis holds them.
_LARGEST = 1e30

#: Rounds up to which each is marked.
_MARKED = 4

#: A logarithmic axis is for values that are so many times each other.
_MUCH = 8

#: Letters of a legend that fit beside each other.
_LETTERS = 70

#: Legends up to which names stand above a chart; more are in the table alone.
LEGEND = 8

TEXT, MUTED, _LINE = (GROUND[name].light for name in ("text", "muted", "line"))

# Of any type: not every version of matplotlib knows its settings by the same.
_STYLE: Any = {
    "font.size": 8.5,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": _LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2,
    "legend.columnspacing": 1.2,
}


@dataclass(frozen=True)
class Line:
    """A series, and the band around it where there is one; NaN is a gap."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    spread: Sequence[float] = ()

    @classmethod
    def of(cls, series: Mapping[int, float], rounds: Sequence[int]) -> "Line":
        """Return a series at some rounds."""
        return cls(rounds, [series.get(each, math.nan) for each in rounds])


def make_chart(
    name: str,
    title: str,
    description: str,
    data: Grid,
    draw: "Callable[[Axes], None]",
    *,
    height: float = _HEIGHT,
    note: str = "",
) -> Chart:
    """Draw on one pair of axes, in the style of the page.

    Parameters
    ----------
    name
        Unique on the page.
    title, note
        Above and below the chart.
    description
        Read out in its place.
    data
        What is drawn, as a table.
    draw
        Draws it.
    height
        In inches.
    """
    # Imported here: half a second that no other command needs.
    import matplotlib
    import matplotlib.figure

    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        svg = inline_svg(figure, name, title, one_line(description))
    return Chart(title, svg, data, note)


def draw_line(
    axes: "Axes", line: Line, pen: Pen, *, log: bool = False, marked: bool = False
) -> Any:
    """Draw a line with its band, and return what stands for it in a legend."""
    y = drawable(line.y, positive=log)
    if len(line.low):
        low, high = (drawable(each, positive=log) for each in (line.low, line.high))
        axes.fill_between(line.x, low, high, color=pen.colour, alpha=0.13, linewidth=0)
    # A point alone is no line.
    alone = np.isfinite(y).sum() == 1
    marker = "o" if marked or alone or len(y) <= _MARKED else None
    (handle,) = axes.plot(
        line.x,
        y,
        color=pen.colour,
        linestyle=pen.dashes,
        linewidth=pen.width,
        marker=marker,
        markersize=2.6,
    )
    return handle


def drawable(values: Sequence[float], *, positive: bool = False) -> Any:
    """Return an array with a gap where an axis has no place."""
    array = np.array(values, dtype=np.float64)
    kept = np.abs(array) < _LARGEST
    return np.where(kept & (array > 0) if positive else kept, array, np.nan)


def whole_numbers(axes: "Axes") -> None:
    """Mark the x axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def log_scale(axes: "Axes", lines: Iterable[Line]) -> None:
    """Make the y axis logarithmic, if what is on it spans much.

    Its numbers are plain: powers would be formulas, which are slow.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [each for line in lines for each in (*line.y, *line.low, *line.high) if each > 0]
    if not values or max(values) < _MUCH * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, 2))
    axes.yaxis.set_minor_formatter(NullFormatter())


def widened(limits: tuple[float, float], least: float) -> tuple[float, float]:
    """Return limits around the same middle that are so far apart at least."""
    low, high = limits
    more = max(0.0, (least - (high - low)) / 2)
    return low - more, high + more


def legend_above(axes: "Axes", handles: Sequence[Any], words: Sequence[str]) -> None:
    """Put the words above the chart, in as many columns as they leave room for."""
    columns = max(1, _LETTERS // (max(map(len, words), default=0) + 7))
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(
        handles, [plain(word, 60) for word in words], loc="outside upper left", ncols=columns
    )


def plain(text: str, width: int = 40) -> str:
    """Return a text in lines that are drawn as they are: no formula, nothing unprintable."""
    lines = textwrap.wrap(one_line(text), width) or [""]
    return "\n".join(lines).replace("$", r"\$")


def one_line(text: str) -> str:
    """Return a text without what cannot be printed."""
    return "".join(each if each.isprintable() else " " for each in text)


# Words and tables -------------------------------------------------------------------------------


def described(labels: tuple[str, str], lines: Mapping[str, Line]) -> str:
    """Say where each line begins and ends."""
    told = []
    for name, line in list(lines.items())[:LEGEND]:
        known = [y for y in line.y if math.isfinite(y)]
        ends = f"from {shown(known[0])} to {shown(known[-1])}" if known else "not known"
        told.append(f"{name} {ends}")
    more = f", and {len(lines) - LEGEND} more" if len(lines) > LEGEND else ""
    return f"{labels[1]} against {labels[0]}: {'; '.join(told)}{more}"


def line_table(label: str, lines: Mapping[str, Line]) -> Grid:
    """Return lines as a table, one row for each place on the x axis."""
    x = sorted({each for line in lines.values() for each in line.x})
    columns = []
    for line in lines.values():
        spreads = line.spread or [math.nan] * len(line.x)
        cells = {
            at: shown(y) if math.isnan(sd) else f"{shown(y)} ± {shown(sd, 2)}"
            for at, y, sd in zip(line.x, line.y, spreads, strict=True)
        }
        columns.append([cells.get(at, "") for at in x])
    rows = zip([shown(at) for at in x], *columns, strict=True)
    return Grid((label, *lines), tuple(tuple(row) for row in rows))


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of those that are numbers; NaN for none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
