"""What a page is made of: charts, tables, heat tables and sentences, in sections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

#: In the place of what is not known.
MISSING = "n/a"

#: The level of the strongest cell of a heat table.
STRONGEST = 8


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names the rows.

    Attributes
    ----------
    header, rows
        Cells.
    title, note
        Above and below it.
    kind
        ``grid`` of numbers, ``words`` or ``lines`` of text.
    folded
        Whether it is closed at first.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    kind: str = "grid"
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture with its data.

    Attributes
    ----------
    title, note
        Above and below it.
    svg
        The element, trusted.
    data
        What is drawn, as a table.
    """

    title: str
    svg: str
    data: Grid
    note: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Cell:
    """A cell of a heat table: what it says, and how strong its ground is, 0 to 8; -1: no ground."""

    text: str
    level: int = -1


@dataclass(frozen=True)
class Heat:
    """A table whose cells are coloured; of kind ``heat``, or ``wide heat`` in a row by itself."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    kind: str = "heat"


@dataclass(frozen=True)
class Notes:
    """Sentences."""

    lines: tuple[str, ...]
    title: str = ""
    kind: str = "notes"


Part = Grid | Chart | Heat | Notes

#: Kinds of parts that stand side by side.
TILES = frozenset({"chart", "heat"})


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor.

    Attributes
    ----------
    anchor, title
        In the table of contents too.
    parts
        In their order; neighbours that are charts stand side by side.
    sections
        Inside it.
    facts
        Name and value of what is worth a glance.
    folded
        Whether it is closed at first; None: it cannot be closed.
    """

    anchor: str
    title: str
    parts: Sequence[Part] = ()
    sections: Sequence["Section"] = ()
    facts: Sequence[tuple[str, str]] = ()
    folded: bool | None = None

    def rows(self) -> list[tuple[bool, list[Part]]]:
        """Return neighbours that stand side by side together, and whether they do."""
        grouped = groupby(self.parts, key=lambda part: part.kind in TILES)
        return [(tiles, list(parts)) for tiles, parts in grouped]


def shown(value: float | None, digits: int = 4) -> str:
    """Return a number in a few significant digits; whole ones whole."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.{digits}g}"


def thinned(count: int, most: int) -> list[int]:
    """Return places from 0 to count - 1, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})
