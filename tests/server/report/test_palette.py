"""Colours can be read on both grounds and told apart, also by those who see fewer of them."""

from itertools import combinations

import pytest

from server.report.palette import (
    ALL,
    GROUND,
    HEAT,
    INVERTED,
    MODALITIES,
    NAMES,
    STEPS,
    Pens,
    modality_pens,
    step_pens,
)

THEMES = ("light", "dark")

#: Of Machado, Oliveira and Fernandes 2009, at full severity, on linear colours.
DEFICIENCIES = {
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def linear(colour: str) -> list[float]:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other))]
    return (max(light) + 0.05) / (min(light) + 0.05)


def seen(colour: str, deficiency: str) -> list[float]:
    """What is left of a colour, in channels as a screen has them."""
    channels = linear(colour)
    rows = [
        sum(a * c for a, c in zip(row, channels, strict=True)) for row in DEFICIENCIES[deficiency]
    ]
    clipped = [min(max(each, 0.0), 1.0) for each in rows]
    return [12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in clipped]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["text", "muted", "link", "warn"])
def test_text_can_be_read(theme: str, name: str) -> None:
    for ground in ("page", "card"):
        assert contrast(getattr(ALL[name], theme), getattr(ALL[ground], theme)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", [*MODALITIES, *STEPS])
def test_lines_can_be_seen(theme: str, name: str) -> None:
    assert contrast(getattr(ALL[name], theme), getattr(GROUND["card"], theme)) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_cells_can_be_read(theme: str) -> None:
    for level, ink in enumerate(HEAT.values()):
        text = GROUND["card" if level >= INVERTED else "text"]
        assert contrast(getattr(text, theme), getattr(ink, theme)) >= 4.5
    # Zeros are muted.
    assert contrast(getattr(GROUND["muted"], theme), getattr(HEAT["heat-0"], theme)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_first_modalities_differ_for_colour_blind_people(theme: str, deficiency: str) -> None:
    colours = [seen(getattr(ink, theme), deficiency) for ink in list(MODALITIES.values())[:4]]
    for one, other in combinations(colours, 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.2


def test_every_colour_that_is_drawn_has_one_name() -> None:
    assert len(NAMES) == len(ALL) == len(GROUND) + len(MODALITIES) + len(STEPS) + len(HEAT)
    assert all(ink.light == ink.light.lower() and len(ink.light) == 7 for ink in ALL.values())


def test_modalities_have_pens_of_their_own_in_their_order() -> None:
    names = ["language", "audio", "multimodal", "vision", "audio", *"abcdefg"]
    pens = modality_pens(names)
    assert list(pens) == ["multimodal", "language", "audio", "vision", *"abcdefg"]
    assert len({(pen.colour, pen.dashes, pen.width) for pen in pens.values()}) == len(pens)
    assert modality_pens(["language", "audio"])["audio"] == pens["audio"]


def test_names_are_put_in_the_order_of_the_pens() -> None:
    pens = modality_pens(["language", "audio", "vision"])
    assert pens.ordered(["odd", "vision", "audio", "multimodal"]) == [
        "multimodal",
        "audio",
        "vision",
        "odd",
    ]
    assert pens["odd"].name == "muted" and "odd" not in pens


def test_pens_of_steps_differ() -> None:
    pens = step_pens("abcdef")
    assert len({pen.colour for pen in pens.values()}) == 6
    assert Pens(pens)["a"].dash == "" and pens["b"].dash == "14 4.2"
