"""The one exception for mistakes that the user must fix, and text that is safe to show."""

import errno
import re
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

Parsed = TypeVar("Parsed")

_PERMISSION = "this user needs permission for it (chmod, chown), or choose another place"

#: What to do when the system refuses a file or a folder, by number of the error.
_WAYS_OUT = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "choose another place, that can be written",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "choose another place, that takes large files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links go in a circle; choose another place",
    errno.EISDIR: "expected a file",
    errno.ENOTDIR: "a part of the path is a file; expected folders",
    errno.ENOENT: "check how it is spelt",
}


#: Control characters, surrogates, ends of lines, and marks that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return one line of text that is safe to show, whatever a file or a caller put in it.

    What is unsafe is escaped, as ``\x1b``; the rest stays as it is, also spaces of other scripts
    and joined emoji, so that a path can be copied.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a file, a node.

    The message is one line. It names the thing, what was expected and what to do. Commands
    print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def reason(error: OSError) -> str:
    """Say why the system refused a file or a folder, and what to do."""
    said, way_out = error.strerror or str(error), _WAYS_OUT.get(error.errno or 0)
    return f"{said}; {way_out}" if way_out else said


def file_error(error: OSError) -> str:
    """Say in one line what the system refused, why, and what to do."""
    said = reason(error) if error.filename is None else f"{error.filename}: {reason(error)}"
    return printable(said)


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
