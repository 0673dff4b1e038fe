"""Sealed files: safetensors whose header holds the SHA-256 of all other bytes.

A file that was damaged on its way, or written by half, is told from a whole one. A seal shows
damage, not who wrote the file.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

SUFFIX = ".safetensors"

_KEY = "ha-fedformer"
_BLANK = "0" * 64
_SEAL = re.compile(rb'\\"seal\\":\s*\\"([0-9a-f]{64})\\"')
_MAX_HEADER = 1 << 24
_CHUNK = 1 << 22


class SealError(Exception):
    """A sealed file that cannot be used; says why, as "is damaged: …"."""


class NotSealedError(SealError):
    """A file, or a folder, that was never sealed, or only a part of one that was."""


def write_sealed(
    path: Path, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, object]
) -> str:
    """Write a sealed file; equal arrays and header give equal bytes.

    Parameters
    ----------
    path
        Written in place: callers write aside and rename.
    arrays
        By name, of any shape and type that safetensors knows.
    header
        What goes into JSON; has no key ``seal``.

    Returns
    -------
    str
        The seal.

    Raises
    ------
    OSError
        If it cannot be written.
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
    """Compute a file's seal, put it in its header, and have all of it on disk."""
    with path.open("r+b") as file:
        text = _header(file.read(8), file.read(_MAX_HEADER))
        place = _SEAL.search(text)
        assert place is not None
        file.seek(0)
        digest = _digest(_chunks(file))
        file.seek(8 + place.start(1))
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    return digest


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Check a file's seal and map it into memory.

    Returns
    -------
    tuple
        Its header, its arrays, its seal.

    Raises
    ------
    SealError
        If it is no such file, or damaged.
    OSError
        If it cannot be read.
    """
    header, written = check_seal(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise SealError(f"cannot be read: {str(error).splitlines()[0]}") from error
    return header, tensors, written


def check_seal(path: Path) -> tuple[dict[str, Any], str]:
    """Check a file's seal, a little of it at a time.

    Returns
    -------
    tuple
        Its header, its seal.

    Raises
    ------
    SealError
        If it is no such file, or damaged.
    OSError
        If it cannot be read.
    """
    written, computed = _seals(path)
    if written != computed:
        raise SealError("is damaged: its bytes do not match its seal")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise SealError(f"cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(header, dict):
        raise SealError("cannot be read: its header is no object")
    return header, written


def _seals(path: Path) -> tuple[str, str]:
    """Return the seal that a file has, and the one that its bytes have."""
    if path.is_dir():
        raise NotSealedError("is a folder")
    with path.open("rb") as file:
        length = file.read(8)
        header = _header(length, file.read(_MAX_HEADER))
        places = list(_SEAL.finditer(header))
        if len(places) != 1:
            raise NotSealedError("has no seal")
        start, end = places[0].span(1)
        file.seek(8 + len(header))
        blank = header[:start] + _BLANK.encode() + header[end:]
        computed = _digest(_joined(length + blank, _chunks(file)))
    return places[0][1].decode(), computed


def _header(length: bytes, following: bytes) -> bytes:
    """Return the header of a safetensors file: JSON behind its length."""
    size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
    if not 0 < size <= len(following):
        raise NotSealedError("is no sealed file, or only a part of one")
    return following[:size]


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _joined(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
