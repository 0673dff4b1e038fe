"""Sealed files: safetensors whose header contains the SHA-256 of all other bytes.

A seal detects damage and truncation; it does not say who wrote the file.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"

_KEY = "ha-fedformer"
_BLANK = "0" * 64
_SEAL = re.compile(rb'\\"seal\\":\s*\\"([0-9a-f]{64})\\"')
_MAX_HEADER = 1 << 24


class SealError(Exception):
    """A sealed file that cannot be used; completes "the file …", as in "is damaged"."""


class NotSealedError(SealError):
    """A file without a seal, a folder, or a file cut off within its header."""


def write_sealed(
    path: Path, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, object]
) -> str:
    """Write a sealed file in place; equal arrays and header give equal bytes.

    The header is written as JSON and must have no key ``seal``. Returns the seal. Raises `OSError`
    if the file cannot be written.
    """
    # One key: safetensors writes several in no particular order.
    metadata = {_KEY: json.dumps({"seal": _BLANK, **header})}
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return seal(path)


def seal(path: Path) -> str:
    """Compute a file's seal, write it into the header, and flush the file to disk."""
    with path.open("r+b") as file:
        place, _, digest = _seals(file)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    return digest


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, "Tensor"], str]:
    """Check a file's seal; return its header, its arrays mapped into memory, and its seal.

    Raises `SealError` if the file is not sealed, or is damaged; `OSError` if it cannot be read.
    """
    if path.is_dir():
        raise NotSealedError("is a folder")
    with path.open("rb") as file:
        _, written, computed = _seals(file)
    if written != computed:
        raise SealError("is damaged: its bytes do not match its seal")
    with _opened(path) as arrays:
        header = json.loads(arrays.metadata()[_KEY])
    if not isinstance(header, dict):
        raise SealError("cannot be read: its header is not an object")
    return header, map_arrays(path), written


def map_arrays(path: Path) -> dict[str, "Tensor"]:
    """Map the arrays of a file into memory: copies on write, which are read when they are used."""
    with _opened(path) as arrays:
        return {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise SealError(f"cannot be read: {str(error).splitlines()[0]}") from error


def _seals(file: BufferedReader | BufferedRandom) -> tuple[int, str, str]:
    """Return where a file's seal is, the seal, and the one that its bytes should have."""
    length = file.read(8)
    size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
    header = file.read(min(size, _MAX_HEADER))
    if not 0 < size == len(header):
        raise NotSealedError("is no sealed file, or only a part of one")
    places = list(_SEAL.finditer(header))
    if len(places) != 1:
        raise NotSealedError("has no seal")
    start, end = places[0].span(1)
    blank = length + header[:start] + _BLANK.encode() + header[end:]
    digest = hashlib.file_digest(file, lambda: hashlib.sha256(blank))  # the rest of the file
    return len(length) + start, places[0][1].decode(), digest.hexdigest()
