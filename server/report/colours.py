"""The colours of a report, and the pens of its lines.

Figures are drawn in the light colours. On the page each becomes a CSS variable, ``var(--NAME)``,
with another value on a dark ground.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.report.results import TOGETHER

#: CSS variable to its value on a light and on a dark ground. The first four modalities are far
#: apart for colour-blind people too; lines differ in their dashes, marks in their shapes besides.
COLOURS: Mapping[str, tuple[str, str]] = {
    "page": ("#f6f7f9", "#14171c"),
    "card": ("#ffffff", "#1d2128"),
    "text": ("#1a1e24", "#e8eaed"),
    "muted": ("#59616c", "#a3abb6"),
    "line": ("#d5d9df", "#3a414c"),
    "link": ("#0a58a8", "#7db7f5"),
    "warn": ("#7a4d00", "#f0c060"),
    "modality-0": ("#004e98", "#4094ff"),
    "modality-1": ("#d45500", "#ff8c42"),
    "modality-2": ("#00996b", "#7fe5bd"),
    "modality-3": ("#e05cc0", "#f0a6ff"),
    "modality-4": ("#5e4b00", "#ffe9a8"),
    "modality-5": ("#64798a", "#9db2c4"),
    "step-0": ("#332288", "#b4a7ff"),
    "step-1": ("#882255", "#d795b5"),
    "step-2": ("#11708f", "#5cc4de"),
    "step-3": ("#7a6a00", "#d8c95a"),
    "step-4": ("#8a4b2a", "#e2a684"),
    "step-5": ("#6b7280", "#c3c9d2"),
    "heat-0": ("#fbfcfd", "#20252d"),
    "heat-1": ("#e4eef8", "#22303f"),
    "heat-2": ("#c9dff2", "#243c54"),
    "heat-3": ("#a6cbea", "#264a6c"),
    "heat-4": ("#7fb4df", "#275985"),
    "heat-5": ("#2f78b3", "#7db4e6"),
    "heat-6": ("#1f639c", "#9dc8f0"),
    "heat-7": ("#124e82", "#bcdaf6"),
    "heat-8": ("#083863", "#dcecfb"),
}
#: The strongest level of heat, and the weakest on which text has the card's colour.
STRONGEST, INVERTED = 8, 5

_DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))


@dataclass(frozen=True)
class Pen:
    """How a series is drawn: a name of `COLOURS`, lengths of dashes, and a width in points."""

    name: str
    dashes: tuple[float, ...] = ()
    width: float = 1.4

    @property
    def colour(self) -> str:
        """On a light ground."""
        return COLOURS[self.name][0]


class Pens(dict[str, Pen]):
    """Name to pen; a muted one for an unknown name."""

    def __missing__(self, name: str) -> Pen:
        return Pen("muted")

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return names in the order of the pens, unknown ones last."""
        given = dict.fromkeys(names)
        return [*(name for name in self if name in given), *(n for n in given if n not in self)]


def modality_pens(names: Iterable[str]) -> Pens:
    """Return a pen for all modalities together, and one for each in its order."""
    pens = Pens({TOGETHER: Pen("text", width=2.2)})
    for place, name in enumerate(name for name in dict.fromkeys(names) if name != TOGETHER):
        turn, index = divmod(place, 6)
        pens[name] = Pen(f"modality-{index}", _DASHES[(index + turn + 1) % len(_DASHES)])
    return pens


def step_pens(names: Iterable[str]) -> Pens:
    """Return a pen for each of a few methods or phases, from dark to light."""
    return Pens(
        {
            name: Pen(f"step-{place % 6}", _DASHES[place % len(_DASHES)])
            for place, name in enumerate(names)
        }
    )
