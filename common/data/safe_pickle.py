"""Pickles of datasets, read without trusting them.

A pickle is a program for a small machine that may call anything. Here Python's own machine runs
without its dangerous opcodes; it may call only the checked constructors below, and memory is
counted before it is taken.

Source: the opcodes as `pickletools` documents them.
"""

import math
import os
import pickle
import pickletools
import re
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError, printable, reason

#: Bytes that everything in a pickle together may take: so many, and times the file's size.
FREE, RATIO = 1 << 26, 32
#: Containers in one another; a real dataset has three or four.
MAX_DEPTH = 100
#: Values that a tuple may hold at any depth, and times the file's size: hashing visits them all.
FREE_VALUES, VALUE_RATIO = 10_000, 4

_START = re.compile(rb"\x80[\x02-\x05]|\([dl]p\d|\(d[SVIFL]|\}q|\]q|\}\(")
_LEAVES = {type(None), bool, int, float, complex, str, bytes, bytearray}
_DTYPE = re.compile(r"[<>|=]?(\?|b1|[biufc](?:1|2|4|8|16|32)?|[SU]\d{0,9}|O[48]?)")

#: What reaches outside of the pickle, or makes objects of classes.
_REFUSED = "PERSID BINPERSID EXT1 EXT2 EXT4 INST OBJ NEWOBJ NEWOBJ_EX NEXT_BUFFER READONLY_BUFFER"
#: Bytes that an opcode takes whatever it holds.
_OBJECT = 216
_COSTS = {"MARK": 128, "EMPTY_LIST": 64, "LIST": 64, "EMPTY_DICT": 72, "DICT": 72}
_COSTS |= dict.fromkeys(("EMPTY_SET", "FROZENSET"), _OBJECT)
_COSTS |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), 100)


#: How objects of a library become arrays, by its name.
_CONVERT = {"torch": "; save tensor.numpy()", "pandas": "; save series.to_numpy()"}


class RefusedError(Exception):
    """A pickle that no dataset is; the message says what about it."""


def _short(text: str) -> str:
    return printable(text[:80]) + "…" * (len(text) > 80)


class _DType:
    """A dtype before it is one: a plain kind, and a byte order that comes later."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
            named = _short(code if isinstance(code, str) else type(code).__name__)
            raise RefusedError(f"an array has the type {named}; expected plain numbers or text")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise RefusedError("an array has a compound type; expected plain numbers or text")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


def _plain(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _DType):
        raise RefusedError("an array has no proper type")
    return dtype.dtype


def _raw(content: Any) -> Any:
    """Return bytes as they are, also where Python 2 wrote them as text."""
    return content.encode("latin1") if isinstance(content, str) else content


def _only_named(*_: Any) -> Any:
    raise RefusedError("it calls what it may only name")


class _Bounded:
    """A file whose reader never asks for more than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise RefusedError("it is truncated, or declares more than it holds")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Unpickler(pickle._Unpickler):
    stack: list[Any]

    def __init__(self, file: BinaryIO, size: int) -> None:
        # latin1 is how pickles of Python 2 are read; those of Python 3 do not mind.
        super().__init__(_Bounded(file, size), encoding="latin1")
        self.left = FREE + RATIO * size
        self.most_values = FREE_VALUES + VALUE_RATIO * size
        #: Address of an array or a tuple of tuples to itself, its depth, and its number of values.
        self.nested: dict[int, tuple[Any, int, int]] = {}
        self.listed = self._constructors()

    def charge(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise RefusedError("it demands more memory than its size allows")

    def _constructors(self) -> dict[str, Callable[..., Any]]:
        """Return what a pickle may call; nothing is NumPy's or takes memory without a check."""
        return {
            "numpy.dtype": _DType,
            "numpy.ndarray": partial(_only_named),  # an object of its own, see `_reconstruct`
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "_codecs.encode": lambda text, codec=None: self._bytes(text, codec),
            "collections.OrderedDict": lambda *pairs: dict(self._items(*pairs)),
            "collections.defaultdict": lambda *_: dict(self._items()),
            "builtins.bytes": self._bytes,
            "builtins.bytearray": self._bytes,
            "builtins.complex": lambda real, imaginary: complex(real, imaginary),
            "builtins.set": lambda *items: set(self._items(*items)),
            "builtins.frozenset": lambda *items: frozenset(self._items(*items)),
            **{f"builtins.{name}": _only_named for name in ("list", "dict", "int", "float", "str")},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global, if it is allowed."""
        known = {"__builtin__": "builtins"}.get(module, module.replace("numpy._core", "numpy.core"))
        if f"{known}.{name}" not in self.listed:
            hint = _CONVERT.get(known.partition(".")[0], "")
            raise RefusedError(
                f"it asks for {_short(f'{module}.{name}')}, which no dataset needs (arrays, "
                f"numbers, text and plain containers do{hint}); nothing of it was run; do not open "
                "it with pickle"
            )
        return self.listed[f"{known}.{name}"]

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> NDArray[Any]:
        if kind is not self.listed["numpy.ndarray"] or shape != (0,):
            raise RefusedError("an array begins with a shape of its own")
        self.charge(_OBJECT)
        return np.empty(0, np.int8)

    def _fill(self, array: NDArray[Any], shape: Any, dtype: Any, fortran: Any, raw: Any) -> None:
        """Give an array its shape and contents, which are not copied."""
        kind, raw = _plain(dtype), _raw(raw)
        whole = isinstance(shape, tuple) and len(shape) <= 32
        if not whole or not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
            raise RefusedError("an array has no proper shape")
        count = math.prod(shape)
        held = len(raw) if isinstance(raw, list if kind.hasobject else bytes) else -1
        if held != count * (1 if kind.hasobject else kind.itemsize):
            raise RefusedError(f"an array of shape {_short(str(shape))} does not fit what it holds")
        self.charge(max(1, count) * kind.itemsize)
        if kind.kind == "U" and raw:
            # NumPy fails on numbers that are no characters, but only when they are read.
            codes = np.frombuffer(raw, np.dtype(np.uint32).newbyteorder(kind.byteorder))
            if codes.max() > sys.maxunicode:
                raise RefusedError("text has characters that do not exist")
        inner = [part for part in raw if type(part) is np.ndarray] if kind.hasobject else []
        if id(array) in self.nested or not {id(part) for part in inner} <= self.nested.keys():
            raise RefusedError("an array is filled twice, or holds one that has no contents yet")
        self._note(array, inner)
        array.__setstate__((1, shape, kind, bool(fortran), raw))  # type: ignore[arg-type]

    def _from_buffer(
        self, raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> NDArray[Any]:
        if _plain(dtype).hasobject or order not in ("C", "F", "K"):
            raise RefusedError("an array of a buffer does not fit what it holds")
        array = self._reconstruct(self.listed["numpy.ndarray"], (0,), None)
        self._fill(array, shape, dtype, order == "F", raw)
        if order == "K":  # NumPy 2.3 and later: axes in another order
            array = array.transpose(axes)
            self._note(array, [])
        return array

    def _scalar(self, dtype: Any, raw: Any = b"") -> Any:
        kind, raw = _plain(dtype), _raw(raw)
        if kind.hasobject or not isinstance(raw, bytes) or len(raw) != kind.itemsize:
            raise RefusedError("a number does not fit its type")
        self.charge(32 + kind.itemsize)
        return np.frombuffer(raw, kind)[0] if kind.itemsize else kind.type()

    def _bytes(self, content: Any = b"", codec: Any = "latin1") -> bytes:
        if codec not in ("latin1", "latin-1"):
            raise RefusedError("it uses a codec other than latin1")
        if not isinstance(content, str | bytes | bytearray):
            raise RefusedError("it asks for bytes of no contents")
        self.charge(len(content))
        return bytes(_raw(content))

    def _items(self, items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise RefusedError("a set or a dictionary is not made of a list")
        self.charge(_OBJECT + 128 * len(items))
        return items

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _DType):
            target.build(state)
        elif type(target) is not np.ndarray:
            raise RefusedError("it tries to change a function or a plain value")
        elif not (isinstance(state, tuple) and len(state) in (4, 5)):
            raise RefusedError("an array has no proper state")
        else:
            self._fill(target, *state[-4:])

    def _check_target(self, target: Any) -> None:
        if type(target) is not dict:
            raise RefusedError("it writes into an array, or what else is no dictionary")

    def _note_tuple(self) -> None:
        self.charge(64)
        if inner := [part for part in self.stack[-1] if type(part) is tuple]:
            self._note(self.stack[-1], inner)

    def _note(self, value: Any, inner: list[Any]) -> None:
        """Limit how deep values are, and how much they share: hashing and freeing them recurses."""
        self.charge(128)
        known = [self.nested.get(id(part), (part, 1, len(part))) for part in inner]
        depth = 1 + max((part[1] for part in known), default=0)
        held = len(value) + sum(part[2] for part in known)
        if depth > MAX_DEPTH:
            raise RefusedError(f"it nests values more than {MAX_DEPTH} deep")
        if held > self.most_values + len(value):
            raise RefusedError("its tuples hold one another too many times")
        self.nested[id(value)] = value, depth, held


Step = Callable[[Any], None]


class _Steps(dict[int, Step]):
    """What each opcode does; those that are refused are missing."""

    def __missing__(self, code: int) -> Step:
        opcode = pickletools.code2op.get(chr(code))  # type: ignore[attr-defined]
        name = opcode.name if opcode else f"0x{code:02x}"
        raise RefusedError(f"it has the opcode {name}, which no dataset needs")


def _steps() -> _Steps:
    codes = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
    steps = _Steps(pickle._Unpickler.dispatch)
    for name in _REFUSED.split():
        del steps[codes[name]]
    for name, cost in _COSTS.items():
        before = lambda machine, cost=cost: machine.charge(cost)  # noqa: E731
        steps[codes[name]] = _both(before, steps[codes[name]])
    for name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        steps[codes[name]] = _both(steps[codes[name]], _Unpickler._note_tuple)
    steps[codes["BYTEARRAY8"]] = steps[codes["BINBYTES8"]]
    steps[codes["BUILD"]] = _Unpickler._build
    for name, target in {
        "SETITEM": lambda machine: machine._check_target(machine.stack[-3]),
        "SETITEMS": lambda machine: machine._check_target(machine.metastack[-1][-1]),
    }.items():
        steps[codes[name]] = _both(target, steps[codes[name]])
    return steps


def _both(first: Step, second: Step) -> Step:
    def both(machine: Any) -> None:
        first(machine)
        second(machine)

    return both


_Unpickler.dispatch = _steps()


def _check_data(content: object) -> None:
    """Refuse contents that are nested deep, or hold what stands for a function or a type."""
    level, seen = [content], set()
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if type(value) in _LEAVES or isinstance(value, np.generic) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, np.ndarray):
                parts = value.ravel().tolist() if value.dtype.hasobject else []
            elif isinstance(value, dict):
                parts = [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                parts = list(value)
            else:
                raise RefusedError("it holds a function or a type where data belong")
            if not set(map(type, parts)) <= _LEAVES:
                below += parts
        level = below
    if level:
        raise RefusedError(f"it nests values more than {MAX_DEPTH} deep")


def is_pickle(path: Path) -> bool:
    """Tell whether a file is a pickle, by its name or its first bytes."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    with path.open("rb") as file:
        return _START.match(file.read(4)) is not None


def load(path: Path) -> object:
    """Load a pickle that may hold arrays, numbers, text and plain containers, and nothing else.

    Pickles of Python 2 are read too; what follows a first pickle is ignored.

    Raises `UserError` if it asks for anything else, is damaged, or demands more memory than its
    size allows.
    """
    try:
        # Without waiting for the other end of a pipe.
        with open(path, "rb", opener=lambda *at: os.open(at[0], at[1] | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                raise UserError(f"{path} is empty, or not a regular file; expected a pickle")
            if file.peek(16).lstrip()[:1] == b"<":
                raise UserError(f"{path} is a web page, not the pickle; download it again")
            content: object = _Unpickler(file, status.st_size).load()
        _check_data(content)
        return content
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path} is refused as a pickle of a dataset: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:
        # A hostile or damaged file can raise anything; whatever it was, the file is no dataset.
        raise UserError(
            f"{path} is damaged or no pickle of a dataset ({type(error).__name__}: "
            f"{_short(str(error))}); get it again from where it was published"
        ) from error
