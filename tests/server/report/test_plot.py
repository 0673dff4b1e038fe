"""The picture of a block: every method with its mean, and its difference where there is one."""

import io
import math
import struct
from typing import Any

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from server.report.comparison import Difference, paired_difference, spread
from server.report.plot import Row, report_plot

BASE = {1: 0.5, 2: 0.6, 3: 0.7}


def difference(*shifts: float) -> Difference:
    return paired_difference({seed: BASE[seed] + x for seed, x in enumerate(shifts, 1)}, BASE)


BASELINE = Row("fedavg", spread(BASE.values()), None)
BETTER = Row("hierarchical", spread([0.7, 0.8, 0.9]), difference(0.2, 0.21, 0.19))
WORSE = Row("fedprox", spread([0.3, 0.4, 0.5]), difference(-0.2, -0.21, -0.19))
SAME = Row("a $name$ of_much " + "length " * 20, spread([0.5, 0.6]), difference(0.1, -0.1, 0.01))
ONE = Row("one", spread([0.6]), difference(0.1))
NOTHING = Row("nan", spread([math.nan]), difference(math.nan))
ALL = [BASELINE, BETTER, WORSE, SAME, ONE, NOTHING]
CASES: dict[str, tuple[str | None, list[Row]]] = {
    "all": ("fedavg", ALL),
    "baseline alone": ("fedavg", [BASELINE]),
    "nothing": ("fedavg", [NOTHING]),
    "no baseline": (None, [BETTER, NOTHING]),
    "many": ("fedavg", ALL * 20),
}


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(("baseline", "rows"), CASES.values(), ids=CASES)
def test_is_a_png_and_the_same_again(baseline: str | None, rows: list[Row]) -> None:
    png = report_plot("1. rounds=20", "corr", baseline, rows)
    width, height = size_of(png)
    assert width == (1320 if baseline else 768)
    assert 200 < height <= 7200
    assert imread(io.BytesIO(png)).shape[:2] == (height, width)
    assert report_plot("1. rounds=20", "corr", baseline, rows) == png


def test_other_scores_give_another_picture() -> None:
    first, second = (report_plot("", "corr", "fedavg", [BASELINE, each]) for each in (BETTER, ONE))
    assert first != second


def test_the_picture_grows_with_the_rows() -> None:
    heights = [size_of(report_plot("", "corr", "fedavg", ALL * n))[1] for n in (1, 2, 4)]
    assert heights[0] < heights[1] < heights[2]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record the points with their bars: mean, row, half, colour."""
    found: list[tuple[Any, ...]] = []
    errorbar = matplotlib.axes.Axes.errorbar

    def record(self: Any, x: Any, y: Any, *, xerr: Any, color: str, **style: Any) -> Any:
        found.append((x, y, xerr, color))
        return errorbar(self, x, y, xerr=xerr, color=color, **style)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", record)
    return found


def test_every_number_is_drawn(drawn: list[tuple[Any, ...]]) -> None:
    report_plot("", "corr", "fedavg", ALL)
    means = [row for row in drawn if row[3] == "black"]
    assert [row[:3] for row in means] == [
        (row.score.mean, place, None if math.isnan(row.score.sd) else row.score.sd)
        for place, row in enumerate(ALL[:5])
    ]
    found = [row for row in drawn if row[3] != "black"]
    assert [row[1] for row in found] == [1, 2, 3, 4]
    assert [row[3] for row in found] == ["tab:blue", "tab:orange", "tab:gray", "tab:gray"]
    for (mean, place, half, _), row in zip(found, ALL[1:5], strict=True):
        assert row.difference is not None and mean == row.difference.mean
        if place == 4:
            assert half is None
        else:
            interval = (row.difference.low, row.difference.high)
            assert np.allclose((mean - half, mean + half), interval)
