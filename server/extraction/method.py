"""What a method of extraction is, and what all methods need.

Libraries are imported when a method is loaded: only `utmp-extract` needs them.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import ExtractConfig
from common.data.extractor import Extractor
from common.errors import UserError

#: (steps, width), one step after the other.
Features = NDArray[np.float32]

_EXTRA = "'ha-fedformer[extract]'"


@dataclass(frozen=True)
class Recording:
    """What one item is extracted from: a file, or a text."""

    #: As the table and the arrays name it.
    id: str
    #: What a user calls it: its path, or its row.
    name: str
    source: Path | str


@dataclass(frozen=True)
class Loaded:
    """A method with its model and its settings.

    `extract` raises `UserError` or `OSError` for a recording that cannot be used.
    """

    extractor: Extractor
    extract: Callable[[Recording], Features]


@dataclass(frozen=True)
class Method:
    """How recordings of one kind become features."""

    #: Of files, in lower case.
    suffixes: tuple[str, ...]
    #: Raises `UserError` if a library or a model is missing.
    load: Callable[[ExtractConfig], Loaded]
    #: Of files that are used where a folder has none of `suffixes`.
    otherwise: tuple[str, ...] = ()


def library(name: str, what: str, install: str = _EXTRA) -> Any:
    """Import a library, or raise `UserError` that says what needs it and how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{what} needs {name}: pip install {install}") from error


def sha256_of(files: Iterable[Path]) -> str:
    """Return one SHA-256 of the contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def model_place(setting: str, given: str, folder: bool = False) -> Path:
    """Return the path of a model; raise `UserError` if there is none."""
    path = Path(given)
    if folder and not path.is_dir():
        raise UserError(f"{setting}={given}: expected the folder of a model")
    if not folder and not path.is_file():
        raise UserError(f"{setting}={given}: expected an ONNX file")
    return path


def checked(features: NDArray[Any]) -> Features:
    """Return features as float32; raise `UserError` where they are none, or not finite."""
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"it has features of shape {features.shape}, expected (steps, width)")
    with np.errstate(over="ignore"):
        floats: Features = np.ascontiguousarray(features, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise UserError("it has features that are not finite")
    return floats
