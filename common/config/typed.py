"""Overrides as they are typed, before Hydra reads them: a path means what it says.

Hydra's grammar gives a meaning to most signs, such as ``,`` ``=`` ``#`` or ``[``, and refuses all
letters but those of ASCII. A setting that is a path is put into Hydra's quotes here, unless the
value is plainly meant for Hydra.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from common.config.ranges import Settings
from common.config.schema import KINDS
from common.errors import UserError

#: Settings of Hydra that would put a command's output, or the command, elsewhere.
_PLACES = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")

#: One element of a list or a sweep: quoted, or up to the next comma.
_ELEMENT = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)""", re.DOTALL)


def setting(name: str, path: object) -> str:
    """Return an override that can be pasted into a shell."""
    return shlex.quote(f"{name}={path}")


def list_hint(path: object) -> str:
    """Return how several paths are given, where what was given as one may be several."""
    return "; several are given as [a,b]" if "," in str(path) else ""


def argument(path: object) -> str:
    """Return a path that can be pasted into a shell, where it is no option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def in_node_config(text: str) -> str:
    """Return a string as a value of Flower's ``--node-config``: TOML without further quotes."""
    escapes = str.maketrans({"\\": r"\\", '"': r"\u0022"})
    return f'"{text.translate(escapes)}"'


def literal_paths(
    schema: type[Settings], overrides: Sequence[str], sweeping: bool = False
) -> list[str]:
    """Return overrides in which Hydra reads paths as they were typed.

    A path is literal if it exists, or unless Hydra reads it as null, a quoted string, or something
    with an interpolation; with `sweeping`, commas separate paths, one for each job. A setting that
    takes several paths takes them as ``[a,b]``. A ``~`` at the beginning is the home folder.

    Raises `UserError` for a path that nobody could type or print, and for settings by which Hydra
    would change folders.
    """
    names = _path_settings(schema)
    return [_literal_override(override, names, sweeping) for override in overrides]


def with_dataset_kind(
    overrides: Sequence[str], is_folder_of_shards: Callable[[str], bool]
) -> list[str]:
    """Return overrides of a run, in which ``dataset.path`` alone chooses the kind of dataset.

    Not for overrides that the sites of other machines compose, too: there is no such path.
    """
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    if "dataset" in keys or "dataset.path" not in keys:
        return list(overrides)
    place = keys.index("dataset.path")
    path = OverridesParser.create().parse_override(overrides[place]).value()
    plain = isinstance(path, str) and is_folder_of_shards(_unescaped(path))
    kind = "shards" if plain else "file"
    return [*overrides[:place], f"dataset={kind}", *overrides[place:]]


def _literal_override(override: str, names: dict[str, bool], sweeping: bool) -> str:
    key, equal, value = override.partition("=")
    name = key.lstrip("+")
    if equal and any(f"{name}.".startswith(f"{place}.") for place in _PLACES):
        own = "run_dir" if "run_dir" in names else "out"
        raise UserError(f"{name} is not used here; give {own}=… instead")
    several = names.get(name, names.get(f"{name.rpartition('.')[0]}.*"))
    if not value or several is None:
        return override
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise UserError(
            f"{override!r}: expected a path in UTF-8 without line breaks and control characters; "
            "rename it"
        )
    return f"{key}={_literal_value(value, several, sweeping)}"


def _literal_value(value: str, several: bool, sweeping: bool) -> str:
    exists = os.path.lexists(value)
    try:
        override = OverridesParser.create().parse_override(f"_={value}")
    except HydraException:
        if exists:
            return _quoted(value)
        if several and value[0] + value[-1] == "[]":
            return f"[{','.join(_elements(value[1:-1]))}]"
        return ",".join(_elements(value)) if sweeping and "," in value else _quoted(value)
    sweep, parsed = override.is_sweep_override(), override.value()
    meant_for_hydra = (
        (sweep and sweeping)
        or (not sweep and parsed is None)
        or (several and isinstance(parsed, list))
        or value[0] in "'\""
        or "${" in value
    )
    plain = parsed == value and "${" not in value
    return value if plain or (meant_for_hydra and not exists) else _quoted(value)


def _elements(text: str) -> Iterator[str]:
    for element in filter(None, _ELEMENT.findall(text)):
        yield element if element[0] in "'\"" and element[-1] == element[0] else _quoted(element)


def _quoted(path: str) -> str:
    return QuotedString(escaped(with_home(path)), Quote.single).with_quotes()


def with_home(path: str) -> str:
    """Return a path with ``~`` or ``~user`` at its beginning replaced, unless it exists."""
    # Path's raises an error where there is no such home.
    return path if os.path.lexists(path) else os.path.expanduser(path)  # noqa: PTH111


def escaped(content: Any) -> Any:
    """Return plain data in which no text is an interpolation, as OmegaConf reads it."""
    if isinstance(content, dict):
        return {key: escaped(value) for key, value in content.items()}
    if isinstance(content, list):
        return list(map(escaped, content))
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", content) if isinstance(content, str) else content


def _unescaped(text: str) -> str:
    """Undo `escaped` of a text."""
    return re.sub(r"(\\*)\$\{", lambda match: "\\" * (len(match[1]) // 2) + "${", text)


def _path_settings(schema: type, prefix: str = "") -> dict[str, bool]:
    """Return the dotted names of settings that are paths, and whether each takes several.

    A map of paths is ``name.*``.
    """
    found: dict[str, bool] = {}
    for item in fields(schema):
        name = prefix + item.name
        if "path" in item.metadata:
            found[f"{name}.*" if get_origin(item.type) is dict else name] = item.type is Any
        elif isinstance(item.type, type) and is_dataclass(item.type):
            kinds = [kind for choice, kind in KINDS.items() if choice.startswith(f"{name}=")]
            for kind in (item.type, *kinds):
                for path, several in _path_settings(kind, f"{name}.").items():
                    found[path] = several or found.get(path, False)
    return found
