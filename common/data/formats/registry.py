"""The registry of formats: from paths to items.

A format is an entry in `FORMATS`, which a module of this package makes; its name is what
``format=…`` takes.
"""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from common.data.dataset import ItemPart
from common.data.safe_pickle import is_pickle, load
from common.data.source import ReadSettings, Source, check_there
from common.errors import UserError

#: The number of items of a source, and what yields them, so many at a time.
Stream = tuple[int, Callable[[int], Iterator[ItemPart]]]


@dataclass(frozen=True)
class Given:
    """What a source is read from: files or folders, and what the first holds if it is a pickle.

    Readers take arrays out of `content`, to free their memory.
    """

    paths: Sequence[Path]
    content: object = None

    @property
    def path(self) -> Path:
        """The first path."""
        return self.paths[0]


@dataclass(frozen=True)
class Format:
    """How sources of one kind are read.

    `recognise` says in one line why a source is of this format; or it returns None. `read` raises
    `UserError` if the source is not what the format says.
    """

    recognise: Callable[[Given], str | None]
    read: Callable[[Given, ReadSettings], Source]
    pickled: bool = False  # whether its file is a pickle
    several: bool = False  # whether a source may be several paths
    last: bool = False  # whether it recognises so much that others are tried before
    #: A part of the items at a time; None where a source has to be read whole.
    stream: Callable[[Given, ReadSettings], Stream | None] = lambda *_: None


#: Suffixes of files that hold another one.
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar")

#: Name to format, of the modules that have been imported.
FORMATS: dict[str, Format] = {}


def check_format(name: str, prefix: str = "", more: Sequence[str] = ()) -> None:
    """Raise UserError unless a format, "auto" or one of `more` has the name; lists all of them."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")  # which puts its formats into `FORMATS`
    names = ("auto", *sorted((*FORMATS, *more)))
    if name not in names:
        raise UserError(f"{prefix}format={name}: expected one of {', '.join(names)}")


def recognise(paths: Sequence[Path], format: str, settings: ReadSettings) -> tuple[Given, str, str]:
    """Return a source's paths and contents, its format, and one line: what it was recognised by.

    Raises
    ------
    UserError
        If it does not exist, is of no known format, or is not of the one that was named.
    """
    for path in paths:
        check_there(path)
    check_format(format, settings.prefix)
    path, named = paths[0], f"{settings.prefix}format={format}"
    pickled = path.is_file() and is_pickle(path)
    if format != "auto" and FORMATS[format].pickled != pickled:
        kind = "a pickle and not of" if pickled else "not a pickle, which is needed for"
        raise UserError(f"{path} is {kind} {named}")
    if pickled and len(paths) > 1:
        raise UserError(f"{path} is a pickle: expected one file, {len(paths)} paths were given")
    given = Given(paths, load(path) if pickled else None)
    names = [name for name in FORMATS if FORMATS[name].pickled == pickled]
    for name in sorted(names, key=lambda name: FORMATS[name].last):
        if format not in ("auto", name):
            continue
        why = FORMATS[name].recognise(given) if pickled or format == "auto" else named
        if why and len(paths) > 1 and not FORMATS[name].several:
            raise UserError(f"format {name} is one file; {len(paths)} paths were given")
        if why:
            return given, name, why
    raise UserError(_unknown(given, names, settings.prefix))


def _unknown(given: Given, names: Sequence[str], prefix: str) -> str:
    content = given.content
    if content is None:
        packed = given.path.suffix.lower() in PACKED
        return (
            f"{given.path} is of no known format; expected one of {', '.join(sorted(FORMATS))}, or "
            + ("unpack it first" if packed else f"say which with {prefix}format=…")
        )
    held = type(content).__name__
    if isinstance(content, dict):
        keys = [repr(key)[:20] for key in list(content)[:6] if isinstance(key, str | bytes)]
        held = f"keys {', '.join(keys) or 'of no text'}"
        if {"text", "audio", "vision"} & {key for key in content if isinstance(key, str)}:
            return (
                f"{given.path} holds one clip, or no splits: {held}; to predict it, save "
                '{"test": {"id": ["clip"], "text": [text], "audio": [audio], "vision": [vision]}}'
            )
    return (
        f"{given.path} is a pickle, but not as {' or '.join(names)} write it: it holds {held}; "
        "expected splits train, valid and test with text, audio, vision, labels and id"
    )


def read_source(
    paths: Sequence[Path], format: str, settings: ReadSettings
) -> tuple[Source, str, str]:
    """Read a source: its items, its format, and one line that says what it was recognised by.

    `paths` are one file or folder, or several files where the format has one for each modality or
    part; `format` is its name, or "auto" to recognise it.

    Raises
    ------
    UserError
        If it cannot be read, is of no known format, or is not of the one that was named.
    """
    settings = replace(settings, notes={})
    given, name, why = recognise(paths, format, settings)
    return FORMATS[name].read(given, settings), name, why
