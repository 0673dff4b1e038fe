"""The one exception for mistakes that the user must fix, and text that is safe to show."""

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

Parsed = TypeVar("Parsed")


def printable(text: str, instead: str = " ") -> str:
    """Return one line of text that is safe to show, whatever a file or a caller put in it."""
    return "".join(character if character.isprintable() else instead for character in text)


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def first_mistake(error: ValidationError) -> str:
    """Say in one line what was refused first, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def parsed_as(kind: type[Parsed], content: object) -> Parsed:
    """Validate JSON content as a dataclass; `ValueError` names the first mistake in one line."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error
