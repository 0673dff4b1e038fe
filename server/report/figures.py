"""The charts of a report: one function per chart, which returns a matplotlib figure.

The page takes a figure as SVG, ``report.md`` as PNG. Sizes are in inches: a narrow screen shows one
chart in a row, a wide one several.
"""

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from server.report.colours import COLOURS, Pen
from server.report.comparison import Difference, Spread, Verdict
from server.report.series import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

P = ParamSpec("P")

TEXT, MUTED, LINE = (COLOURS[name][0] for name in ("text", "muted", "line"))

#: The most names in a legend; more are in the data table alone.
LEGEND = 8

_WIDTH, _HEIGHT, _TALLEST = 4.6, 2.8, 30.0

#: Numbers above this are drawn as gaps: no axis holds them.
_LARGEST = 1e30

_STYLE: Any = {
    "font.size": 8.5,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

_DOTTED = (0, (2, 2))


@dataclass(frozen=True)
class Row:
    """A method's score over the seeds, and its difference to the baseline, if it is another."""

    label: str
    score: Spread
    difference: Difference | None


# Charts -----------------------------------------------------------------------------------------


def styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Make a function draw in the style of the page."""

    @wraps(draw)
    def draw_styled(*args: P.args, **options: P.kwargs) -> "Figure":
        # Imported here: half a second that no other command needs.
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **options)

    return draw_styled


@styled
def line_figure(
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    labels: tuple[str, str],
    *,
    log: bool = False,
    least: float = 0.0,
    legend: Mapping[str, str] | None = None,
) -> "Figure":
    """Draw series over the rounds.

    Parameters
    ----------
    lines, pens
        By name.
    labels
        Of the x and y axes.
    log
        Use a logarithmic y axis where the values span much.
    least
        What the y axis spans at least, so that a tiny change does not look like much.
    legend
        Words of the legend to the line that they stand for; by default each line's name.
    """
    figure, axes = _axes()
    handles = {name: _draw_line(axes, line, pens[name], log) for name, line in lines.items()}
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if log:
        _log_scale(axes, lines.values())
    axes.set_ylim(*_widened(axes.get_ylim(), least))
    axes.grid(axis="y")
    _whole_numbers(axes)
    words = legend if legend is not None else {name: name for name in lines}
    if len(words) <= LEGEND:
        _legend(figure, {word: handles[name] for word, name in words.items()})
    return figure


@styled
def calibration_figure(
    lines: Mapping[str, Line], pens: Mapping[str, Pen], labels: tuple[str, str]
) -> "Figure":
    """Draw shares against shares, with the diagonal on which they are equal."""
    figure, axes = _axes(4.0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=_DOTTED)
    handles = {
        name: _draw_line(axes, line, pens[name], marked=True) for name, line in lines.items()
    }
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_aspect("equal")
    axes.grid()
    _legend(figure, handles)
    return figure


@styled
def dot_figure(
    rows: Sequence[str],
    dots: Mapping[str, Sequence[float]],
    pens: Mapping[str, Pen],
    label: str,
    *,
    reference: float,
    least: float = 0.0,
) -> "Figure":
    """Draw values of several series, a row for each name from the top.

    A dotted line marks the reference; the x axis spans `least` at least.
    """
    figure, axes = _axes(1.0 + 0.19 * len(rows))
    axes.axvline(reference, color=MUTED, linewidth=0.8, linestyle=_DOTTED)
    handles, places = {}, range(len(rows))
    for marker, (name, values) in zip(cycle("os^DvP"), dots.items(), strict=False):
        style: Any = {"color": pens[name].colour, "marker": marker, "markersize": 4.2}
        (handles[name],) = axes.plot(_drawable(values), places, linestyle="", **style)
    _name_rows(axes, rows, label)
    axes.grid(axis="both")
    axes.set_xlim(*_widened(axes.get_xlim(), least))
    axes.locator_params(axis="x", nbins=6)
    _legend(figure, handles)
    return figure


@styled
def bar_figure(
    starts: Sequence[float],
    width: float,
    parts: Mapping[str, Sequence[float]],
    pens: Mapping[str, Pen],
    labels: tuple[str, str],
) -> "Figure":
    """Draw bars that begin at `starts` and are stacked of parts, each at least 0 high."""
    figure, axes = _axes()
    below, handles = np.zeros(len(starts)), {}
    for name, values in parts.items():
        heights = np.nan_to_num(_drawable(values))
        style: Any = {"color": pens[name].colour, "linewidth": 0, "align": "edge"}
        handles[name] = axes.bar(starts, heights, 0.86 * width, below, **style)
        below += heights
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(axis="y")
    _whole_numbers(axes)
    if len(parts) > 1:
        _legend(figure, handles)
    return figure


@styled
def score_figure(metric: str, rows: Sequence[Row]) -> "Figure":
    """Draw each method's mean and standard deviation over the seeds."""
    figure, axes = _axes(_row_height(rows))
    for place, row in enumerate(rows):
        _draw_mark(axes, place, row.score.mean, row.score.sd, "text")
    _name_rows(axes, [row.label for row in rows], metric)
    axes.grid(axis="x")
    return figure


@styled
def difference_figure(metric: str, rows: Sequence[Row]) -> "Figure":
    """Draw each method's difference to the baseline with its interval; the baseline at 0."""
    figure, axes = _axes(_row_height(rows))
    axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=_DOTTED)
    colours = {Verdict.better: "modality-0", Verdict.worse: "modality-1"}
    for place, row in enumerate(rows):
        if (difference := row.difference) is None:
            _draw_mark(axes, place, 0.0, math.nan, "text", "D")
        else:
            half = difference.high - difference.mean
            colour = colours.get(difference.verdict, "muted")
            _draw_mark(axes, place, difference.mean, half, colour)
    _name_rows(axes, [row.label for row in rows], metric)
    axes.grid(axis="x")
    return figure


# Output -----------------------------------------------------------------------------------------


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """Return an ``<svg>`` element for the page; equal figures give equal text.

    Colours become CSS variables. The content security policy of the page forbids style
    attributes, so they become plain ones. The name is unique on the page: matplotlib derives the
    ids inside from it. The description is read out in place of the chart.
    """
    import matplotlib

    buffer = io.StringIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<\w[^>]*>", _page_tag, text[text.index("<svg") :])
    label = html.escape(_one_line(description))
    return text.replace("<svg ", f'<svg class="chart" role="img" aria-label="{label}" ', 1).strip()


_METADATA = ("Date", "Creator", "Format", "Type")

#: The size, the namespaces and the names of layers, which the page does not need.
_UNUSED = re.compile(
    r'(?<=<svg) [^>]*?(?= viewBox)| xmlns="[^"]*"| version="[^"]*"| id="[\w.]+_\d+"'
)


def _page_tag(match: re.Match[str]) -> str:
    """Return a tag as the page takes it: attributes for style, two decimals, CSS variables."""
    tag = _UNUSED.sub("", match[0]).replace("xlink:href", "href")
    tag = re.sub(r'style="([^"]*)"', _plain_attributes, tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{round(float(number[0]), 2):g}", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda light: _VARIABLES.get(light[0], light[0]), tag)


_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}


def _plain_attributes(style: re.Match[str]) -> str:
    """Turn declarations into attributes; the font's family is the page's."""
    # Older versions of matplotlib write a font in short: "bold 8.5px 'DejaVu Sans'".
    text = re.sub(r"\bfont: (?:\w+ )?([\d.]+px)[^;]*", r"font-size: \1", style[1])
    pairs = [declaration.split(": ", 1) for declaration in text.split("; ") if declaration]
    return " ".join(f'{name}="{value}"' for name, value in pairs if name != "font-family")


def to_png(figure: "Figure") -> bytes:
    """Return a picture for ``report.md``; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


# Drawing ----------------------------------------------------------------------------------------


def _axes(height: float = _HEIGHT) -> "tuple[Figure, Axes]":
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _draw_line(
    axes: "Axes", line: Line, pen: Pen, log: bool = False, *, marked: bool = False
) -> "Line2D":
    """Draw a line with its band, and return its handle for a legend."""
    y = _drawable(line.y, positive=log)
    if len(line.low):
        low, high = (_drawable(values, positive=log) for values in (line.low, line.high))
        axes.fill_between(line.x, low, high, color=pen.colour, alpha=0.13, linewidth=0)
    # A few points are marked, and a lone one, which is no line.
    marker = "o" if marked or np.isfinite(y).sum() == 1 or len(y) <= 4 else None
    dashes = (0, pen.dashes) if pen.dashes else "-"
    style: Any = {"linestyle": dashes, "linewidth": pen.width, "markersize": 2.6}
    (handle,) = axes.plot(line.x, y, color=pen.colour, marker=marker, **style)
    return handle


def _draw_mark(
    axes: "Axes", place: int, mean: float, half: float, colour: str, marker: str = "o"
) -> None:
    value, reach = _drawable([mean, half])
    if not math.isnan(value):
        bar = None if math.isnan(reach) else reach
        style: Any = {"fmt": marker, "color": COLOURS[colour][0], "markersize": 4.5, "capsize": 2.5}
        axes.errorbar(value, place, xerr=bar, **style)


def _drawable(values: Sequence[float], *, positive: bool = False) -> NDArray[np.float64]:
    """Return an array with a gap where an axis has no place."""
    array = np.array(values, dtype=np.float64)
    kept = np.abs(array) < _LARGEST
    result: NDArray[np.float64] = np.where(kept & (array > 0) if positive else kept, array, np.nan)
    return result


def _row_height(rows: Sequence[Row]) -> float:
    # Rows are equally far apart, so the longest label sets their height.
    lines = max((_plain(row.label).count("\n") + 1.3 for row in rows), default=0)
    return min(0.7 + 0.17 * len(rows) * max(1.5, lines), _TALLEST)


def _name_rows(axes: "Axes", names: Sequence[str], label: str) -> None:
    axes.set_yticks(range(len(names)), list(map(_plain, names)))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(_plain(label, 60))
    axes.margins(x=0.1)


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _log_scale(axes: "Axes", lines: Iterable[Line]) -> None:
    """Make the y axis logarithmic with plain numbers, if its values span much."""
    from matplotlib.ticker import LogLocator, NullFormatter

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


def _legend(figure: "Figure", handles: Mapping[str, Any]) -> None:
    """Put the names above the chart, in as many columns as have room."""
    columns = max(1, 70 // (max(map(len, handles), default=0) + 7))
    words = [_plain(name, 60) for name in handles]
    figure.legend(list(handles.values()), words, loc="outside upper left", ncols=columns)


def _plain(text: str, width: int = 26) -> str:
    """Return a text in lines that are drawn as they are: no formula, nothing unprintable."""
    return "\n".join(textwrap.wrap(_one_line(text), width) or [""]).replace("$", r"\$")


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
