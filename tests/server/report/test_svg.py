"""A chart is part of the page: its colours are the page's, and nothing in it is anyone else's."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from server.report.palette import GROUND, MODALITIES
from server.report.svg import attributes_of, inline_svg

BLUE = MODALITIES["modality-0"].light


def figure(label: str = "corr") -> Figure:
    drawn = Figure(figsize=(4, 2), layout="constrained")
    axes = drawn.subplots()
    axes.plot([1, 2, 3], [1, 3, 2], color=BLUE, marker="o")
    axes.fill_between([1, 2, 3], [0, 1, 1], [2, 4, 3], color=BLUE, alpha=0.2)
    axes.set_xlabel(label, color=GROUND["muted"].light, fontweight="bold")
    return drawn


def drawn(name: str = "c-1", label: str = "corr") -> ElementTree.Element:
    return ElementTree.fromstring(inline_svg(figure(label), name, "A title", "What it shows"))


def values(root: ElementTree.Element, name: str) -> set[str]:
    return {element.attrib[name] for element in root.iter() if name in element.attrib}


def test_colours_are_variables_of_the_page() -> None:
    root = drawn()
    colours = values(root, "fill") | values(root, "stroke")
    assert {"var(--modality-0)", "var(--muted)"} <= colours
    assert "0.2" in values(root, "fill-opacity")


def test_nothing_is_styled_inside_and_nothing_comes_from_elsewhere() -> None:
    text = inline_svg(figure(), "c-1", "A title", "What it shows")
    root = ElementTree.fromstring(text)
    assert not values(root, "style")
    assert {"style", "metadata", "image", "script"}.isdisjoint(each.tag for each in root.iter())
    assert "http" not in text and "xmlns" not in text and "DOCTYPE" not in text


def test_names_inside_are_the_charts_own_and_all_are_there() -> None:
    root = drawn("run-3-losses")
    names = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(names) == len(set(names))
    assert all(name.startswith("run-3-losses-") for name in names)
    used = {href.removeprefix("#") for href in values(root, "href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", " ".join(values(root, "clip-path"))))
    assert used and used <= set(names)
    assert set(root.attrib["aria-labelledby"].split()) <= set(names)


def test_it_is_read_out() -> None:
    root = drawn()
    assert (root.attrib["role"], root[0].tag, root[1].tag) == ("img", "title", "desc")
    assert (root[0].text, root[1].text) == ("A title", "What it shows")


def test_text_stays_text_and_markup_in_it_is_none() -> None:
    text = inline_svg(figure("<script>alert(1)</script> & more"), "c", "<b>", "</svg><script>")
    assert "<script>" not in text and "<b>" not in text
    root = ElementTree.fromstring(text)
    found = [element for element in root.iter("text") if element.text and "script" in element.text]
    assert [element.text for element in found] == ["<script>alert(1)</script> & more"]
    assert found[0].attrib["font-size"].startswith("10")
    assert found[0].attrib["font-weight"] in ("700", "bold")
    assert not values(root, "font-family"), "the page has its own"
    assert root[1].text == "</svg><script>"


def test_equal_figures_give_equal_text() -> None:
    one, other = (inline_svg(figure(), "c", "t", "d") for _ in range(2))
    assert one == other
    assert inline_svg(figure(), "e", "t", "d").replace('"e-', '"c-').replace(
        "#e-", "#c-"
    ) != inline_svg(figure("other"), "c", "t", "d")


def test_places_have_two_decimals() -> None:
    root = drawn()
    for name in ("d", "x", "y", "transform"):
        assert not re.search(r"\.\d{3}", " ".join(values(root, name)))


@pytest.mark.parametrize(
    ("style", "attributes"),
    [
        ("fill: none; stroke-width: 0.8", {"fill": "none", "stroke-width": "0.8"}),
        ("font: 9px 'DejaVu Sans', sans-serif", {"font-size": "9px"}),
        (
            "font: bold 8.5px 'A'; fill: #123456",
            {"font-weight": "bold", "font-size": "8.5px", "fill": "#123456"},
        ),
        ("font: 700 8px 'A'", {"font-weight": "700", "font-size": "8px"}),
        ("font-size: 9px; font-family: 'A: b', serif", {"font-size": "9px"}),
        ("", {}),
    ],
)
def test_styles_become_attributes(style: str, attributes: dict[str, str]) -> None:
    assert attributes_of(style) == attributes
