"""The colours of the page, each for a light and a dark ground.

A chart is drawn in the light colours; on the page each becomes a variable, ``var(--NAME)``, that
has the one or the other value. The first four modalities are far apart for colour-blind people too;
lines differ in their dashes besides, and marks in their shapes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.report.results import TOGETHER


@dataclass(frozen=True)
class Ink:
    """One colour: as a chart is drawn, and on a dark ground."""

    light: str
    dark: str


#: Of text and grounds; ``page`` lies behind, ``card`` carries charts and tables.
GROUND: Mapping[str, Ink] = {
    "page": Ink("#f6f7f9", "#14171c"),
    "card": Ink("#ffffff", "#1d2128"),
    "text": Ink("#1a1e24", "#e8eaed"),
    "muted": Ink("#59616c", "#a3abb6"),
    "line": Ink("#d5d9df", "#3a414c"),
    "link": Ink("#0a58a8", "#7db7f5"),
    "warn": Ink("#7a4d00", "#f0c060"),
}

#: Of modalities, in the order in which they appear; then round again with other dashes.
MODALITIES: Mapping[str, Ink] = {
    "modality-0": Ink("#004e98", "#4094ff"),
    "modality-1": Ink("#d45500", "#ff8c42"),
    "modality-2": Ink("#00996b", "#7fe5bd"),
    "modality-3": Ink("#e05cc0", "#f0a6ff"),
    "modality-4": Ink("#5e4b00", "#ffe9a8"),
    "modality-5": Ink("#64798a", "#9db2c4"),
}

#: Of methods in one chart, and of phases of a round: from dark to light, so that grey prints too.
STEPS: Mapping[str, Ink] = {
    "step-0": Ink("#332288", "#b4a7ff"),
    "step-1": Ink("#882255", "#d795b5"),
    "step-2": Ink("#11708f", "#5cc4de"),
    "step-3": Ink("#7a6a00", "#d8c95a"),
    "step-4": Ink("#8a4b2a", "#e2a684"),
    "step-5": Ink("#6b7280", "#c3c9d2"),
}

#: Of the cells of a heat table, from nothing to all.
HEAT: Mapping[str, Ink] = {
    "heat-0": Ink("#fbfcfd", "#20252d"),
    "heat-1": Ink("#e4eef8", "#22303f"),
    "heat-2": Ink("#c9dff2", "#243c54"),
    "heat-3": Ink("#a6cbea", "#264a6c"),
    "heat-4": Ink("#7fb4df", "#275985"),
    "heat-5": Ink("#2f78b3", "#7db4e6"),
    "heat-6": Ink("#1f639c", "#9dc8f0"),
    "heat-7": Ink("#124e82", "#bcdaf6"),
    "heat-8": Ink("#083863", "#dcecfb"),
}

#: The lowest level of heat whose text is of the card's colour.
INVERTED = 5

ALL: Mapping[str, Ink] = {**GROUND, **MODALITIES, **STEPS, **HEAT}

#: A colour as charts are drawn to its name.
NAMES: Mapping[str, str] = {ink.light: name for name, ink in ALL.items()}

_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

#: Dashes as matplotlib takes them.
Dashes = str | tuple[int, tuple[float, ...]]


@dataclass(frozen=True)
class Pen:
    """How a series is drawn."""

    colour: str
    dashes: Dashes = "-"
    width: float = 1.4

    @property
    def name(self) -> str:
        """Of the variable."""
        return NAMES[self.colour]

    @property
    def dash(self) -> str:
        """The dashes as SVG takes them; empty for none."""
        if isinstance(self.dashes, str):
            return ""
        return " ".join(f"{length * self.width * 2:g}" for length in self.dashes[1])


#: All modalities together.
TOGETHER_PEN = Pen(GROUND["text"].light, "-", 2.2)


class Pens(dict[str, Pen]):
    """Name to pen; a muted one for a name that nobody foresaw."""

    def __missing__(self, name: str) -> Pen:
        return Pen(GROUND["muted"].light)

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return names in the order of the pens, those without one behind."""
        given = dict.fromkeys(names)
        return [*(name for name in self if name in given), *(n for n in given if n not in self)]


def modality_pens(names: Iterable[str]) -> Pens:
    """Return a pen for each modality, in their order, and one for all together."""
    inks = list(MODALITIES.values())
    pens = Pens({TOGETHER: TOGETHER_PEN})
    for place, name in enumerate(name for name in dict.fromkeys(names) if name != TOGETHER):
        turn, index = divmod(place, len(inks))
        pens[name] = Pen(inks[index].light, _DASHES[(index + turn + 1) % len(_DASHES)])
    return pens


def step_pens(names: Iterable[str]) -> dict[str, Pen]:
    """Return a pen for each of a few names, in their order."""
    inks = list(STEPS.values())
    return {
        name: Pen(inks[place % len(inks)].light, _DASHES[place % len(_DASHES)])
        for place, name in enumerate(names)
    }
