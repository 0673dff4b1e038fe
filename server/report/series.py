"""Series over the rounds, and how many seeds, layers or clients become one line with a band."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from server.report.colours import Pens
from server.report.comparison import spread


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


def by_modality(
    clients: Mapping[str, Mapping[int, float]], pens: Pens
) -> dict[str, dict[str, Mapping[int, float]]]:
    """Return the series of clients by their modality, in the order of the pens."""
    groups: dict[str, dict[str, Mapping[int, float]]] = {}
    for name, series in clients.items():
        groups.setdefault(modality_of(name), {})[name] = series
    return {name: groups[name] for name in pens.ordered(groups)}


def modality_of(client: str) -> str:
    """Return the modality of a client, which is named as ``audio-0``."""
    return client.rpartition("-")[0] or client
