"""What values a setting may take beyond its type: a range beside its default, checked by one walk.

A field of a schema says its range where it says its default: ``lr: float = positive(1e-3)``. A
value of None is always in range; of a map, every value is checked.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from common.errors import UserError

Value = TypeVar("Value")

_EXPECTED, _HOLDS = "expected", "holds"


@dataclass
class Settings:
    """The settings of one command; a subclass adds them as fields.

    Attributes
    ----------
    file
        The primary YAML file, without its suffix.
    folder
        The package that holds it.
    """

    file: ClassVar[str]
    folder: ClassVar[str] = "conf"

    def check(self) -> None:
        """Raise `UserError` if settings that are in range do not fit together."""


def ranged(default: Value, expected: str, holds: Callable[[Any], bool]) -> Value:
    """Return a field with a default and a range.

    Parameters
    ----------
    default
        Its default.
    expected
        The range in words, as in "expected a number above 0".
    holds
        Whether a number is in the range.
    """
    found: Any = field(
        default_factory=lambda: deepcopy(default), metadata={_EXPECTED: expected, _HOLDS: holds}
    )
    return found  # type: ignore[no-any-return]


def positive(default: Value) -> Value:
    """Return a field for a finite number above 0."""
    return ranged(default, "a number above 0", lambda value: 0 < value < math.inf)


def at_least(least: float, default: Value) -> Value:
    """Return a field for a finite number of at least `least`."""
    return ranged(default, f"a number of at least {least}", lambda value: least <= value < math.inf)


def count(default: Value) -> Value:
    """Return a field for a number that may not be 0, such as a limit."""
    return ranged(default, "a number from 1", lambda value: value >= 1)


def between(least: float, most: float, default: Value) -> Value:
    """Return a field for a number from `least` to `most`, both included."""
    return ranged(default, f"a number from {least} to {most}", lambda value: least <= value <= most)


def share(default: Value) -> Value:
    """Return a field for a share that is never all of it."""
    return ranged(default, "a share in [0, 1)", lambda value: 0 <= value < 1)


def share_above_zero(default: Value) -> Value:
    """Return a field for a share that is never nothing."""
    return ranged(default, "a share in (0, 1]", lambda value: 0 < value <= 1)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first value outside its range, in the order of the fields."""
    for item in fields(config):
        name, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif _HOLDS in item.metadata:
            for key, number in _numbers(name, value):
                if not item.metadata[_HOLDS](number):
                    raise UserError(f"{key}={number}: expected {item.metadata[_EXPECTED]}")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    items = {name: value}
    if isinstance(value, dict):
        items = {f"{name}.{key}": number for key, number in value.items()}
    return ((key, number) for key, number in items.items() if number is not None)
