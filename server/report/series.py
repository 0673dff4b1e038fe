"""Series over the rounds, and how many seeds, layers or clients become one line with a band."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import median
from typing import TypeVar

import numpy as np

from server.report.comparison import spread

T = TypeVar("T")

Series = dict[int, float]  #: round to value
MOST_POINTS = 100  #: the most rounds that a chart shows, evenly spaced


def thinned(items: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def over_rounds(rounds: Mapping[int, Mapping[str, float]]) -> dict[str, Series]:
    """Turn the values by name of each round into a series of each name."""
    series: dict[str, Series] = {}
    for number, values in rounds.items():
        for name, value in values.items():
            series.setdefault(name, {})[number] = value
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


def line_of(series: Series, rounds: Sequence[int]) -> Line:
    """Return a series at some rounds."""
    return Line(rounds, [series.get(number, nan) for number in rounds])


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
    points = [sorted(filter(isfinite, column)) or [nan] for column in values]
    return Line(
        rounds, [median(p) for p in points], [p[0] for p in points], [p[-1] for p in points]
    )
