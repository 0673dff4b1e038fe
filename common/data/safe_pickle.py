"""Pickles of datasets, read without trusting them.

A pickle is a program for a small machine that may call anything. Here its opcodes are looked at
first (`common.data.pickle_scan`), and of what it may call there is a short list: what makes arrays,
numbers, text and plain containers. Nothing on the list is NumPy's or Python's own: each is a
constructor below that checks what it is given and counts the memory that it takes.
"""

import math
import mmap
import os
import pickle
import re
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.data.pickle_scan import RefusedError, scan
from common.errors import UserError

#: Bytes that all constructors together may take: so many, and so many times the file's size.
FREE, RATIO = 1 << 26, 4

_START = re.compile(rb"\x80[\x02-\x05]|\([dl]p\d|\(d[SVIFL]|\}q|\]q|\}\(")
#: Bytes of an array or a set that holds nothing.
_OBJECT = 216
_LEAVES = {type(None), bool, int, float, complex, str, bytes, bytearray}
_DTYPE = re.compile(r"[<>|=]?(\?|b1|[biufc](?:1|2|4|8|16|32)?|[SU]\d{0,9}|O[48]?)")


class Array(np.ndarray[Any, Any]):
    """An array out of a pickle; `numpy.asarray` makes a plain one of it without a copy."""

    makers: "_Constructors | None" = None

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write; the pickle itself may not, since opcodes can write where they please."""
        if self.makers is not None and self.makers.loading:
            raise RefusedError("it writes into an array")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Take shape and contents, checked; a state whose sizes do not agree is refused."""
        if not (isinstance(state, tuple) and len(state) in (4, 5)):
            raise RefusedError("an array has no proper state")
        if self.makers is None:
            raise RefusedError("an array is not of this pickle")
        shape, dtype, fortran, raw = state[-4:]
        kind = _plain(dtype)
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        count = _count(shape)
        held = len(raw) if isinstance(raw, list if kind.hasobject else bytes) else -1
        if held != count * (1 if kind.hasobject else kind.itemsize):
            raise RefusedError(f"an array of shape {_short(str(shape))} does not fit what it holds")
        self.makers.charge(max(1, count) * kind.itemsize)
        _check_text(raw, kind)
        super().__setstate__((1, shape, kind, bool(fortran), raw))  # type: ignore[arg-type]


class _DType:
    """A dtype before it is one: a plain kind, and a byte order that comes later."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise RefusedError("an array has a compound type; expected plain numbers or text")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Allowed:
    """What stands for an allowed global; it cannot be changed by the pickle."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError("it tries to change a function")


def _plain(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _DType):
        raise RefusedError("an array has no proper type")
    return dtype.dtype


def _count(shape: Any) -> int:
    """Return the number of elements of a shape."""
    whole = isinstance(shape, tuple) and len(shape) <= 32
    if not whole or not all(type(each) is int and 0 <= each < 1 << 63 for each in shape):
        raise RefusedError("an array has no proper shape")
    return math.prod(shape)


def _check_text(raw: Any, kind: np.dtype[Any]) -> None:
    """Refuse text of numbers that are no characters; NumPy fails on them when it is read."""
    if kind.kind == "U" and raw:
        codes = np.frombuffer(raw, np.dtype(np.uint32).newbyteorder(kind.byteorder))
        if codes.max() > sys.maxunicode:
            raise RefusedError("text has characters that do not exist")


def _short(text: str) -> str:
    clean = "".join(each if each.isprintable() else "?" for each in text[:80])
    return clean if len(text) <= 80 else f"{clean}…"


class _Constructors:
    """The constructors of one load, which share a budget of memory."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.loading = True
        self.ndarray = _Allowed(self._only_named)

    def charge(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise RefusedError("it demands more memory than its size allows")

    def listed(self) -> Mapping[tuple[str, str], _Allowed]:
        found: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "dtype"): self.dtype,
            ("_codecs", "encode"): self.encode,
            ("collections", "OrderedDict"): self.mapping,
            ("collections", "defaultdict"): self.default_mapping,
        }
        for core in ("numpy.core", "numpy._core"):
            found[core + ".multiarray", "_reconstruct"] = self.reconstruct
            found[core + ".multiarray", "scalar"] = self.scalar
            found[core + ".numeric", "_frombuffer"] = self.from_buffer
        for builtins in ("builtins", "__builtin__"):
            found[builtins, "bytes"] = self.binary
            found[builtins, "bytearray"] = self.binary
            found[builtins, "complex"] = self.complex
            found[builtins, "set"] = self.set
            found[builtins, "frozenset"] = self.frozenset
            for name in ("list", "dict", "int", "float", "str"):
                found[builtins, name] = self._only_named
        allowed = {name: _Allowed(call) for name, call in found.items()}
        return allowed | {("numpy", "ndarray"): self.ndarray}

    @staticmethod
    def _only_named(*_: Any) -> Any:
        raise RefusedError("it calls what it may only name")

    def reconstruct(self, kind: Any, shape: Any, code: Any) -> Array:
        if kind is not self.ndarray or shape != (0,):
            raise RefusedError("an array begins with a shape of its own")
        self.charge(_OBJECT)
        array = np.ndarray.__new__(Array, (0,), np.dtype(np.int8))
        array.makers = self
        return array

    @staticmethod
    def dtype(code: Any, *_: Any) -> _DType:
        if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
            named = _short(code if isinstance(code, str) else type(code).__name__)
            raise RefusedError(f"an array has the type {named}; expected plain numbers or text")
        return _DType(code)

    def scalar(self, dtype: Any, raw: Any = b"") -> Any:
        kind = _plain(dtype)
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if kind.hasobject or not isinstance(raw, bytes) or len(raw) != kind.itemsize:
            raise RefusedError("a number does not fit its type")
        self.charge(32 + kind.itemsize)
        return np.frombuffer(raw, kind)[0] if kind.itemsize else kind.type()

    def from_buffer(
        self, buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> NDArray[Any]:
        kind, count = _plain(dtype), _count(shape)
        whole = isinstance(buffer, bytes | bytearray) and len(buffer) == count * kind.itemsize
        if kind.hasobject or order not in ("C", "F", "K") or not whole:
            raise RefusedError(f"an array of shape {_short(str(shape))} does not fit what it holds")
        self.charge(_OBJECT + max(1, count) * kind.itemsize)
        _check_text(buffer, kind)
        flat = np.frombuffer(buffer, kind) if buffer else np.empty(count, kind)
        if order == "K":  # NumPy 2.3 and later: axes in another order
            array = flat.reshape(shape).transpose(axes).view(Array)
        else:
            array = flat.reshape(shape, order=order).view(Array)
        array.makers = self
        return array

    def encode(self, text: Any, codec: Any = None) -> bytes:
        if not isinstance(text, str) or codec != "latin1":
            raise RefusedError("it uses a codec other than latin1")
        self.charge(len(text))
        return text.encode("latin1")

    def binary(self, content: Any = b"", codec: Any = "latin-1") -> bytes:
        if isinstance(content, str) and codec == "latin-1":
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray):
            raise RefusedError("it asks for bytes of no contents")
        self.charge(len(content))
        return bytes(content)

    @staticmethod
    def complex(real: Any, imaginary: Any) -> complex:
        if not (type(real) is float and type(imaginary) is float):
            raise RefusedError("a number does not fit its type")
        return complex(real, imaginary)

    def set(self, items: Any = ()) -> set[Any]:
        return set(self._listed_items(items))

    def frozenset(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(self._listed_items(items))

    def _listed_items(self, items: Any) -> Any:
        if not isinstance(items, list | tuple):
            raise RefusedError("a set is not made of a list")
        self.charge(_OBJECT + 64 * len(items))
        return items

    def mapping(self, pairs: Any = ()) -> dict[Any, Any]:
        if not isinstance(pairs, list | tuple):
            raise RefusedError("a dictionary is not made of a list of pairs")
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise RefusedError("a dictionary is not made of a list of pairs")
        self.charge(64 + 128 * len(pairs))
        return dict(pairs)

    def default_mapping(self, *factory: Any) -> dict[Any, Any]:
        if len(factory) > 1:
            raise RefusedError("a dictionary has several defaults")
        self.charge(64)
        return {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, budget: int) -> None:
        # latin1 is how pickles of Python 2 are read; those of Python 3 do not mind.
        super().__init__(file, encoding="latin1")
        self._makers = _Constructors(budget)
        self._allowed = self._makers.listed()

    def load(self) -> Any:
        """Load it; what comes back is nothing but data."""
        try:
            content = super().load()
        finally:
            self._makers.loading = False
        _check_data(content)
        return content

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global, if it is allowed."""
        allowed = self._allowed.get((module, name))
        if allowed is None:
            raise RefusedError(
                f"it asks for {_short(f'{module}.{name}')}, which no dataset needs (arrays, "
                "numbers, text and plain containers do); nothing of it was run; do not open it "
                "with pickle"
            )
        return allowed

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what a pickle keeps elsewhere."""
        raise RefusedError("it keeps values elsewhere")


def _check_data(content: object) -> None:
    """Refuse contents that hold what stands for a function or a type."""
    rest, seen = [content], set()
    while rest:
        value = rest.pop()
        if type(value) in _LEAVES or isinstance(value, np.generic) or id(value) in seen:
            continue
        seen.add(id(value))
        parts: list[Any] = []
        if isinstance(value, np.ndarray):
            parts = np.asarray(value).ravel().tolist() if value.dtype.hasobject else []
        elif isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            parts = list(value)
        else:
            raise RefusedError("it holds a function or a type where data belong")
        if not set(map(type, parts)) <= _LEAVES:
            rest += parts


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle, by its name or its first bytes."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    with path.open("rb") as file:
        return _START.match(file.read(4)) is not None


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} cannot be read: it is a folder; expected a pickle")
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        raise UserError(f"{path} is empty, or not a regular file; expected a pickle")


def load(path: Path) -> object:
    """Load a pickle that may hold arrays, numbers, text and plain containers, and nothing else.

    Parameters
    ----------
    path
        The file. Pickles of Python 2 are read too; what follows a first pickle is ignored.

    Returns
    -------
    object
        Dictionaries, lists, tuples, sets, text, bytes, numbers, NumPy scalars and arrays (`Array`).

    Raises
    ------
    UserError
        If it asks for anything else, is damaged, or demands more memory than its size allows.
    """
    try:
        # Looked at before it is opened, since opening a pipe waits, and again once it is open.
        _check_regular(path, path.stat())
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_regular(path, status)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                scan(data)
            return _Unpickler(file, FREE + RATIO * status.st_size).load()
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} is refused as a pickle of a dataset: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        # A hostile or damaged file can raise anything; whatever it was, the file is no dataset.
        raise UserError(
            f"{path} is damaged or no pickle of a dataset ({type(error).__name__}: "
            f"{_short(str(error))}); get it again from where it was published"
        ) from error
