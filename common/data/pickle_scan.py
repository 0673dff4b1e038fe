"""What a pickle would do, read from its opcodes before any of them is run.

The unpickler trusts what opcodes declare: a length, it allocates; a memo index, it makes room up to
it; tuples nested a hundred thousand deep, it hashes until the stack overflows. So every opcode is
looked at first; the bytes of long strings are skipped, which makes this quick.

Source: the opcodes as `pickletools` documents them.
"""

import pickletools
from collections.abc import Callable, Iterator
from mmap import mmap

#: Tuples and sets in one another; a real dataset has three or four.
MAX_DEPTH = 100
#: Up to so many tuples and sets in all, their nesting can do no harm and is not looked at.
FEW = 5000

#: What reaches outside of the pickle, or makes objects of classes.
_REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
_REFUSED |= {"NEXT_BUFFER", "READONLY_BUFFER"}
_LINE, _TWO_LINES, _COUNT1, _COUNT4, _COUNT8, _COUNT4_SIGNED, _BAD = range(-1, -8, -1)
_ARGUMENTS = {
    "uint1": 1,
    "uint2": 2,
    "int4": 4,
    "uint4": 4,
    "uint8": 8,
    "float8": 8,
    "string1": _COUNT1,
    "bytes1": _COUNT1,
    "unicodestring1": _COUNT1,
    "long1": _COUNT1,
    "bytes4": _COUNT4,
    "unicodestring4": _COUNT4,
    "string4": _COUNT4_SIGNED,
    "long4": _COUNT4_SIGNED,
    "bytes8": _COUNT8,
    "bytearray8": _COUNT8,
    "unicodestring8": _COUNT8,
    "stringnl_noescape_pair": _TWO_LINES,
}
_NAMES: dict[int, str] = {ord(each.code): each.name for each in pickletools.opcodes}
_PUTS = {code for code, name in _NAMES.items() if name in ("PUT", "BINPUT", "LONG_BINPUT")}
_DEEPER = {
    code
    for code, name in _NAMES.items()
    if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE")
}


def _argument(opcode: pickletools.OpcodeInfo) -> int:
    """Return the length of an opcode's argument, or how it is found."""
    if opcode.name in _REFUSED:
        return _BAD
    return 0 if opcode.arg is None else _ARGUMENTS.get(opcode.arg.name, _LINE)


_KIND = [_BAD] * 256
for _opcode in pickletools.opcodes:
    _KIND[ord(_opcode.code)] = _argument(_opcode)


class RefusedError(Exception):
    """A pickle that no dataset is; the message says what about it."""


def scan(data: mmap) -> None:
    """Look at every opcode of a pickle up to its end.

    Raises
    ------
    RefusedError
        If it is truncated, or has an opcode, a length, a memo index or a nesting that no dataset
        needs.
    """
    deeper = 0
    for number, (code, _, argument) in enumerate(_opcodes(data)):
        if code in _DEEPER:
            deeper += 1
        elif code in _PUTS and argument > number:
            raise RefusedError(f"it uses memo entry {argument} of {number} values")
    if deeper > FEW:
        _Nesting().check(data)


def _opcodes(data: mmap) -> Iterator[tuple[int, int, int]]:
    """Yield each opcode, where it ends, and its number where it is a memo index."""
    position, size, kinds, puts = 0, len(data), _KIND, _PUTS
    gets = {ord("g"), ord("h"), ord("j")}
    while position < size:
        code = data[position]
        kind = kinds[code]
        position += 1
        argument = 0
        if kind > 0:
            end = position + kind
            if code in puts or code in gets:
                argument = int.from_bytes(data[position:end], "little")
            position = end
        elif kind < 0:
            end = _end(data, position, kind, code, size)
            if code in puts or code in gets:
                argument = _number(data[position : end - 1])
            position = end
        if position > size:
            raise RefusedError("it is truncated, or declares more than it holds")
        yield code, position, argument
        if code == 0x2E:  # STOP
            return
    raise RefusedError("it is truncated")


def _number(line: bytes) -> int:
    if not line.isdigit() or len(line) > 10:
        raise RefusedError("a memo index is no number")
    return int(line)


def _end(data: mmap, position: int, kind: int, code: int, size: int) -> int:
    """Return where an argument ends whose length is not fixed."""
    if kind == _BAD:
        name = _NAMES.get(code, f"0x{code:02x}")
        raise RefusedError(f"it has the opcode {name}, which no dataset needs")
    if kind in (_LINE, _TWO_LINES):
        for _ in range(-kind):
            position = data.find(b"\n", position) + 1
            if position == 0:
                raise RefusedError("it is truncated")
        return position
    width = {_COUNT1: 1, _COUNT8: 8}.get(kind, 4)
    counted = position + width
    signed = kind == _COUNT4_SIGNED
    length = int.from_bytes(data[position:counted], "little", signed=signed)
    if counted > size or not 0 <= length <= size - counted:
        raise RefusedError("it is truncated, or declares more than it holds")
    return counted + length


class _Nesting:
    """A pickle machine that keeps only how deep each value is nested."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        pops = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
        marked = ("TUPLE", "LIST", "DICT", "FROZENSET")
        into = ("APPENDS", "ADDITEMS", "SETITEMS")
        one = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
        self.steps: dict[int, Callable[[int], None]] = {}
        for code, name in _NAMES.items():
            if name in pops:
                self.steps[code] = lambda _, count=pops[name]: self.wrap(count)  # type: ignore[misc]
            elif name in marked:
                self.steps[code] = lambda _: self.wrap(len(self.stack) - self.marks.pop())
            elif name in into:
                self.steps[code] = lambda _: self.put_in(len(self.stack) - self.marks.pop())
            elif name in one:
                self.steps[code] = lambda _, count=one[name]: self.put_in(count)  # type: ignore[misc]
            elif name in ("REDUCE", "STACK_GLOBAL"):
                self.steps[code] = lambda _: self.wrap(2)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self.steps[code] = self.remember
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                self.steps[code] = lambda index: self.stack.append(self.memo[index])
            elif name in ("PROTO", "FRAME", "STOP"):
                self.steps[code] = lambda _: None
        self.steps |= {
            ord("("): lambda _: self.marks.append(len(self.stack)),
            ord("1"): lambda _: self.wrap(len(self.stack) - self.marks.pop(), push=False),
            ord("0"): lambda _: self.pop(),
            ord("2"): lambda _: self.stack.append(self.stack[-1]),
            0x94: lambda _: self.remember(len(self.memo)),
        }

    def check(self, data: mmap) -> None:
        try:
            for code, _, argument in _opcodes(data):
                step = self.steps.get(code)
                if step is None:
                    self.stack.append(0)
                else:
                    step(argument)
        except (IndexError, KeyError) as error:
            raise RefusedError("its opcodes do not fit one another") from error

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def take(self, count: int) -> int:
        """Take values off the stack; return the depth of what holds them."""
        if not 0 <= count <= len(self.stack):
            raise IndexError
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        depth = 1 + max(taken, default=0)
        if depth > MAX_DEPTH:
            raise RefusedError(f"it nests values more than {MAX_DEPTH} deep")
        return depth

    def wrap(self, count: int, push: bool = True) -> None:
        depth = self.take(count)
        if push:
            self.stack.append(depth)

    def put_in(self, count: int) -> None:
        depth = self.take(count)
        self.stack[-1] = max(self.stack[-1], depth)
