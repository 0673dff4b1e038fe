"""The values that a setting may take beyond its type.

A field says its range where it says its default: ``lr: float = positive(1e-3)``. None is always in
range; of a map, every value is checked.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from common.errors import UserError

Value = TypeVar("Value")


@dataclass
class Settings:
    """The settings of one command; a subclass adds them as fields, and is named after its file."""

    file: ClassVar[str]  # the primary YAML file, without its suffix
    folder: ClassVar[str] = "conf"  # the package that holds it

    def __init_subclass__(cls) -> None:
        cls.file = cls.__name__.removesuffix("Config").lower() or "config"

    def check(self) -> None:
        """Raise `UserError` if settings that are in range do not fit together."""


def ranged(default: Value, expected: str, holds: Callable[[Any], bool]) -> Value:
    """Return a field with a default, its range in words and a test for it."""
    made: Any = field(
        default_factory=lambda: deepcopy(default), metadata={"expected": expected, "holds": holds}
    )
    return made  # type: ignore[no-any-return]


def positive(default: Value) -> Value:
    """Return a field for a finite number above 0."""
    return ranged(default, "a number above 0", lambda value: 0 < value < math.inf)


def at_least(least: float, default: Value) -> Value:
    """Return a field for a finite number of at least `least`."""
    return ranged(default, f"a number of at least {least}", lambda value: least <= value < math.inf)


def between(least: float, most: float, default: Value) -> Value:
    """Return a field for a number from `least` to `most`, both included."""
    return ranged(default, f"a number from {least} to {most}", lambda value: least <= value <= most)


def share(default: Value) -> Value:
    """Return a field for a share below 1."""
    return ranged(default, "a share in [0, 1)", lambda value: 0 <= value < 1)


def share_above_zero(default: Value) -> Value:
    """Return a field for a share above 0."""
    return ranged(default, "a share in (0, 1]", lambda value: 0 < value <= 1)


def path_setting(default: Value, required: str | None = None) -> Value:
    """Return a field for a path; of type Any, also for a list of them.

    One that is `required` may not be missing or blank; the word says what it is, for the message.
    """
    metadata: dict[str, object] = {"path": True}
    if required is not None:
        metadata["required"] = required and f": {required}"
    made: Any = field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return made  # type: ignore[no-any-return]


def unknown_setting(name: str, hint: str = "") -> UserError:
    """Return the error for a name that no setting has."""
    return UserError(f"there is no setting {name!r}{hint} (--cfg job prints them all)")


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise `UserError` for the first setting unknown, missing or outside its range."""
    items = fields(config)
    if unknown := vars(config).keys() - {item.name for item in items}:  # that ``+name=value`` added
        raise unknown_setting(prefix + min(unknown))
    for item in items:
        name, value = prefix + item.name, getattr(config, item.name)
        blank = value in (None, [], {}) or (isinstance(value, str) and not value.strip())
        if blank and "required" in item.metadata:
            raise UserError(f"{name} is required; give it as {name}=…{item.metadata['required']}")
        if is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif "holds" in item.metadata:
            numbers = (
                {f"{name}.{key}": number for key, number in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            for key, number in numbers.items():
                if number is not None and not item.metadata["holds"](number):
                    raise UserError(f"{key}={number}: expected {item.metadata['expected']}")
