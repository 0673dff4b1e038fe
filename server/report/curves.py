"""Curves of several seeds: their mean and deviation, round by round.

Notation: R rounds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from server.report.comparison import spread
from server.report.drawing import Line
from server.report.palette import Pens
from server.report.records import Series, merged_rounds


def band(seeds: Sequence[Series], rounds: Sequence[int] | None = None) -> Line:
    """Return the mean of the seeds that have a round, with mean ± sd as its band.

    Parameters
    ----------
    seeds
        The same series of each.
    rounds
        R of them; None: all, of many as many as are drawn.

    Returns
    -------
    Line
        With a gap where a seed is not a number; without a band for one seed.
    """
    at = merged_rounds(seeds) if rounds is None else rounds
    found = [spread(series[each] for series in seeds if each in series) for each in at]
    means = [each.mean for each in found]
    if len(seeds) == 1:
        return Line(at, means)
    # One seed of several at this round: no width.
    sds = [each.sd for each in found]
    widths = np.nan_to_num(sds)
    low, high = np.array(means) - widths, np.array(means) + widths
    return Line(at, means, low.tolist(), high.tolist(), sds)


def envelope(series: Iterable[Series], rounds: Sequence[int]) -> Line:
    """Return the median of many series, with all between the least and the greatest as its band."""
    columns = list(series)
    y: list[float] = []
    low: list[float] = []
    high: list[float] = []
    for each in rounds:
        known = [one[each] for one in columns if math.isfinite(one.get(each, math.nan))]
        y.append(median(known) if known else math.nan)
        low.append(min(known, default=math.nan))
        high.append(max(known, default=math.nan))
    return Line(rounds, y, low, high)


def by_modality(clients: Mapping[str, Series], pens: Pens) -> dict[str, dict[str, Series]]:
    """Return the series of clients by their modality, in the order of the pens."""
    found: dict[str, dict[str, Series]] = {}
    for name, series in clients.items():
        found.setdefault(modality_of(name), {})[name] = series
    return {name: found[name] for name in pens.ordered(found)}


def modality_of(client: str) -> str:
    """Return the modality of a client, which is named as ``audio-0``."""
    return client.rpartition("-")[0] or client
