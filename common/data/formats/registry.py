"""From paths to items: which format a source has, and its reader."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from common.data.formats import npz
from common.data.safe_pickle import is_pickle, load
from common.data.source import ReadSettings, Source
from common.errors import UserError

#: Formats whose file is a pickle, in the order in which they are tried; each has a module here.
PICKLED = ("mmsa", "mult", "multibench")
#: The others.
ARRAYS = ("npz", "csd", "table")


def read_source(
    paths: Sequence[Path], format: str, settings: ReadSettings
) -> tuple[Source, str, str]:
    """Read a source.

    Parameters
    ----------
    paths
        One file or folder; several files where the format has one for each modality or part.
    format
        The format's name, or "auto" to recognise it.
    settings
        How to read it.

    Returns
    -------
    source
        The items.
    format
        Its name.
    why
        One line: what it was recognised by.

    Raises
    ------
    UserError
        If it cannot be read, is of no known format, or is not of the one that was named.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    if paths[0].is_file() and is_pickle(paths[0]):
        return _read_pickled(paths, format, settings)
    if format in PICKLED:
        raise UserError(f"{paths[0]} is not a pickle, which {settings.prefix}format={format} needs")
    name, why = recognise(paths[0], format, settings)
    match name:
        case "npz":
            return npz.read_npz(paths, settings), name, why
        case "csd":
            return _module(name).read(paths, settings), name, why
        case _:
            _one(paths, name)
            return _module(name).read(paths[0], settings), name, why


def _module(name: str) -> ModuleType:
    """Import a reader when it is needed; some need libraries that are extras."""
    return import_module(f"common.data.formats.{name}")


def _one(paths: Sequence[Path], format: str) -> None:
    if len(paths) > 1:
        raise UserError(f"format {format} is one file; {len(paths)} paths were given")


def recognise(path: Path, format: str, settings: ReadSettings) -> tuple[str, str]:
    """Return the format of a source that is no pickle, and what it was recognised by.

    Raises
    ------
    UserError
        If it is of no known format.
    """
    if format in ARRAYS:
        return format, f"{settings.prefix}format={format}"
    if format != "auto":
        raise UserError(f"{settings.prefix}format={format}: expected {', '.join(PICKLED + ARRAYS)}")
    for name in ARRAYS:
        why = npz.recognise(path) if name == "npz" else _module(name).recognise(path)
        if why:
            return name, why
    raise UserError(
        f"{path} is of no known format; expected one of {', '.join(PICKLED + ARRAYS)}, or say "
        f"which with {settings.prefix}format=…"
    )


def _read_pickled(
    paths: Sequence[Path], format: str, settings: ReadSettings
) -> tuple[Source, str, str]:
    if format in ARRAYS:
        raise UserError(f"{paths[0]} is a pickle and not of {settings.prefix}format={format}")
    _one(paths, format)
    content = load(paths[0])
    for name in PICKLED if format == "auto" else (format,):
        why = _module(name).recognise(content)
        if why:
            return _module(name).read(content, paths[0], settings), name, why
    found = f"keys {_keys(content)}" if isinstance(content, dict) else type(content).__name__
    raise UserError(
        f"{paths[0]} is a pickle, but not as {' or '.join(PICKLED)} write it: it holds {found}; "
        "expected splits train, valid and test with text, audio, vision, labels and id"
    )


def _keys(content: dict[object, object]) -> str:
    names = [repr(key)[:20] for key in list(content)[:6] if isinstance(key, str | bytes)]
    return ", ".join(names) or "of no text"
