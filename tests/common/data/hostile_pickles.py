"""Pickles that attack whoever opens them; each leaves a marker file where it gets to run.

python hostile_pickles.py NAME MARKER     opens one with plain pickle, in a process of its own
"""

import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Hostile:
    """One attack.

    Attributes
    ----------
    name
        What it does.
    make
        Its bytes, given the path of a marker file.
    executes
        Whether plain pickle runs it, which leaves the marker.
    says
        What its refusal must name.
    """

    name: str
    make: Callable[[str], bytes]
    executes: bool
    says: str


class Calls:
    """Pickles as a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def _program(*parts: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def _touch(marker: str) -> bytes:
    return _text(f"open({marker!r}, 'w').close()")


def _shell(marker: str) -> bytes:
    return _text(f"touch '{marker}'")


def _reduced(module: str, name: str) -> Callable[[str], bytes]:
    """Call a function with a shell command."""
    return lambda marker: _program(_call(_global(module, name), _shell(marker)))


def _python(module: str, name: str, protocol: int = 4) -> Callable[[str], bytes]:
    """Call a function with Python code."""
    return lambda marker: _program(_call(_global(module, name), _touch(marker)), protocol=protocol)


def _with_plain(function: Callable[[str], Any], protocol: int = 4) -> Callable[[str], bytes]:
    return lambda marker: pickle.dumps(function(marker), protocol=protocol)


def _opener(marker: str) -> tuple[Any, ...]:
    return (open, marker, "w")


EVAL = _global("builtins", "eval")
_MULTIARRAY = ("numpy.core.multiarray", "_reconstruct")


def _array(shape: bytes, dtype: str, raw: bytes) -> bytes:
    """An array whose state says what its contents do not."""
    start = _call(_global(*_MULTIARRAY), _global("numpy", "ndarray"), b"K\x00\x85", b"C\x01b")
    kind = _call(_global("numpy", "dtype"), _text(dtype), b"\x89", b"\x88")
    order = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return start + b"(K\x01" + shape + kind + order + b"\x89" + raw + b"tb"


def _shared(last: bytes) -> bytes:
    """Forty lists, each of which holds the one before twice; a terabyte if it were written out."""
    levels = (b"q%c0](h%ch%ce" % (level, level, level) for level in range(40))
    return b"]" + b"".join(levels) + last


DTYPE = _global("numpy", "dtype")
HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")

CORPUS: list[Hostile] = [
    *(
        Hostile(
            f"os.system, protocol {protocol}",
            lambda marker, p=protocol: pickle.dumps(  # type: ignore[misc]
                {"train": Calls(__import__("os").system, f"touch '{marker}'")}, protocol=p
            ),
            True,
            "posix.system",
        )
        for protocol in range(6)
    ),
    Hostile("os.popen", _reduced("os", "popen"), True, "os.popen"),
    Hostile("subprocess.getoutput", _reduced("subprocess", "getoutput"), True, "getoutput"),
    Hostile(
        "subprocess.Popen",
        _with_plain(lambda m: Calls(__import__("subprocess").check_call, ["touch", m])),
        True,
        "subprocess.check_call",
    ),
    Hostile("builtins.exec", _python("builtins", "exec"), True, "builtins.exec"),
    Hostile("builtins.eval", _python("builtins", "eval"), True, "builtins.eval"),
    Hostile("Python 2's __builtin__.eval", _python("__builtin__", "eval", 2), True, "eval"),
    Hostile("open a file", _with_plain(lambda m: Calls(*_opener(m))), True, "io.open"),
    Hostile(
        "timeit.timeit",
        # As the setup, which runs once.
        lambda m: _program(_call(_global("timeit", "timeit"), _text("pass"), _touch(m))),
        True,
        "timeit.timeit",
    ),
    Hostile("code.InteractiveInterpreter", _python("code", "compile_command"), False, "code."),
    Hostile("pty.spawn", lambda m: _program(_global("pty", "spawn")), False, "pty.spawn"),
    Hostile(
        "getattr of a module",
        lambda m: _program(
            _call(
                _call(
                    _global("builtins", "getattr"),
                    _call(_global("importlib", "import_module"), _text("os")),
                    _text("system"),
                ),
                _shell(m),
            )
        ),
        True,
        "builtins.getattr",
    ),
    Hostile(
        "operator.methodcaller",
        lambda m: _program(
            _call(
                _call(_global("operator", "methodcaller"), _text("system"), _shell(m)),
                _call(_global("importlib", "import_module"), _text("os")),
            )
        ),
        True,
        "operator.methodcaller",
    ),
    Hostile(
        "functools.partial of eval",
        lambda m: _program(_call(_call(_global("functools", "partial"), EVAL, _touch(m)))),
        True,
        "functools.partial",
    ),
    Hostile(
        "functools.reduce over eval",
        lambda m: _program(_call(_global("functools", "reduce"), EVAL, b"](" + _touch(m) + b"}e")),
        True,
        "functools.reduce",
    ),
    Hostile(
        "itertools.starmap drained by a set",
        lambda m: _program(
            _call(
                _global("builtins", "frozenset"),
                _call(_global("itertools", "starmap"), EVAL, b"](" + _touch(m) + b"\x85e"),
            )
        ),
        True,
        "itertools.starmap",
    ),
    Hostile(
        "map over eval drained by a list",
        lambda m: _program(
            _call(
                _global("builtins", "list"),
                _call(_global("builtins", "map"), EVAL, b"](" + _touch(m) + b"e"),
            )
        ),
        True,
        "builtins.map",
    ),
    Hostile(
        "numpy's own exec",
        lambda m: _program(
            _call(_global("numpy.testing._private.utils", "runstring"), _touch(m), b"}")
        ),
        True,
        "numpy.testing",
    ),
    Hostile(
        "numpy writes a file",
        lambda m: _program(_call(_global("numpy", "savetxt"), _text(m), b"](K\x01e")),
        True,
        "numpy.savetxt",
    ),
    Hostile(
        "numpy maps a file",
        lambda m: _program(
            _call(
                _global("numpy", "memmap"), _text(m), _text("u1"), _text("w+"), b"K\x00", b"K\x09"
            )
        ),
        True,
        "numpy.memmap",
    ),
    Hostile(
        "numpy loads another pickle",
        lambda m: _program(_call(_global("numpy", "load"), _text(m))),
        False,
        "numpy.load",
    ),
    Hostile(
        "numpy reads a file",
        lambda m: _program(_call(_global("numpy", "fromfile"), _text("/etc/passwd"))),
        False,
        "numpy.fromfile",
    ),
    Hostile(
        "numpy object array hides a call",
        _with_plain(lambda m: {"text": np.array([Calls(*_opener(m)), 1], dtype=object)}),
        True,
        "io.open",
    ),
    Hostile(
        "pickle within a pickle",
        lambda m: _program(
            _call(_global("pickle", "loads"), _bytes(_program(_call(EVAL, _touch(m)))))
        ),
        True,
        "pickle.loads",
    ),
    Hostile(
        "operator.attrgetter",
        lambda m: _program(_call(_global("operator", "attrgetter"), _text("system"))),
        False,
        "operator.attrgetter",
    ),
    Hostile("numpy.f2py", _reduced("numpy.f2py.crackfortran", "myeval"), False, "numpy.f2py"),
    Hostile(
        "numpy.lib", _reduced("numpy.lib._npyio_impl", "DataSource"), False, "numpy.lib._npyio_impl"
    ),
    Hostile(
        "numpy.core's own loader", _reduced("numpy.core.records", "fromfile"), False, "records"
    ),
    Hostile(
        "the result of a call is called",
        lambda m: _program(
            _call(_call(_global("operator", "attrgetter"), _text("system")), _global("os", "path"))
        ),
        False,
        "operator.attrgetter",
    ),
    Hostile(
        "a name put together in the memo",
        lambda m: _program(
            _text("posix") + b"\x940" + _text("system") + b"\x940",
            _call(b"h\x00h\x01\x93", _shell(m)),
        ),
        True,
        "posix.system",
    ),
    Hostile("torch.load", _reduced("torch.serialization", "load"), False, "torch.serialization"),
    Hostile("pandas.read_pickle", _reduced("pandas", "read_pickle"), False, "pandas.read_pickle"),
    Hostile(
        "codecs.open",
        lambda m: _program(_call(_global("codecs", "open"), _text(m), _text("w"))),
        True,
        "codecs.open",
    ),
    Hostile(
        "another codec",
        lambda m: _program(_call(_global("_codecs", "encode"), _text("x"), _text("rot13"))),
        False,
        "codec",
    ),
    Hostile(
        "a name put together on the stack",
        lambda m: _program(_call(_stack_global("posix", "system"), _shell(m))),
        True,
        "posix.system",
    ),
    Hostile(
        "an attribute of what is allowed",
        lambda m: _program(_stack_global("numpy", "ndarray.tofile")),
        False,
        "numpy.ndarray.tofile",
    ),
    Hostile(
        "the globals of what is allowed",
        lambda m: _program(_stack_global("numpy.core.multiarray", "_reconstruct.__globals__")),
        False,
        "_reconstruct.__globals__",
    ),
    Hostile(
        "INST", lambda m: b"(" + b"S'touch \"" + m.encode() + b"\"'\nios\nsystem\n.", True, "INST"
    ),
    Hostile("OBJ", lambda m: _program(b"(", EVAL, _touch(m), b"o"), True, "OBJ"),
    Hostile(
        "NEWOBJ",
        lambda m: _program(_global("subprocess", "Popen"), b")\x81"),
        False,
        "NEWOBJ",
    ),
    Hostile(
        "NEWOBJ_EX", lambda m: _program(_global("io", "BytesIO"), b")}\x92"), False, "NEWOBJ_EX"
    ),
    Hostile("an extension code", lambda m: _program(b"\x82\x01"), False, "EXT1"),
    Hostile("an extension code of two", lambda m: _program(b"\x83\x01\x00"), False, "EXT2"),
    Hostile(
        "an extension code of four", lambda m: _program(b"\x84\x01\x00\x00\x00"), False, "EXT4"
    ),
    Hostile("a persistent id in text", lambda m: b"Px\n.", False, "PERSID"),
    Hostile(
        "a state for a dtype",
        lambda m: _program(
            _call(DTYPE, _text("f8"), b"\x89", b"\x88"), b"}" + _text("dtype") + _text("O") + b"sb"
        ),
        False,
        "compound",
    ),
    Hostile("a function for data", lambda m: _program(_global(*_MULTIARRAY)), False, "function"),
    Hostile(
        "a type within data",
        lambda m: _program(b"](", _call(DTYPE, _text("f8"), b"\x89", b"\x88"), b"e"),
        False,
        "a type",
    ),
    Hostile(
        "writes into an array",
        lambda m: _program(_array(b"K\x02\x85", "u1", b"C\x02xx"), b"K\x00K\x05s"),
        False,
        "writes into an array",
    ),
    Hostile(
        "characters that do not exist",
        lambda m: _program(_array(b"K\x01\x85", "U1", b"C\x04\xff\xff\xff\xff")),
        False,
        "characters",
    ),
    Hostile("a persistent id", lambda m: _program(_text("x"), b"Q"), False, "BINPERSID"),
    Hostile("a buffer of another", lambda m: _program(b"\x97", protocol=5), False, "NEXT_BUFFER"),
    Hostile(
        "a state for a function",
        lambda m: _program(_global(*_MULTIARRAY), b"}" + _text("__doc__") + _text("x") + b"sb"),
        False,
        "change a function",
    ),
    Hostile(
        "slots of a function",
        lambda m: _program(
            _global("_codecs", "encode"), b"N}" + _text("__defaults__") + b")s\x86b"
        ),
        False,
        "change a function",
    ),
    Hostile(
        "a call of what may only be named",
        lambda m: _program(_call(_global("builtins", "list"), b"](K\x01e")),
        False,
        "only name",
    ),
    Hostile(
        "a class of arrays of its own",
        lambda m: _program(
            _call(_global(*_MULTIARRAY), _global("builtins", "dict"), b"K\x00\x85", b"C\x01b")
        ),
        False,
        "array",
    ),
    Hostile(
        "a compound dtype",
        lambda m: _program(_call(_global("numpy", "dtype"), _text("V10"), b"\x89", b"\x88")),
        False,
        "V10",
    ),
    Hostile(
        "a number that is an object",
        lambda m: _program(
            _call(
                _global("numpy.core.multiarray", "scalar"),
                _call(_global("numpy", "dtype"), _text("O8"), b"\x89", b"\x88"),
                b"C\x01x",
            )
        ),
        False,
        "number",
    ),
    # Recursion
    Hostile(
        "tuples nested 300,000 deep, hashed",
        lambda m: _program(b"}", b")" + b"\x85" * 300_000, b"Ns"),
        False,
        "deep",
    ),
    Hostile(
        "sets nested 300,000 deep",
        lambda m: _program(b"(" * 300_000, b"\x91" * 300_000),
        False,
        "deep",
    ),
    Hostile(
        "lists nested 300,000 deep",
        lambda m: _program(b"]" * 300_000, b"a" * 299_999),
        False,
        "deep",
    ),
    Hostile(
        "tuples that share one another, hashed",
        lambda m: _program(b"})", *(b"q%ch%c\x86" % (level, level) for level in range(40)), b"Ns"),
        False,
        "too many times",
    ),
    Hostile(
        "doubled tuples, hashed", lambda m: _program(b"})", b"2\x86" * 40, b"Ns"), False, "too many"
    ),
    Hostile(
        "lists that share one another as the name of a type",
        lambda m: _program(_call(DTYPE, _shared(b""), b"\x89", b"\x88")),
        False,
        "list",
    ),
    # Memory
    Hostile(
        "lists that share one another put into an array",
        lambda m: _program(_array(b"K\x01\x85", "u1", b"C\x01x"), b"K\x00", _shared(b"s")),
        False,
        "writes into an array",
    ),
    Hostile(
        "a frame of 100 GB",
        lambda m: _program(b"\x95" + struct.pack("<Q", 10**11), b"N"),
        False,
        "declares",
    ),
    Hostile(
        "no text of a gigabyte each",
        lambda m: _program(_array(b"K\x00\x85", "S999999999", b"C\x00")),
        False,
        "memory",
    ),
    Hostile(
        "a million sets", lambda m: _program(b"](", b"\x8f" * 10**6, b"e"), False, "containers"
    ),
    Hostile(
        "100 GB of bytes declared",
        lambda m: _program(b"\x8e" + struct.pack("<Q", 10**11)),
        False,
        "declares",
    ),
    Hostile(
        "100 GB of text declared",
        lambda m: _program(b"\x8d" + struct.pack("<Q", 10**11)),
        False,
        "declares",
    ),
    Hostile("a negative length", lambda m: _program(b"T\xff\xff\xff\xff"), False, "declares"),
    Hostile("a memo of four billion", lambda m: _program(b"Nr\xff\xff\xff\xff"), False, "memo"),
    Hostile("a memo of a billion in digits", lambda m: b"Np999999999\n.", False, "memo"),
    Hostile(
        "a bytearray of a size",
        lambda m: _program(_call(_global("builtins", "bytearray"), b"J\xff\xff\xff\x7f")),
        False,
        "bytes",
    ),
    Hostile(
        "an array that begins huge",
        lambda m: _program(
            _call(_global(*_MULTIARRAY), _global("numpy", "ndarray"), HUGE + b"\x85", b"C\x01b")
        ),
        False,
        "shape",
    ),
    Hostile(
        "an array that becomes huge",
        lambda m: _program(_array(HUGE + b"\x85", "f8", b"C\x01x")),
        False,
        "does not fit",
    ),
    Hostile(
        "an object array that becomes huge",
        lambda m: _program(_array(HUGE + b"\x85", "O8", b"](Ne")),
        False,
        "does not fit",
    ),
    Hostile(
        "text of a terabyte an element",
        lambda m: _program(_array(b"K\x01\x85", "S999999999", b"C\x01x")),
        False,
        "does not fit",
    ),
    Hostile(
        "a megabyte copied ten thousand times",
        lambda m: _program(
            _bytes(bytes(1 << 20)) + b"q\x000",
            b"]q\x01(",
            _call(_global("builtins", "bytes"), b"h\x00") * 10_000,
            b"e",
        ),
        False,
        "memory",
    ),
    # Damage
    *(
        Hostile(
            f"cut after {share:.0%}",
            lambda m, s=share: (whole := pickle.dumps({"a": np.arange(99), "b": "x" * 50}))[  # type: ignore[misc]
                : round(len(whole) * s)
            ],
            False,
            "truncated",
        )
        for share in (0.03, 0.3, 0.6, 0.99)
    ),
    Hostile("opcodes that do not fit", lambda m: _program(b"\x87"), False, "do not fit"),
    Hostile("no opcodes", lambda m: b"\xff\xfe" * 20, False, "0xff"),
]


if __name__ == "__main__":
    chosen = next(each for each in CORPUS if each.name == sys.argv[1])
    pickle.loads(chosen.make(sys.argv[2]))  # the point of it
