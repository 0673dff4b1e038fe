"""Charts draw what they are given, in colours that everyone can tell apart, as part of the page."""

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from server.report.colours import COLOURS, INVERTED, Pens, modality_pens, step_pens
from server.report.comparison import paired_difference, spread
from server.report.figures import (
    Row,
    bar_figure,
    calibration_figure,
    difference_figure,
    dot_figure,
    line_figure,
    score_figure,
    to_png,
    to_svg,
)
from server.report.series import Line, band, by_modality, envelope

NAN, INF = math.nan, math.inf
PENS = modality_pens(["audio", "vision"])
LABELS = ("round", "loss")

#: Of Machado, Oliveira and Fernandes 2009, at full severity, on linear colours.
DEFICIENCIES = {
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def drawn(figure: Figure, name: str = "c-1", description: str = "What") -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(figure, name, description))


def texts(figure: Figure) -> list[str]:
    return [element.text or "" for element in drawn(figure).iter("text")]


def values(root: ElementTree.Element, name: str) -> set[str]:
    return {element.attrib[name] for element in root.iter() if name in element.attrib}


# Colours ----------------------------------------------------------------------------------------


def linear(colour: str) -> list[float]:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other))]
    return (max(light) + 0.05) / (min(light) + 0.05)


def seen(colour: str, deficiency: str) -> np.ndarray:
    """What is left of a colour, in channels as a screen has them."""
    light = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear(colour), 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_and_seen(theme: int) -> None:
    colours = {name: both[theme] for name, both in COLOURS.items()}
    for name in ("text", "muted", "link", "warn"):
        assert min(contrast(colours[name], colours[on]) for on in ("page", "card")) >= 4.5
    for name in colours:
        if name.startswith(("modality", "step")):
            assert contrast(colours[name], colours["card"]) >= 3
    for level in range(9):
        text = colours["card" if level >= INVERTED else "text"]
        assert contrast(text, colours[f"heat-{level}"]) >= 4.5
    assert contrast(colours["muted"], colours["heat-0"]) >= 4.5  # zeros


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_first_modalities_differ_for_colour_blind_people(theme: int, deficiency: str) -> None:
    colours = [seen(COLOURS[f"modality-{place}"][theme], deficiency) for place in range(4)]
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(one - other) > 0.2


def test_a_light_colour_belongs_to_one_variable() -> None:
    lights = [light for light, _ in COLOURS.values()]
    assert len(set(lights)) == len(lights) and all(re.fullmatch("#[0-9a-f]{6}", c) for c in lights)


def test_modalities_have_pens_of_their_own_in_their_order() -> None:
    pens = modality_pens(["language", "audio", "multimodal", "vision", "audio", *"abcdefg"])
    assert list(pens) == ["multimodal", "language", "audio", "vision", *"abcdefg"]
    assert len(set(pens.values())) == len(pens)
    assert modality_pens(["language", "audio"])["audio"] == pens["audio"]
    assert pens.ordered(["odd", "vision", "multimodal"]) == ["multimodal", "vision", "odd"]
    assert pens["odd"].name == "muted" and "odd" not in pens
    assert len(set(step_pens("abcdef").values())) == 6


# Series over seeds and clients ------------------------------------------------------------------


def test_a_band_is_the_mean_and_one_sample_deviation() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5))
    line = band([dict(enumerate(row)) for row in scores], range(5))
    mean, sd = scores.mean(axis=0), scores.std(axis=0, ddof=1)
    assert line.y == pytest.approx(mean) and line.spread == pytest.approx(sd)
    assert line.low == pytest.approx(mean - sd) and line.high == pytest.approx(mean + sd)
    assert band([{1: 0.5}], [1]) == Line([1], [0.5])


def test_a_band_where_a_seed_lacks_a_round_or_a_number() -> None:
    line = band([{1: 1.0, 2: 3.0, 3: NAN}, {1: 2.0, 3: 1.0}], [1, 2, 3])
    assert line.y[:2] == [1.5, 3.0] and math.isnan(line.y[2]) and math.isnan(line.low[2])
    assert line.low[1] == line.high[1] == 3.0 and math.isnan(line.spread[1])


def test_an_envelope_is_the_median_between_the_extremes() -> None:
    line = envelope([{1: 1.0, 2: NAN}, {1: 9.0}, {1: 2.0, 2: NAN}], [1, 2, 3])
    assert (line.y[0], line.low[0], line.high[0]) == (2.0, 1.0, 9.0)
    assert all(math.isnan(column[place]) for column in (line.y, line.low) for place in (1, 2))


def test_clients_are_grouped_by_their_modality() -> None:
    clients = {name: {1: 0.0} for name in ("vision-0", "audio_2-11", "vision-10", "odd")}
    groups = by_modality(clients, modality_pens(["audio_2", "vision"]))
    assert [(name, list(members)) for name, members in groups.items()] == [
        ("audio_2", ["audio_2-11"]),
        ("vision", ["vision-0", "vision-10"]),
        ("odd", ["odd"]),
    ]


# Charts -----------------------------------------------------------------------------------------


def test_a_line_has_its_colour_its_band_and_its_name() -> None:
    lines = {
        "multimodal": Line([1, 2], [0.5, 0.2], [0.4, 0.1], [0.6, 0.3]),
        "audio": Line([1], [2]),
    }
    figure = line_figure(lines, PENS, LABELS)
    root = drawn(figure)
    assert {"var(--text)", "var(--modality-0)"} <= values(root, "stroke")
    assert "0.13" in values(root, "fill-opacity")
    assert {"round", "loss", "multimodal", "audio"} <= set(texts(figure))


@pytest.mark.parametrize("y", [[NAN, NAN], [1e300, -1e308], [INF, 1.0], [0.0, 0.0], [-1, 2]])
@pytest.mark.parametrize("log", [False, True])
def test_numbers_that_no_axis_holds_are_gaps(y: list[float], log: bool) -> None:
    svg = to_svg(line_figure({"audio": Line([1, 2], y, y, y, y)}, PENS, LABELS, log=log), "c", "d")
    assert "nan" not in svg and "inf" not in svg


def test_a_point_alone_is_marked() -> None:
    lines = Line([1], [0.5]), Line(range(9), [NAN] * 8 + [1]), Line(range(9), range(9))
    markers = [
        line_figure({"audio": line}, PENS, LABELS).axes[0].lines[0].get_marker() for line in lines
    ]
    assert markers == ["o", "o", "None"]


def test_a_legend_stands_for_groups_or_for_nothing_if_there_are_many() -> None:
    lines = {f"audio-{part}": Line([1], [part]) for part in range(20)}
    pens = Pens(dict.fromkeys(lines, PENS["audio"]))
    grouped = texts(line_figure(lines, pens, LABELS, legend={"audio": "audio-3"}))
    assert "audio" in grouped and "audio-3" not in grouped
    assert not any(text.startswith("audio") for text in texts(line_figure(lines, pens, LABELS)))


@pytest.mark.parametrize(
    ("y", "scale"), [([0.01, 5.0], "log"), ([0.9, 1.1], "linear"), ([NAN, -1.0], "linear")]
)
def test_only_a_wide_span_is_logarithmic(y: list[float], scale: str) -> None:
    figure = line_figure({"audio": Line([1, 2], y)}, PENS, LABELS, log=True)
    assert figure.axes[0].get_yscale() == scale


def test_an_axis_spans_what_it_should_at_least() -> None:
    figure = line_figure({"audio": Line([1, 2], [0.34, 0.34])}, PENS, LABELS, least=0.1)
    low, high = figure.axes[0].get_ylim()
    assert high - low >= 0.1 - 1e-12 and (low + high) / 2 == pytest.approx(0.34)


def test_dots_have_their_rows() -> None:
    dots = {"audio": [0.25, 0.5], "vision": [0.75, NAN]}
    figure = dot_figure(["head", "a$b_c"], dots, PENS, "weight", reference=0.5, least=0.1)
    assert {"head", "a$b_c", "weight", "audio"} <= set(texts(figure))
    reference, *series = figure.axes[0].lines
    assert list(np.asarray(reference.get_xdata())) == [0.5, 0.5]
    for line, expected in zip(series, dots.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), expected)


def test_bars_are_stacked() -> None:
    parts = {"wait": [4.0, 2.0], "merge": [1.0, NAN]}
    figure = bar_figure([0.5, 1.5], 1, parts, step_pens(parts), LABELS)
    bars = [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [(0, 4), (0, 2), (4, 1), (2, 0)]


def test_shares_are_drawn_on_a_square() -> None:
    figure = calibration_figure({"audio": Line([0.1, 0.9], [0.2, 0.8])}, PENS, ("promised", "came"))
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim() == (-0.03, 1.03)


BASE = {1: 0.5, 2: 0.6, 3: 0.7}
ROWS = [
    Row("fedavg", spread(BASE.values()), None),
    Row("better", spread([0.7, 0.8, 0.9]), paired_difference({1: 0.7, 2: 0.81, 3: 0.9}, BASE)),
    Row("worse", spread([0.3, 0.4]), paired_difference({1: 0.3, 2: 0.41, 3: 0.5}, BASE)),
    Row("same <b> $x$", spread([0.5]), paired_difference({1: 0.6, 2: 0.5, 3: 0.7}, BASE)),
    Row("nan", spread([NAN]), paired_difference({1: NAN}, BASE)),
]


def marks(figure: Figure) -> list[tuple[float, float, str]]:
    """Place on the x axis, reach to the right (NaN: none) and colour of every row."""
    found = []
    for container in figure.axes[0].containers:
        point, _, bars = container.lines  # type: ignore[attr-defined]
        reach = bars[0].get_segments()[0][1][0] - point.get_xdata()[0] if bars else NAN
        found.append((point.get_xdata()[0], reach, point.get_color()))
    return found


def test_every_score_is_drawn_with_its_deviation() -> None:
    figure = score_figure("corr", ROWS)
    expected = [(row.score.mean, row.score.sd, COLOURS["text"][0]) for row in ROWS[:4]]
    for mark, row in zip(marks(figure), expected, strict=True):
        assert mark[:2] == pytest.approx(row[:2], nan_ok=True) and mark[2] == row[2]
    assert {row.label for row in ROWS} <= set(texts(figure))


def test_every_difference_is_drawn_in_the_colour_of_its_verdict() -> None:
    baseline, *others = marks(difference_figure("corr", ROWS))
    assert baseline == (0.0, pytest.approx(NAN, nan_ok=True), COLOURS["text"][0])
    names = ("modality-0", "modality-1", "muted")
    for mark, row, name in zip(others, ROWS[1:4], names, strict=True):
        assert row.difference is not None
        half = row.difference.high - row.difference.mean
        assert mark[:2] == pytest.approx((row.difference.mean, half))
        assert mark[2] == COLOURS[name][0]


def test_charts_of_methods_grow_with_them() -> None:
    rows = [Row("a long name of a method, " * 3, spread([0.5]), None)]
    heights = [score_figure("corr", rows * count).get_figheight() for count in (1, 60, 600)]
    assert 1 < heights[0] < 2 and 15 < heights[1] <= heights[2] <= 30


# Output -----------------------------------------------------------------------------------------


def test_an_svg_is_part_of_the_page() -> None:
    """Nothing in it is styled inline, named twice on the page, or loaded from elsewhere."""
    figure = line_figure({"audio": Line([1, 2, 3], [1, 3, 2])}, PENS, LABELS)
    text = to_svg(figure, "run-3-losses", "What it shows")
    root = ElementTree.fromstring(text)
    assert root.attrib.keys() == {"class", "role", "aria-label", "viewBox"}
    assert not values(root, "style") | values(root, "font-family")
    assert {"style", "metadata", "image", "script"}.isdisjoint(each.tag for each in root.iter())
    assert "http" not in text and "DOCTYPE" not in text and not re.search('(fill|stroke)="#', text)
    used = {href.removeprefix("#") for href in values(root, "href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert used and used == values(root, "id")
    other = ElementTree.fromstring(to_svg(figure, "run-4-losses", "What it shows"))
    assert values(other, "id").isdisjoint(used)
    for name in ("d", "x", "y", "transform"):
        assert not re.search(r"\.\d{3}", " ".join(values(root, name)))


def test_text_stays_text_and_markup_in_it_is_none() -> None:
    hostile = '</svg><script>alert(1)</script> & "x" #59616c style="a: b"'
    figure = line_figure({hostile: Line([1], [1])}, PENS, (hostile, "y"))
    text = to_svg(figure, "c", hostile)
    assert "<script>" not in text
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == hostile
    assert hostile in [element.text for element in root.iter("text")]
    assert all(re.fullmatch(r"[\d.]+px", size) for size in values(root, "font-size"))


def test_equal_figures_give_equal_bytes() -> None:
    one, other = (score_figure("corr", ROWS) for _ in range(2))
    assert to_png(one) == to_png(other) != to_png(score_figure("corr", ROWS[:2]))
    assert to_svg(one, "c", "d") == to_svg(other, "c", "d") != to_svg(one, "e", "d")
