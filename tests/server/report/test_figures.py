"""Charts draw what they are given, in colours that everyone can tell apart, as images."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from server.report.figures import (
    BETTER,
    MODALITY_COLOURS,
    MUTED,
    STEP_COLOURS,
    TEXT,
    WORSE,
    Line,
    Mark,
    Pens,
    band,
    bar_figure,
    calibration_figure,
    envelope,
    file_of,
    line_figure,
    mark_figure,
    modality_pens,
    step_pens,
)

NAN, INF = math.nan, math.inf
PENS = modality_pens(["audio", "vision"])

#: Of Machado, Oliveira and Fernandes 2009, at full severity, on linear colours.
DEFICIENCIES = {
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}

#: CSS's ``hue-rotate(180deg)``, from Filter Effects Module 1.
HALF_TURN = ((-0.574, 1.430, 0.144), (0.426, 0.430, 0.144), (0.426, 1.430, -0.856))


def texts(figure: Figure) -> list[str]:
    return [e.text for e in ElementTree.fromstring(file_of(figure, "svg")).iter() if e.text]


# Colours ----------------------------------------------------------------------------------------

STYLE = (resources.files("server.report") / "templates" / "report.css").read_text()
PAGE = {
    name: both for name, *both in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE)
}


def channels(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def linear(colour: np.ndarray) -> np.ndarray:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG's contrast of two colours."""
    light = [np.dot((0.2126, 0.7152, 0.0722), linear(colour)) for colour in (one, other)]
    return (max(light) + 0.05) / (min(light) + 0.05)


def in_theme(colour: str, theme: int) -> np.ndarray:
    """A colour of a chart: as it is, or as the filter of the dark page leaves it."""
    light = channels(colour)
    return np.clip(np.array(HALF_TURN) @ (1 - light), 0, 1) if theme else light


def seen(colour: np.ndarray, deficiency: str) -> np.ndarray:
    """What is left of a colour, in channels as a screen has them."""
    light = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear(colour), 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_by_colour_blind_people_too(theme: int) -> None:
    page = {name: channels(both[theme]) for name, both in PAGE.items()}
    for name in ("text", "muted", "link", "warn"):
        assert min(contrast(page[name], page[on]) for on in ("page", "card")) >= 4.5
    for colour in (*MODALITY_COLOURS, *STEP_COLOURS):
        assert contrast(in_theme(colour, theme), page["card"]) >= 3
    for colour in (TEXT, MUTED):
        assert contrast(in_theme(colour, theme), page["card"]) >= 4.5
    levels = re.findall(r"\.heat-(\d) { background: var\(--(.*)\); color: var\(--(.*)\); }", STYLE)
    assert [int(level) for level, *_ in levels] == list(range(9))
    for _, ground, text in levels:
        assert contrast(page[text], page[ground]) >= 4.5
    assert contrast(page["muted"], page["heat-0"]) >= 4.5  # zeros
    for deficiency in DEFICIENCIES:
        colours = [seen(in_theme(colour, theme), deficiency) for colour in MODALITY_COLOURS[:4]]
        for one, other in combinations(colours, 2):
            assert np.linalg.norm(one - other) > 0.2


def test_modalities_have_pens_of_their_own_in_their_order() -> None:
    pens = modality_pens(["language", "audio", "multimodal", "vision", "audio", *"abcdefg"])
    assert list(pens) == ["multimodal", "language", "audio", "vision", *"abcdefg"]
    assert len(set(pens.values())) == len(pens)
    assert modality_pens(["language", "audio"])["audio"] == pens["audio"]
    assert pens.ordered(["odd", "vision", "multimodal"]) == ["multimodal", "vision", "odd"]
    assert pens["odd"].colour == MUTED and "odd" not in pens
    assert len(set(step_pens("abcdef").values())) == 6


# Series over seeds and clients ------------------------------------------------------------------


def test_a_band_is_the_mean_and_one_sample_deviation() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5))
    line = band([dict(enumerate(row)) for row in scores], range(5))
    mean, sd = scores.mean(axis=0), scores.std(axis=0, ddof=1)
    assert line.y == pytest.approx(mean) and line.spread == pytest.approx(sd)
    assert line.low == pytest.approx(mean - sd) and line.high == pytest.approx(mean + sd)
    assert band([{1: 0.5}], [1]) == Line([1], [0.5])
    # Where a seed lacks a round, or a number.
    line = band([{1: 1.0, 2: 3.0, 3: NAN}, {1: 2.0, 3: 1.0}], [1, 2, 3])
    assert line.y[:2] == [1.5, 3.0] and math.isnan(line.y[2]) and math.isnan(line.low[2])
    assert line.low[1] == line.high[1] == 3.0 and math.isnan(line.spread[1])


def test_an_envelope_is_the_median_between_the_extremes() -> None:
    line = envelope([1, 2, 3], [[1.0, 9.0, 2.0], [NAN, INF], []])
    assert (line.y[0], line.low[0], line.high[0]) == (2.0, 1.0, 9.0)
    assert all(math.isnan(column[place]) for column in (line.y, line.low) for place in (1, 2))


# Charts -----------------------------------------------------------------------------------------


def test_a_line_has_its_colour_its_band_and_its_name() -> None:
    lines = {
        "multimodal": Line([1, 2], [0.5, 0.2], [0.4, 0.1], [0.6, 0.3]),
        "audio": Line([1], [2]),
    }
    figure = line_figure(lines, PENS, "loss")
    axes = figure.axes[0]
    assert [line.get_color() for line in axes.lines] == [TEXT, MODALITY_COLOURS[0]]
    (drawn,) = axes.collections
    assert drawn.get_alpha() == 0.13
    assert {"round", "loss", "multimodal", "audio"} <= set(texts(figure))


@pytest.mark.parametrize("y", [[NAN, NAN], [1e300, -1e308], [INF, 1.0], [0.0, 0.0], [-1, 2]])
@pytest.mark.parametrize("log", [False, True])
def test_numbers_that_no_axis_holds_are_gaps(y: list[float], log: bool) -> None:
    figure = line_figure({"audio": Line([1, 2], y, y, y, y)}, PENS, "loss", log=log)
    assert not re.search(b"nan|inf", file_of(figure, "svg"))


@pytest.mark.parametrize(
    ("y", "marker"), [([0.5], "o"), ([NAN] * 8 + [1], "o"), (range(9), "None")]
)
def test_a_point_alone_is_marked(y: Sequence[float], marker: str) -> None:
    figure = line_figure({"audio": Line(range(len(y)), y)}, PENS, "loss")
    assert figure.axes[0].lines[0].get_marker() == marker


def test_a_legend_stands_for_groups_or_for_nothing_if_there_are_many() -> None:
    lines = {f"audio-{part}": Line([1], [part]) for part in range(20)}
    pens = Pens(dict.fromkeys(lines, PENS["audio"]))
    grouped = texts(line_figure(lines, pens, "loss", legend={"audio": "audio-3"}))
    assert "audio" in grouped and "audio-3" not in grouped
    assert not any(text.startswith("audio") for text in texts(line_figure(lines, pens, "loss")))


@pytest.mark.parametrize(
    ("y", "scale"), [([0.01, 5.0], "log"), ([0.9, 1.1], "linear"), ([NAN, -1.0], "linear")]
)
def test_only_a_wide_span_is_logarithmic_and_an_axis_spans_its_least(
    y: list[float], scale: str
) -> None:
    figure = line_figure({"audio": Line([1, 2], y)}, PENS, "loss", log=True)
    assert figure.axes[0].get_yscale() == scale
    figure = line_figure({"audio": Line([1, 2], [0.34, 0.34])}, PENS, "loss", least=0.1)
    low, high = figure.axes[0].get_ylim()
    assert high - low >= 0.1 - 1e-12 and (low + high) / 2 == pytest.approx(0.34)


def test_bars_are_stacked_and_shares_are_drawn_on_a_square() -> None:
    parts = {"wait": [4.0, 2.0], "merge": [1.0, NAN]}
    figure = bar_figure([0.5, 1.5], 1, parts, "seconds")
    bars = [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [(0, 4), (0, 2), (4, 1), (2, 0)]
    square = calibration_figure({"audio": Line([0.1, 0.9], [0.2, 0.8])}, PENS, "promised", "came")
    assert square.axes[0].get_xlim() == square.axes[0].get_ylim() == (-0.03, 1.03)


NAMES = ["fedavg", "same <b> $x$_y", "nan"]
MARKS = [Mark(0.6, 0.1), Mark(0.5, colour=BETTER), Mark(NAN, NAN)]


def drawn(figure: Figure) -> list[tuple[float, float, str]]:
    """Place on the x axis, reach to the right (NaN: none) and colour of every mark."""
    marks = []
    for container in figure.axes[0].containers:
        point, _, bars = container.lines  # type: ignore[attr-defined]
        reach = bars[0].get_segments()[0][1][0] - point.get_xdata()[0] if bars else NAN
        marks.append((point.get_xdata()[0], reach, point.get_color()))
    return marks


def test_marks_have_their_rows_their_reach_and_their_colour() -> None:
    figure = mark_figure(NAMES, {"": MARKS}, "corr")
    expected = [(0.6, pytest.approx(0.1), TEXT), (0.5, pytest.approx(NAN, nan_ok=True), BETTER)]
    assert drawn(figure) == expected
    assert {*NAMES, "corr"} <= set(texts(figure))


def test_series_of_marks_share_rows_a_reference_and_a_span() -> None:
    marks = {"audio": [Mark(0.5, colour=WORSE), Mark(NAN)], "vision": [Mark(0.51), Mark(0.5)]}
    figure = mark_figure(["head", "bias"], marks, "weight", reference=0.5, least=0.1)
    assert {"head", "bias", "audio", "vision"} <= set(texts(figure))
    assert [colour for *_, colour in drawn(figure)] == [WORSE, TEXT, TEXT]
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 0.5]
    low, high = figure.axes[0].get_xlim()
    assert high - low >= 0.1 - 1e-12


def test_charts_of_methods_grow_with_them() -> None:
    names = ["a long name of a method, " * 3]
    heights = [
        mark_figure(names * n, {"": [Mark(0.5)] * n}, "corr").get_figheight() for n in (1, 60, 600)
    ]
    assert 1 < heights[0] < 2 and 15 < heights[1] <= heights[2] <= 30


# Output -----------------------------------------------------------------------------------------


def test_text_stays_text_and_markup_in_it_is_none() -> None:
    hostile = '</svg><script>alert(1)</script> & "x" $a$ \x00'
    figure = line_figure({hostile: Line([1], [1])}, PENS, hostile)
    assert b"<script>" not in file_of(figure, "svg")
    assert texts(figure).count(hostile.replace("\x00", r"\x00")) == 2


def test_charts_can_be_read_on_a_telephone() -> None:
    """Of its 390 pixels, a chart has 345; a legend of four modalities is within it."""
    names = ("multimodal", "language", "audio", "vision")
    lines = {name: Line([1, 2], [0.1, 0.2]) for name in names}
    figure = line_figure(lines, modality_pens(names[1:]), "loss")
    pixels = 345 / figure.get_figwidth() / 72
    labels = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in labels) * pixels > 10.5
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.width
