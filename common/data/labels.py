"""Labels as sources have them, and as a model takes them: one way for all formats.

Numbers stay numbers. Several labels become 0 and 1. Classes may be words, codes, truth values or
whole numbers of any kind; each gets a number, by its place among `ReadSettings.classes`, or else
in order. Classes that count from 0 keep their numbers and have no names.

Notation: N items, K labels.
"""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import LabelArray
from common.data.source import ReadSettings, as_text
from common.errors import UserError
from common.task import Task

#: More than this many classes are a mistake, such as labels that are ids.
MAX_CLASSES = 10_000

#: Labels must vary by so many of the steps between 32-bit floats of their size.
COARSE = 100

#: How tables write that a cell has no value, in small letters; as Arrow and pandas read them.
MISSING = {"", "na", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "nan", "-nan", "null"}
MISSING |= {"1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}
_TRUTH = {"false": False, "true": True}

#: Values of one label: cells of a table, or an array.
Cells = Sequence[Any] | NDArray[Any]


class Labels(NamedTuple):
    """Labels of N items, NaN where there is none."""

    #: (N,) numbers or classes, or (N, K) float32 of 0 and 1.
    values: LabelArray
    #: What the classes or the K labels are called, where that is known.
    names: tuple[str, ...] = ()


class _Column:
    """The values of one label, each None, a truth value, a number or text."""

    def __init__(
        self, cells: Cells, name: str, path: Path, place: Callable[[int], str], decimal: str
    ) -> None:
        self.name, self.path, self.place = name, path, place
        self.cells = cells.tolist() if isinstance(cells, np.ndarray) else cells
        commas = any(isinstance(cell, str) and decimal in cell for cell in self.cells)
        self.decimal = decimal if commas else "."
        self.values = [self._value(cell) for cell in self.cells]

    def fail(self, wrong: Sequence[int], expected: str) -> UserError:
        """Return the error of some items, which names the first."""
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        where, cell = self.place(wrong[0]), as_text(self.cells[wrong[0]])[:40]
        return UserError(
            f"{self.path}: {self.name} is {cell!r} in {where}{more}; expected {expected}"
        )

    def where(self, *kinds: type) -> list[int]:
        """Return the items whose value is of some kinds; a truth value is no number."""
        return [item for item, value in enumerate(self.values) if type(value) in kinds]

    def _value(self, cell: object) -> object:
        if isinstance(cell, bool | np.bool_):
            return bool(cell)
        if isinstance(cell, int | float | Decimal | np.number):
            try:
                return None if math.isnan(cell) else float(cell)
            except OverflowError:
                return math.inf
        if cell is None or not isinstance(cell, str | bytes):
            return cell
        text = as_text(cell).strip()
        if text.lower() in MISSING:
            return None
        return _TRUTH.get(text.lower(), self._number(text))

    def _number(self, text: str) -> float | str:
        """Return text as a number if it is one; with decimal commas a point makes it none."""
        if self.decimal != "." and "." in text:
            return text
        try:
            # Python would take 1_000 too.
            return float("_" if "_" in text else text.replace(self.decimal, "."))
        except ValueError:
            return text


def read_labels(
    path: Path,
    columns: Sequence[Cells],
    names: Sequence[str],
    settings: ReadSettings,
    place: Callable[[int], str] = "item {}".format,
    decimal: str = ".",
) -> Labels:
    """Return the labels of N items by what a source says, one column for each label.

    `names` are what the columns are called; `place` says where an item is, for errors; `decimal` is
    what may stand in numbers for the point.

    Raises `UserError` if none is known, or one does not fit the task; it names the item.
    """
    if settings.classes and settings.task is not Task.classification:
        raise UserError(
            f"{settings.prefix}classes are for task=classification, and the task is {settings.task}"
        )
    read = [
        _Column(cells, name, path, place, decimal)
        for cells, name in zip(columns, names, strict=True)
    ]
    if all(value is None for column in read for value in column.values):
        raise UserError(f"{path}: every label is missing: empty or NaN")
    if settings.task is Task.classification:
        return _classes(read[0], settings)
    numbers = np.stack([_numbers(column, settings) for column in read], axis=1)
    if settings.task is Task.multilabel:
        return Labels(np.where(np.isnan(numbers), np.nan, numbers > 0).astype(np.float32))
    return Labels(numbers[:, 0])


def _numbers(column: _Column, settings: ReadSettings) -> NDArray[np.float64]:
    wrong = [
        item
        for item, value in enumerate(column.values)
        if not isinstance(value, float | bool | None)
    ]
    if wrong:
        several = settings.task is Task.multilabel
        expected = "0 or 1" if several else f"a number such as 2{column.decimal}5"
        expected += ", or nothing where there is no label"
        if not several and len(wrong) > len(column.values) / 2:
            expected += f"; if these are classes, give {settings.prefix}task=classification"
        raise column.fail(wrong, expected)
    numbers = np.array([np.nan if value is None else value for value in column.values], np.float64)
    huge = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if len(huge):
        raise column.fail(huge.tolist(), "a number, neither an infinity nor too large for one")
    return numbers


def _classes(column: _Column, settings: ReadSettings) -> Labels:
    """Return each item's class by its number, and the names of the classes."""
    names = tuple(map(_name_of, map(_plain, settings.classes)))
    if len(set(names)) < len(names):
        raise UserError(f"{settings.prefix}classes names a class twice: {', '.join(names)}")
    if not names:
        names = _found_classes(column, settings)
    if len(names) > MAX_CLASSES:
        raise UserError(f"{column.path}: {len(names)} classes: expected at most {MAX_CLASSES}")
    numbers = {name: number for number, name in enumerate(names)}
    missing = [None if value is None else _name_of(value) for value in column.values]
    wrong = [item for item, name in enumerate(missing) if name is not None and name not in numbers]
    if wrong:
        listed = ", ".join(names[:12]) + "…" * (len(names) > 12)
        raise column.fail(wrong, f"one of the classes {listed}")
    values = [np.nan if name is None else float(numbers[name]) for name in missing]
    counted = not settings.classes and names == class_names((), len(names))
    return Labels(np.array(values, np.float64), () if counted else names)


def _found_classes(column: _Column, settings: ReadSettings) -> tuple[str, ...]:
    """Return the classes that occur, in order; those from 0 with the numbers in between."""
    several = [kind for kind in (column.where(t) for t in (str, float, bool)) if kind]
    odd = [i for i, v in enumerate(column.values) if not isinstance(v, str | float | None)]
    if len(several) > 1:
        fewest = min(several, key=len)
        raise column.fail(
            fewest, "either words or whole numbers for all classes, or nothing where there is none"
        )
    broken = [
        item
        for item, value in enumerate(column.values)
        if isinstance(value, float) and value % 1 != 0  # an infinity too
    ]
    if broken or (odd and not column.where(bool)):
        raise column.fail(
            broken or odd,
            f"a class, a word or a whole number; for numbers give {settings.prefix}task=regression",
        )
    found: Any = sorted({value for value in column.values if value is not None})
    if isinstance(found[0], bool):
        return tuple(_TRUTH)
    if isinstance(found[0], float) and found[0] == 0 and found[-1] < 2 * len(found):
        found = range(int(found[-1]) + 1)
    if len(found) < 2:
        raise UserError(
            f"{column.path}: every item is of the class {_name_of(found[0])}, and a classifier "
            f"needs two; if others have more, name all in {settings.prefix}classes=[…]"
        )
    return tuple(map(_name_of, found))


def _plain(name: str) -> object:
    """Return what the name of a class means: 2.0 and 2 are one class, and so are True and true."""
    return _Column([name], "", Path(), str, ".").values[0]


def _name_of(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, int | float) and value % 1 == 0 else str(value)


def label_warnings(task: Task, labels: LabelArray, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Warn of what labels are unlikely to mean, and of those from which nothing can be learned.

    `names` are those of several labels.
    """
    kinds = np.unique(labels)
    match task:
        case Task.regression:
            return _warnings_of_numbers(labels, kinds)
        case Task.classification if len(kinds) > len(labels) / 2:
            return (
                f"{len(kinds)} classes of {len(labels)} items: nearly each item is a class of its "
                "own; are the labels ids, or numbers for task=regression?",
            )
        case Task.multilabel:
            means = labels.mean(axis=0).tolist() if len(labels) else []
            called = class_names(names, len(means))
            return tuple(
                f"{'every' if mean else 'no'} item has the label {name}: nothing can be learned "
                "about it"
                for name, mean in zip(called, means, strict=True)
                if mean in (0, 1)
            )
    return ()


def _warnings_of_numbers(labels: LabelArray, kinds: NDArray[Any]) -> tuple[str, ...]:
    if len(kinds) == 1:
        return (f"all labels are {kinds[0]:g}: nothing can be learned from them",)
    told = []
    if len(kinds) == 2:
        told.append(
            f"all labels are {kinds[0]:g} or {kinds[1]:g}: if they are classes, give "
            "task=classification"
        )
    step = float(np.spacing(np.float32(np.abs(kinds).max(initial=0))))
    if 0 < labels.std() < COARSE * step:
        told.append(
            f"labels vary by {labels.std():.3g} around {labels.mean():.6g}, where predictions, "
            f"32-bit floats, are {step:.3g} apart: subtract a constant from the labels"
        )
    return tuple(told)


def class_names(names: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Return what so many classes are called: their names, or else their numbers."""
    return tuple(names) or tuple(map(str, range(outputs)))


def names_fault(
    task: Task, names: Sequence[str], outputs: int, expected: Sequence[str]
) -> str | None:
    """Say in which class or label data differ from what is expected, or return None.

    `names` are those of the data, of so many outputs. Without names classes are called by their
    numbers, and labels fit any. Data may lack the last classes.
    """
    if task is Task.classification:
        names, expected = class_names(names, outputs), class_names(expected, outputs)
    for place, (name, other) in enumerate(zip(names, expected, strict=False)):
        if name != other:
            kind = "class" if task is Task.classification else "label"
            return f"{name!r} for {kind} {place}, which is {other!r}"
    return None


def no_labels(items: int) -> LabelArray:
    """Return the labels (N,) of a source that is read without them: NaN."""
    return np.full(items, np.nan)
