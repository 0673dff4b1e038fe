"""The charts of the page: lines, dots and stacked bars, each with its data as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server.report.comparison import Difference, Verdict
from server.report.drawing import (
    LEGEND,
    MUTED,
    TEXT,
    Line,
    described,
    draw_line,
    drawable,
    legend_above,
    line_table,
    log_scale,
    make_chart,
    mean_of,
    plain,
    whole_numbers,
    widened,
)
from server.report.palette import ALL, Pen
from server.report.plot import Row
from server.report.view import Chart, Grid, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Inches of the tallest chart of methods.
_TALLEST = 30


def line_chart(
    name: str,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    *,
    log: bool = False,
    least: float = 0.0,
    note: str = "",
    legend: Mapping[str, str] | None = None,
) -> Chart:
    """Draw lines over the rounds.

    Parameters
    ----------
    name
        Unique on the page.
    title
        Above it.
    labels
        Of the x and y axes.
    lines, pens
        By name.
    log
        Whether the y axis is logarithmic where the values span much.
    least
        What the y axis spans at least, so that next to nothing does not look like much.
    note
        Below it.
    legend
        Words to the line that they stand for; by default each line's name, if they are few.
    """
    words = legend if legend is not None else {each: each for each in lines}

    def draw(axes: "Axes") -> None:
        handles = {each: draw_line(axes, line, pens[each], log=log) for each, line in lines.items()}
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if log:
            log_scale(axes, lines.values())
        axes.set_ylim(*widened(axes.get_ylim(), least))
        axes.grid(axis="y")
        whole_numbers(axes)
        if len(words) <= LEGEND:
            legend_above(axes, [handles[each] for each in words.values()], list(words))

    data = line_table(labels[0], lines)
    return make_chart(name, title, described(labels, lines), data, draw, note=note)


def dot_chart(
    name: str,
    title: str,
    label: str,
    rows: Sequence[str],
    dots: Mapping[str, Sequence[float]],
    pens: Mapping[str, Pen],
    *,
    reference: float | None = None,
    least: float = 0.0,
    note: str = "",
) -> Chart:
    """Draw values of several series, one row for each thing.

    Parameters
    ----------
    name, title, note
        As for `line_chart`.
    label
        Of the x axis.
    rows
        Names, from the top.
    dots, pens
        Series to its value in each row, and to how it is drawn.
    reference
        Where a line marks what is usual.
    least
        What the x axis spans at least.
    """
    markers = ("o", "s", "^", "D", "v", "P")

    def draw(axes: "Axes") -> None:
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        places = range(len(rows))
        handles = []
        for index, (each, values) in enumerate(dots.items()):
            marker = markers[index % len(markers)]
            colour = pens[each].colour
            handles += axes.plot(
                drawable(values), places, color=colour, marker=marker, markersize=4.2, linestyle=""
            )
        axes.set_yticks(places, [plain(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="both")
        axes.margins(x=0.1)
        axes.set_xlim(*widened(axes.get_xlim(), least))
        axes.locator_params(axis="x", nbins=6)
        legend_above(axes, handles, list(dots))

    cells = [
        (row, *(shown(values[place]) for values in dots.values())) for place, row in enumerate(rows)
    ]
    means = ", ".join(f"{each} {shown(mean_of(values))}" for each, values in dots.items())
    description = f"{label} in {len(rows)} rows; means: {means}"
    height = 1.0 + 0.19 * len(rows)
    data = Grid(("", *dots), tuple(cells))
    return make_chart(name, title, description, data, draw, height=height, note=note)


def stack_chart(
    name: str,
    title: str,
    labels: tuple[str, str],
    starts: Sequence[float],
    width: float,
    parts: Mapping[str, Sequence[float]],
    pens: Mapping[str, Pen],
    *,
    data: Grid,
    note: str = "",
) -> Chart:
    """Draw bars that are stacked of parts.

    Parameters
    ----------
    name, title, labels, note
        As for `line_chart`.
    starts, width
        Where each bar begins, and how wide it is.
    parts, pens
        Part to its height in each bar, at least 0, and to its colour.
    data
        What is drawn.
    """

    def draw(axes: "Axes") -> None:
        below = np.zeros(len(starts))
        handles = []
        for each, heights in parts.items():
            filled = np.nan_to_num(drawable(heights))
            colour = pens[each].colour
            bars = axes.bar(
                starts, filled, 0.86 * width, below, color=colour, linewidth=0, align="edge"
            )
            handles.append(bars)
            below += filled
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(axis="y")
        whole_numbers(axes)
        if len(parts) > 1:
            legend_above(axes, handles, list(parts))

    sums = ", ".join(f"{each} {shown(mean_of(heights))}" for each, heights in parts.items())
    return make_chart(name, title, f"{labels[1]}, means: {sums}", data, draw, note=note)


def square_chart(
    name: str,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Line],
    pens: Mapping[str, Pen],
    *,
    data: Grid,
    note: str = "",
) -> Chart:
    """Draw shares against shares, with the diagonal on which they are equal; see `line_chart`."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        handles = [draw_line(axes, line, pens[each], marked=True) for each, line in lines.items()]
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_aspect("equal")
        axes.grid()
        legend_above(axes, handles, list(lines))

    return make_chart(name, title, described(labels, lines), data, draw, height=4.0, note=note)


def score_chart(
    name: str, title: str, metric: str, rows: Sequence[Row], *, note: str = ""
) -> Chart:
    """Draw each method's mean and deviation over the seeds; see `server.report.plot`."""
    marks = [Mark(row.label, row.score.mean, row.score.sd, TEXT) for row in rows]
    return _mark_chart(name, title, metric, marks, ("mean", "sd"), note=note)


def difference_chart(
    name: str, title: str, metric: str, rows: Sequence[Row], *, note: str = ""
) -> Chart:
    """Draw each method's difference to the baseline with its interval; the baseline at 0."""
    marks = []
    for row in rows:
        found = row.difference
        if found is None:
            marks.append(Mark(row.label, 0.0, math.nan, TEXT, "D"))
        else:
            half = found.high - found.mean
            marks.append(Mark(row.label, found.mean, half, _verdict_colour(found)))
    columns = ("difference", "half of the interval")
    return _mark_chart(name, title, metric, marks, columns, reference=0.0, note=note)


@dataclass(frozen=True)
class Mark:
    """One row of a chart: a value, and how far it reaches to both sides; NaN: not known."""

    label: str
    value: float
    reach: float
    colour: str
    marker: str = "o"


def _mark_chart(
    name: str,
    title: str,
    label: str,
    marks: Sequence[Mark],
    columns: tuple[str, str],
    *,
    reference: float | None = None,
    note: str = "",
) -> Chart:
    labels = [plain(mark.label, 26) for mark in marks]

    def draw(axes: "Axes") -> None:
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for place, mark in enumerate(marks):
            value, reach = drawable([mark.value, mark.reach])
            if not math.isnan(value):
                axes.errorbar(
                    value,
                    place,
                    xerr=None if math.isnan(reach) else reach,
                    fmt=mark.marker,
                    color=mark.colour,
                    markersize=4.5,
                    capsize=2.5,
                )
        axes.set_yticks(range(len(marks)), labels)
        axes.set_ylim(len(marks) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.margins(x=0.1)

    cells = [(mark.label, shown(mark.value), shown(mark.reach)) for mark in marks]
    told = ", ".join(f"{mark} {value} ± {reach}" for mark, value, reach in cells[:LEGEND])
    # Rows stand equally far apart, so the longest label sets their height.
    lines = len(marks) * max(1.5, *(each.count("\n") + 1.3 for each in labels), 0)
    height = min(0.7 + 0.17 * lines, _TALLEST)
    data = Grid(("method", *columns), tuple(cells))
    return make_chart(name, title, f"{label}: {told}", data, draw, height=height, note=note)


def _verdict_colour(difference: Difference) -> str:
    """Blue for better, orange for worse, as on the picture."""
    colours = {Verdict.better: "modality-0", Verdict.worse: "modality-1"}
    return ALL[colours.get(difference.verdict, "muted")].light
