"""A block of a report as a picture: what each method scores, and its difference to the baseline."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.report.comparison import LEVEL, Difference, Spread, Verdict, less_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart by everyone.
_COLOURS = {Verdict.better: "tab:blue", Verdict.worse: "tab:orange"}

#: Letters of a method in one line.
_WIDTH = 40


@dataclass(frozen=True)
class Row:
    """One method of a picture; a difference of None is that of the baseline, or of no baseline."""

    label: str
    score: Spread
    difference: Difference | None


def report_plot(title: str, metric: str, baseline: str | None, rows: Sequence[Row]) -> bytes:
    """Draw the means with their deviations, and the differences with their intervals.

    Parameters
    ----------
    title
        Of the block.
    metric
        What is compared.
    baseline
        Name of what the others are compared with; None leaves the differences out.
    rows
        From the top.

    Returns
    -------
    bytes
        A PNG; equal rows give equal bytes.
    """
    # Imported here: half a second that no other command needs.
    import matplotlib.figure

    labels = [_plain(row.label) for row in rows]
    # Rows stand equally far apart, so the longest label sets their height.
    lines = len(labels) * max(1.35, *(label.count("\n") + 1.5 for label in labels))
    panels = 1 if baseline is None else 2
    size = (6.4 + 4.6 * (panels - 1), min(1.7 + 0.24 * lines, 60))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _draw_scores(axes[0], metric, rows)
    if baseline is not None:
        _draw_differences(axes[1], metric, baseline, rows)
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    figure.suptitle(_plain(title, 90))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _draw_scores(axes: "Axes", metric: str, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if not math.isnan(row.score.mean):
            sd = None if math.isnan(row.score.sd) else row.score.sd
            axes.errorbar(row.score.mean, place, xerr=sd, color="black", fmt="o", capsize=3)
    direction = "less is better" if less_is_better(metric) else "more is better"
    _finish(axes, f"Mean and sd over the seeds; {direction}", metric)


def _draw_differences(axes: "Axes", metric: str, baseline: str, rows: Sequence[Row]) -> None:
    axes.axvline(0, color="black", linewidth=1)
    for place, row in enumerate(rows):
        found = row.difference
        if found is None:
            axes.plot(0, place, "D", color="black", markerfacecolor="white")
        elif not math.isnan(found.mean):
            half = None if math.isnan(found.low) else found.high - found.mean
            colour = _COLOURS.get(found.verdict, "tab:gray")
            axes.errorbar(found.mean, place, xerr=half, color=colour, fmt="o", capsize=3)
    title = f"Paired difference, {LEVEL:.0%} interval; blue: better, orange: worse"
    _finish(axes, title, _plain(f"{metric} less that of {baseline}"))


def _finish(axes: "Axes", title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.08)


def _plain(text: str, width: int = _WIDTH) -> str:
    """Return a text in lines that are drawn as they are: no formula."""
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")
