"""What a pickle would do, read from its opcodes before any of them is run.

The unpickler trusts what opcodes declare: a length, it allocates; a memo index, it makes room up to
it; tuples nested a hundred thousand deep, it hashes until the stack overflows; tuples that share
one another, it hashes for ever. So every opcode is looked at first; the bytes of long strings are
skipped, which makes this quick.

Source: the opcodes as `pickletools` documents them.
"""

import pickletools
from collections.abc import Callable, Iterator
from mmap import mmap

#: Containers in one another; a real dataset has three or four.
MAX_DEPTH = 100
#: Values that a tuple may hold at any depth: so many, and so many for each opcode. More than one
#: for each takes tuples that share one another, which double what is hashed with each.
FREE_VALUES, VALUE_RATIO = 10_000, 4
#: Bytes that containers may take before they hold anything: so many, and times the file's size.
FREE, RATIO = 1 << 26, 16
_BITS, _MASK = 8, 255

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
_GETS = {code for code, name in _NAMES.items() if name in ("GET", "BINGET", "LONG_BINGET")}
_SIZES = {"EMPTY_LIST": 64, "LIST": 64, "EMPTY_DICT": 72, "DICT": 72}
_SIZES |= {"EMPTY_SET": 216, "FROZENSET": 216}


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
        If it is truncated, or has an opcode, a length, a memo index, a nesting or a number of
        containers that no dataset needs.
    """
    _Machine(len(data)).check(data)


def _opcodes(data: mmap) -> Iterator[tuple[int, int]]:
    """Yield each opcode, and its number where it is a memo index."""
    position, size, kinds, indexed = 0, len(data), _KIND, _PUTS | _GETS
    while position < size:
        code = data[position]
        kind = kinds[code]
        position += 1
        argument = 0
        if kind == _COUNT1 and position < size:  # the most frequent, so without a call
            position += 1 + data[position]
        elif kind > 0:
            end = position + kind
            if code in indexed:
                argument = int.from_bytes(data[position:end], "little")
            elif code == 0x95:  # FRAME, which is read at once
                framed = end + int.from_bytes(data[position:end], "little")
                end = framed if framed > size else end
            position = end
        elif kind < 0:
            end = _end(data, position, kind, code, size)
            if code in indexed:
                argument = _number(data[position : end - 1])
            position = end
        if position > size:
            raise RefusedError("it is truncated, or declares more than it holds")
        yield code, argument
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


class _Machine:
    """A pickle machine that keeps of each value only what it is made of.

    A value is its depth, and above `_BITS` how many values a tuple holds at any depth. Only tuples
    are hashed all the way down: lists and dictionaries are not hashed, and sets keep their hashes.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.number = 0
        self.left = FREE + RATIO * size
        self.steps: dict[int, Callable[[int], object]] = {}
        for code, name in _NAMES.items():
            step = self._step(name)
            if step is not None:
                self.steps[code] = step

    def _step(self, name: str) -> Callable[[int], object] | None:
        """Return what an opcode does; None if it pushes a plain value."""
        short = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
        into = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
        match name:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return lambda _: self.wrap(short[name])
            case "TUPLE":
                return lambda _: self.wrap(self.marked())
            case "LIST" | "DICT" | "FROZENSET":
                return lambda _: self.contain(self.marked(), _SIZES[name])
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                return lambda _: self.contain(0, _SIZES[name])
            case "REDUCE" | "STACK_GLOBAL":
                return lambda _: self.contain(2, 0)
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                return lambda _: self.put_in(self.marked())
            case "APPEND" | "SETITEM" | "BUILD":
                return lambda _: self.put_in(into[name])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                return self.put
            case "GET" | "BINGET" | "LONG_BINGET":
                return lambda index: self.stack.append(self.memo[index])
            case "MARK":
                return lambda _: self.marks.append(len(self.stack))
            case "POP":
                return lambda _: self.pop()
            case "POP_MARK":
                return lambda _: self.drop(self.marked())
            case "DUP":
                return lambda _: self.stack.append(self.stack[-1])
            case "PROTO" | "FRAME" | "STOP" | "MEMOIZE":  # the last is done in `check`
                return lambda _: None
        return None

    def check(self, data: mmap) -> None:
        steps, stack, memo = self.steps.get, self.stack, self.memo
        try:
            for self.number, (code, argument) in enumerate(_opcodes(data)):
                step = steps(code)
                if step is None:
                    stack.append(0)
                elif code == 0x94:  # MEMOIZE, the most frequent
                    memo[len(memo)] = stack[-1]
                else:
                    step(argument)
        except (IndexError, KeyError) as error:
            raise RefusedError("its opcodes do not fit one another") from error

    def marked(self) -> int:
        """Return how many values there are above the last mark, which is taken away."""
        return len(self.stack) - self.marks.pop()

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def put(self, index: int) -> None:
        if index > self.number:
            raise RefusedError(f"it uses memo entry {index} of {self.number} values")
        self.memo[index] = self.stack[-1]

    def drop(self, count: int) -> list[int]:
        """Take values off the stack."""
        first = len(self.stack) - count
        if not 0 <= first <= len(self.stack):
            raise IndexError
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    @staticmethod
    def above(values: list[int]) -> int:
        """Return the depth of what holds values."""
        depth = 1 + max([value & _MASK for value in values], default=0)
        if depth > MAX_DEPTH:
            raise RefusedError(f"it nests values more than {MAX_DEPTH} deep")
        return depth

    def wrap(self, count: int) -> None:
        """Make a tuple."""
        taken = self.drop(count)
        held = count + sum([value >> _BITS for value in taken])
        if held > FREE_VALUES + VALUE_RATIO * self.number:
            raise RefusedError("its tuples hold one another too many times")
        self.stack.append(held << _BITS | self.above(taken))

    def contain(self, count: int, size: int) -> None:
        """Make any other value out of values."""
        self.left -= size
        if self.left < 0:
            raise RefusedError("it has more containers than its size allows; it demands memory")
        self.stack.append(self.above(self.drop(count)) if count else 0)

    def put_in(self, count: int) -> None:
        depth = self.above(self.drop(count))
        whole = self.stack[-1]
        self.stack[-1] = max(whole & _MASK, depth) | whole >> _BITS << _BITS
