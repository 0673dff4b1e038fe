"""Series over the rounds, and how many seeds, layers or clients become one line with a band."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from server.report.comparison import spread

T = TypeVar("T")

#: Round to value.
Series = dict[int, float]

#: The most rounds that a chart shows, evenly spaced.
MOST_POINTS = 100


def thinned(items: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def add_round(series: dict[str, Series], number: int, values: Mapping[str, float]) -> None:
    """Add the values of a round to the series of their names."""
    for name, value in values.items():
        series.setdefault(name, {})[number] = value


def over_rounds(rounds: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, Series]:
    """Return the series of the values of some rounds."""
    series: dict[str, Series] = {}
    for number, values in rounds:
        add_round(series, number, values)
    return series


def merged_rounds(series: Iterable[Iterable[int]]) -> list[int]:
    """Return the rounds of all series in order, at most `MOST_POINTS` of them."""
    return thinned(sorted({number for one in series for number in one}))


@dataclass(frozen=True)
class Line:
    """A series with its band, if any; NaN is a gap. `spread` is the sd that a table shows."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    spread: Sequence[float] = ()


def line_of(series: Mapping[int, float], rounds: Sequence[int]) -> Line:
    """Return a series at some rounds."""
    return Line(rounds, [series.get(at, math.nan) for at in rounds])


def band(seeds: Sequence[Mapping[int, float]], rounds: Sequence[int]) -> Line:
    """Return the mean over the seeds ± one sd at some rounds; no band for one seed."""
    spreads = [spread(series[at] for series in seeds if at in series) for at in rounds]
    means = [point.mean for point in spreads]
    if len(seeds) == 1:
        return Line(rounds, means)
    sds = [point.sd for point in spreads]
    widths = np.nan_to_num(sds)  # no width where only one seed of several has the round
    low, high = np.array(means) - widths, np.array(means) + widths
    return Line(rounds, means, low.tolist(), high.tolist(), sds)


def envelope(series: Iterable[Mapping[int, float]], rounds: Sequence[int]) -> Line:
    """Return the median of many series, in a band from the least to the greatest."""
    columns = list(series)
    known = [[s[at] for s in columns if math.isfinite(s.get(at, math.nan))] for at in rounds]
    return Line(
        rounds,
        [median(values) if values else math.nan for values in known],
        [min(values, default=math.nan) for values in known],
        [max(values, default=math.nan) for values in known],
    )
