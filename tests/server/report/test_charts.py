"""Charts draw what their tables say, whatever the numbers are."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from server.report.charts import (
    difference_chart,
    dot_chart,
    line_chart,
    score_chart,
    square_chart,
    stack_chart,
)
from server.report.comparison import paired_difference, spread
from server.report.drawing import Line, log_scale, widened
from server.report.palette import Pens, modality_pens, step_pens
from server.report.plot import Row
from server.report.view import Chart, Grid

NAN, INF = math.nan, math.inf
PENS = modality_pens(["audio", "vision"])
LABELS = ("round", "loss")


def texts(chart: Chart) -> list[str]:
    root = ElementTree.fromstring(chart.svg)
    return [element.text or "" for element in root.iter("text")]


def heights(chart: Chart, colour: str) -> list[float]:
    """Heights of the filled rectangles of a colour, in points, but for those of the legend."""
    found = []
    for element in ElementTree.fromstring(chart.svg).iter("path"):
        places = [float(each) for each in re.findall(r"-?[\d.]+", element.attrib["d"])]
        if element.attrib.get("fill") == f"var(--{colour})" and "clip-path" in element.attrib:
            found.append(max(places[1::2]) - min(places[1::2]))
    return found


def test_a_line_is_in_its_colour_and_its_table() -> None:
    lines = {
        "multimodal": Line([1, 2], [0.5, 0.25], [0.4, 0.2], [0.6, 0.3], [0.1, 0.05]),
        "audio": Line([1, 2], [NAN, 1.5]),
    }
    chart = line_chart("c", "Title", LABELS, lines, PENS, note="A note.")
    assert chart.data.header == ("round", "multimodal", "audio")
    assert chart.data.rows == (("1", "0.5 ± 0.1", "n/a"), ("2", "0.25 ± 0.05", "1.5"))
    assert "var(--text)" in chart.svg and "var(--modality-0)" in chart.svg
    assert {"round", "loss", "multimodal", "audio"} <= set(texts(chart))
    assert "multimodal from 0.5 to 0.25; audio from 1.5 to 1.5" in chart.svg


def test_rows_of_a_table_are_matched_by_their_places() -> None:
    lines = {"audio": Line([1, 3], [1.0, 3.0]), "vision": Line([2, 3], [2.0, 4.0])}
    rows = line_chart("c", "t", LABELS, lines, PENS).data.rows
    assert rows == (("1", "1", ""), ("2", "", "2"), ("3", "3", "4"))


@pytest.mark.parametrize("values", [[NAN, NAN], [1e300, -1e308], [INF, 1.0], [0.0, 0.0], [-1, 2]])
@pytest.mark.parametrize("log", [False, True])
def test_numbers_that_no_axis_holds_are_gaps(values: list[float], log: bool) -> None:
    lines = {"audio": Line([1, 2], values, values, values, values)}
    chart = line_chart("c", "t", LABELS, lines, PENS, log=log)
    assert "nan" not in chart.svg and "inf" not in re.sub(r"<desc.*?</desc>", "", chart.svg)


def test_a_point_alone_is_marked() -> None:
    alone = line_chart("c", "t", LABELS, {"audio": Line([1], [0.5])}, PENS)
    with_gaps = line_chart("c", "t", LABELS, {"audio": Line(range(9), [NAN] * 8 + [1])}, PENS)
    whole = line_chart("c", "t", LABELS, {"audio": Line(range(9), range(9))}, PENS)
    marks = [chart.svg.count("var(--modality-0)") for chart in (alone, with_gaps, whole)]
    assert marks[0] > marks[2] and marks[1] > marks[2]


def test_a_legend_stands_for_groups_or_for_nothing_if_there_are_many() -> None:
    lines = {f"audio-{part}": Line([1], [part]) for part in range(20)}
    pens = Pens(dict.fromkeys(lines, PENS["audio"]))
    grouped = line_chart("c", "t", LABELS, lines, pens, legend={"audio": "audio-3"})
    assert "audio" in texts(grouped) and "audio-3" not in texts(grouped)
    many = line_chart("c", "t", LABELS, lines, pens)
    assert not any(text.startswith("audio") for text in texts(many))
    assert len(many.data.header) == 21


def test_a_wide_span_is_logarithmic_and_a_narrow_one_is_not() -> None:
    from matplotlib.figure import Figure

    for values, scale in (([0.01, 5.0], "log"), ([0.9, 1.1], "linear"), ([NAN, -1.0], "linear")):
        axes = Figure().subplots()
        log_scale(axes, [Line([1, 2], values)])
        assert axes.get_yscale() == scale


def test_limits_are_widened_around_their_middle() -> None:
    assert widened((0.33, 0.35), 0.1) == pytest.approx((0.29, 0.39))
    assert widened((0.0, 1.0), 0.1) == (0.0, 1.0)


def test_dots_have_their_rows() -> None:
    dots = {"audio": [0.25, 0.5], "vision": [0.75, NAN]}
    chart = dot_chart("c", "t", "weight", ["head", "a$b_c"], dots, PENS, reference=0.5, least=0.1)
    assert chart.data == Grid(
        ("", "audio", "vision"), (("head", "0.25", "0.75"), ("a$b_c", "0.5", "n/a"))
    )
    assert {"head", "a$b_c", "weight"} <= set(texts(chart))
    assert "var(--modality-0)" in chart.svg and "var(--modality-1)" in chart.svg


def test_bars_are_stacked_to_scale() -> None:
    parts = {"wait": [4.0, 2.0], "merge": [1.0, NAN]}
    data = Grid(("phase",), ())
    chart = stack_chart("c", "t", LABELS, [0.5, 1.5], 1, parts, step_pens(parts), data=data)
    tall, low = heights(chart, "step-0")
    assert tall == pytest.approx(2 * low, rel=1e-3)
    assert heights(chart, "step-1")[0] == pytest.approx(low / 2, rel=1e-2)
    assert chart.data is data


def test_shares_are_drawn_on_a_square() -> None:
    lines = {"audio": Line([0.1, 0.9], [0.2, 0.8])}
    chart = square_chart("c", "t", ("promised", "came"), lines, PENS, data=Grid((), ()))
    ticks = [text for text in texts(chart) if re.fullmatch(r"[\d.]+", text)]
    assert ticks.count("0.0") == ticks.count("1.0") == 2


BASE = {1: 0.5, 2: 0.6, 3: 0.7}
ROWS = [
    Row("fedavg", spread(BASE.values()), None),
    Row("better", spread([0.7, 0.8, 0.9]), paired_difference({1: 0.7, 2: 0.81, 3: 0.9}, BASE)),
    Row("worse", spread([0.3, 0.4]), paired_difference({1: 0.3, 2: 0.41, 3: 0.5}, BASE)),
    Row("same <b> $x$", spread([0.5]), paired_difference({1: 0.6, 2: 0.5, 3: 0.7}, BASE)),
    Row("nan", spread([NAN]), paired_difference({1: NAN}, BASE)),
]


def test_scores_of_methods() -> None:
    chart = score_chart("c", "t", "corr", ROWS)
    assert [row[:2] for row in chart.data.rows] == [
        ("fedavg", "0.6"),
        ("better", "0.8"),
        ("worse", "0.35"),
        ("same <b> $x$", "0.5"),
        ("nan", "n/a"),
    ]
    assert {row.label for row in ROWS} <= set(texts(chart)) and "<b>" not in chart.svg
    assert "var(--modality-0)" not in chart.svg


def test_differences_have_the_colours_of_their_verdicts() -> None:
    chart = difference_chart("c", "t", "corr", ROWS)
    assert chart.data.rows[0] == ("fedavg", "0", "n/a")
    difference = ROWS[1].difference
    assert difference is not None
    assert chart.data.rows[1][1] == f"{difference.mean:.4g}"
    for rows, colour, there in (
        (ROWS[:2], "modality-0", True),
        (ROWS[:2], "modality-1", False),
        ([ROWS[0], ROWS[2]], "modality-1", True),
        ([ROWS[0], ROWS[3]], "modality-0", False),
    ):
        svg = difference_chart("c", "t", "corr", rows).svg
        assert (f"var(--{colour})" in svg) == there


@pytest.mark.parametrize("count", [1, 60])
def test_charts_of_methods_grow_with_them(count: int) -> None:
    rows = [Row("a long name of a method, " * 3, spread([0.5]), None)] * count
    root = ElementTree.fromstring(score_chart("c", "t", "corr", rows).svg)
    height = float(root.attrib["viewBox"].split()[3])
    assert 72 < height < (200 if count == 1 else 72 * 31)
    assert count == 1 or height > 1000
