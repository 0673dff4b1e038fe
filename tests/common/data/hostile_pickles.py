"""Pickles that attack whoever opens them; some leave a file called ``marker`` where they run.

python hostile_pickles.py     opens those of `RUNS` with plain pickle, each in a process of its own,
                              and prints the names of those that left their file
"""

import os
import pickle
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

#: Name to a pickle, and what its refusal must say.
Attacks = dict[str, tuple[bytes, str]]


class Calls:
    """Pickles as a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def named(module: str, name: str) -> bytes:
    """A global by its name."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """A string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(content: bytes) -> bytes:
    """Bytes."""
    return b"B" + struct.pack("<I", len(content)) + content


def call(function: bytes, *arguments: bytes) -> bytes:
    """A call of what a program makes."""
    return function + b"(" + b"".join(arguments) + b"tR"


def program(*parts: bytes, protocol: int = 4) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def calls(module: str, name: str, *arguments: bytes) -> bytes:
    """A pickle that is one call."""
    return program(call(named(module, name), *arguments))


def array(shape: bytes, dtype: str, content: bytes) -> bytes:
    """An array whose state says what its contents do not."""
    kind = call(DTYPE, text(dtype), b"\x89", b"\x88")
    order = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return START + b"(K\x01" + shape + kind + order + b"\x89" + content + b"tb"


def nested_arrays(count: int, first: bool) -> bytes:
    """Arrays of objects in one another: filled from within, or each before the one in it."""

    def memo(array: int) -> bytes:
        return struct.pack("<I", array + 10)

    def fill(array: int) -> bytes:
        held = b"(K\x01K\x01\x85h\x01\x89]j" + memo(array + 1) + b"atb"
        return b"j" + memo(array) + held + b"0"

    kind = call(DTYPE, text("O8"), b"\x89", b"\x88") + b"q\x010"
    blanks = b"".join(START + b"r" + memo(array) + b"0" for array in range(count + 1))
    last = b"j" + memo(count) + b"(K\x01K\x01\x85h\x01\x89](K\x05etb0"
    fills = [fill(array) for array in range(count)]
    whole = b"".join(fills) if first else last + b"".join(reversed(fills))
    return program(kind, blanks, whole, b"j" + memo(0))


def shared(last: bytes) -> bytes:
    """Forty lists, each of which holds the one before twice; a terabyte if it were written out."""
    levels = (b"q%c0](h%ch%ce" % (level, level, level) for level in range(40))
    return b"]" + b"".join(levels) + last


SHELL, PYTHON = text("touch marker"), text("open('marker', 'w').close()")
EVAL, DTYPE = named("builtins", "eval"), named("numpy", "dtype")
RECONSTRUCT, NDARRAY = named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray")
START = call(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01b")
PLAIN = call(DTYPE, text("f8"), b"\x89", b"\x88")
HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little")
MODULE = call(named("importlib", "import_module"), text("os"))
SYSTEM = call(named("builtins", "getattr"), MODULE, text("system"))
OPENS = Calls(open, "marker", "w")
FILE, EACH = text("marker"), b"](" + PYTHON + b"\x85e"
METHOD = call(named("operator", "methodcaller"), text("system"), SHELL)
ATTRIBUTE = call(named("operator", "attrgetter"), text("system"))
PARTIAL = call(named("functools", "partial"), EVAL, PYTHON)
STARMAP = call(named("itertools", "starmap"), EVAL, EACH)
MAP = call(named("builtins", "map"), EVAL, b"](" + PYTHON + b"e")
MEMO = text("posix") + b"\x940" + text("system") + b"\x940"
CHECK_CALL = pickle.dumps(Calls(subprocess.check_call, ["touch", "marker"]))
SYSTEMS = [pickle.dumps({"train": Calls(os.system, "touch marker")}, each) for each in range(6)]
OBJECTS = call(DTYPE, text("O8"), b"\x89", b"\x88")
STACKED = text("posix") + text("system") + b"\x93"
HONEST = pickle.dumps({"a": np.arange(99), "b": "x" * 50})
BYTE, TWO = array(b"K\x01\x85", "u1", b"C\x01x"), array(b"K\x02\x85", "u1", b"C\x02xx")
MEGABYTE = raw(bytes(1 << 20)) + b"q\x000"
COPIES = call(named("builtins", "bytes"), b"h\x00") * 10_000

#: Plain pickle runs these.
RUNS: Attacks = {
    **{f"os.system, protocol {n}": (each, "posix.system") for n, each in enumerate(SYSTEMS)},
    "os.popen": (calls("os", "popen", SHELL), "os.popen"),
    "subprocess.getoutput": (calls("subprocess", "getoutput", SHELL), "getoutput"),
    "subprocess.Popen": (CHECK_CALL, "subprocess.check_call"),
    "builtins.exec": (calls("builtins", "exec", PYTHON), "builtins.exec"),
    "builtins.eval": (calls("builtins", "eval", PYTHON), "builtins.eval"),
    "Python 2's eval": (program(call(named("__builtin__", "eval"), PYTHON), protocol=2), "eval"),
    "open a file": (pickle.dumps(OPENS), "io.open"),
    # As the setup, which runs once.
    "timeit.timeit": (calls("timeit", "timeit", text("pass"), PYTHON), "timeit.timeit"),
    "getattr of a module": (program(call(SYSTEM, SHELL)), "builtins.getattr"),
    "operator.methodcaller": (program(call(METHOD, MODULE)), "operator.methodcaller"),
    "functools.partial of eval": (program(call(PARTIAL)), "functools.partial"),
    "reduce over eval": (calls("functools", "reduce", EVAL, b"](" + PYTHON + b"}e"), "reduce"),
    "itertools.starmap drained by a set": (calls("builtins", "frozenset", STARMAP), "starmap"),
    "map over eval drained by a list": (calls("builtins", "list", MAP), "builtins.map"),
    "numpy's exec": (calls("numpy.testing._private.utils", "runstring", PYTHON, b"}"), "testing"),
    "numpy writes a file": (calls("numpy", "savetxt", FILE, b"](K\x01e"), "numpy.savetxt"),
    "numpy maps a file": (
        calls("numpy", "memmap", FILE, text("u1"), text("w+"), b"K\x00", b"K\x09"),
        "numpy.memmap",
    ),
    "an array of objects hides a call": (pickle.dumps({"text": np.array([OPENS, 1])}), "io.open"),
    "a pickle in it": (calls("pickle", "loads", raw(program(call(EVAL, PYTHON)))), "pickle.loads"),
    "a name in the memo": (program(MEMO, call(b"h\x00h\x01\x93", SHELL)), "posix.system"),
    "codecs.open": (calls("codecs", "open", FILE, text("w")), "codecs.open"),
    "a name put together on the stack": (program(call(STACKED, SHELL)), "posix.system"),
    "INST": (b"(S'touch marker'\nios\nsystem\n.", "INST"),
    "OBJ": (program(b"(", EVAL, PYTHON, b"o"), "builtins.eval"),
}

#: What reaches for more than data.
REACHES: Attacks = {
    "code.InteractiveInterpreter": (calls("code", "compile_command", PYTHON), "code."),
    "pty.spawn": (program(named("pty", "spawn")), "pty.spawn"),
    "numpy loads another pickle": (calls("numpy", "load", text("marker")), "numpy.load"),
    "numpy reads a file": (calls("numpy", "fromfile", text("/etc/passwd")), "numpy.fromfile"),
    "operator.attrgetter": (calls("operator", "attrgetter", text("system")), "attrgetter"),
    "numpy.f2py": (calls("numpy.f2py.crackfortran", "myeval", SHELL), "numpy.f2py"),
    "numpy.lib": (calls("numpy.lib._npyio_impl", "DataSource", SHELL), "numpy.lib._npyio_impl"),
    "numpy.core's own loader": (calls("numpy.core.records", "fromfile", SHELL), "records"),
    "the result of a call": (program(call(ATTRIBUTE, named("os", "path"))), "operator.attrgetter"),
    "torch.load": (calls("torch.serialization", "load", SHELL), "torch.serialization"),
    "pandas.read_pickle": (calls("pandas", "read_pickle", SHELL), "pandas.read_pickle"),
    "another codec": (calls("_codecs", "encode", text("x"), text("rot13")), "codec"),
    "an attribute": (program(text("numpy") + text("ndarray.tofile") + b"\x93"), "ndarray.tofile"),
    "the globals of what is allowed": (
        program(text("numpy.core.multiarray") + text("_reconstruct.__globals__") + b"\x93"),
        "_reconstruct.__globals__",
    ),
    "OBJ of what is allowed": (program(b"(", NDARRAY, b"o"), "OBJ"),
    "NEWOBJ": (program(NDARRAY, b")\x81"), "NEWOBJ"),
    "NEWOBJ_EX": (program(NDARRAY, b")}\x92"), "NEWOBJ_EX"),
    "an extension code": (program(b"\x82\x01"), "EXT1"),
    "an extension code of two": (program(b"\x83\x01\x00"), "EXT2"),
    "an extension code of four": (program(b"\x84\x01\x00\x00\x00"), "EXT4"),
    "a persistent id in text": (b"Px\n.", "PERSID"),
    "a persistent id": (program(text("x"), b"Q"), "BINPERSID"),
    "a buffer of another": (program(b"\x97", protocol=5), "NEXT_BUFFER"),
    "a buffer that cannot be written": (program(b"N\x98", protocol=5), "READONLY_BUFFER"),
    "a state for a dtype": (program(PLAIN, b"}" + text("dtype") + text("O") + b"sb"), "compound"),
    "a function for data": (program(RECONSTRUCT), "function"),
    "a type within data": (program(b"](", PLAIN, b"e"), "a type"),
    "writes into an array": (program(TWO, b"K\x00K\x05s"), "writes into an array"),
    "writes into an array, many": (program(TWO, b"(K\x00K\x05u"), "writes into an array"),
    "no characters": (program(array(b"K\x01\x85", "U1", b"C\x04\xff\xff\xff\xff")), "characters"),
    "a state for a function": (
        program(RECONSTRUCT, b"}" + text("__doc__") + text("x") + b"sb"),
        "change a function",
    ),
    "slots of a function": (
        program(named("_codecs", "encode"), b"N}" + text("__defaults__") + b")s\x86b"),
        "change a function",
    ),
    "a call of what may only be named": (calls("builtins", "list", b"](K\x01e"), "only name"),
    "a class of arrays of its own": (
        program(call(RECONSTRUCT, named("builtins", "dict"), b"K\x00\x85", b"C\x01b")),
        "array",
    ),
    "a compound dtype": (calls("numpy", "dtype", text("V10"), b"\x89", b"\x88"), "V10"),
    "an object": (calls("numpy.core.multiarray", "scalar", OBJECTS, b"C\x01x"), "number"),
}

#: What would take the stack, or time or memory without an end.
EXHAUSTS: Attacks = {
    "tuples 300,000 deep, hashed": (program(b"}", b")" + b"\x85" * 300_000, b"Ns"), "deep"),
    "sets nested 300,000 deep": (program(b"(" * 300_000, b"\x91" * 300_000), "memory"),
    "sets nested 300 deep": (program(b"(" * 300, b"\x91" * 300), "deep"),
    "lists nested 300,000 deep": (program(b"]" * 300_000, b"a" * 299_999), "deep"),
    "arrays nested 20,000 deep": (nested_arrays(20_000, first=False), "deep"),
    "arrays nested 20,000 deep, from without": (nested_arrays(20_000, first=True), "no contents"),
    "an array that is filled twice": (program(BYTE, BYTE[len(START) :]), "twice"),
    "an array that holds itself": (
        program(START + b"q\x05(K\x01K\x01\x85", OBJECTS + b"\x89]h\x05atb"),
        "no contents",
    ),
    "marks of a million": (program(b"(" * 10**6), "memory"),
    "tuples that share one another, hashed": (
        program(b"})", *(b"q%ch%c\x86" % (level, level) for level in range(40)), b"Ns"),
        "too many times",
    ),
    "doubled tuples, hashed": (program(b"})", b"2\x86" * 40, b"Ns"), "too many"),
    "shared lists as a type's name": (program(call(DTYPE, shared(b""), b"\x89", b"\x88")), "list"),
    "shared lists put into an array": (program(BYTE, b"K\x00", shared(b"s")), "into an array"),
    "a frame of 100 GB": (program(b"\x95" + struct.pack("<Q", 10**11), b"N"), "declares"),
    "no text of a gigabyte each": (program(array(b"K\x00\x85", "S999999999", b"C\x00")), "memory"),
    "a million sets": (program(b"](", b"\x8f" * 10**6, b"e"), "memory"),
    "100 GB of bytes declared": (program(b"\x8e" + struct.pack("<Q", 10**11)), "declares"),
    "100 GB to write declared": (program(b"\x96" + struct.pack("<Q", 10**11)), "declares"),
    "100 GB of text declared": (program(b"\x8d" + struct.pack("<Q", 10**11)), "declares"),
    "a negative length": (program(b"T\xff\xff\xff\xff"), "negative byte count"),
    "a bytearray of a size": (calls("builtins", "bytearray", b"J\xff\xff\xff\x7f"), "bytes"),
    "a huge array": (program(call(RECONSTRUCT, NDARRAY, HUGE + b"\x85", b"C\x01b")), "shape"),
    "an array that becomes huge": (program(array(HUGE + b"\x85", "f8", b"C\x01x")), "does not fit"),
    "an object array becomes huge": (program(array(HUGE + b"\x85", "O8", b"](Ne")), "does not fit"),
    "long text": (program(array(b"K\x01\x85", "S999999999", b"C\x01x")), "does not fit"),
    "a megabyte copied ten thousand times": (program(MEGABYTE, b"]q\x01(", COPIES, b"e"), "memory"),
}

#: What is no whole pickle.
DAMAGED: Attacks = {
    **{
        f"cut after {share:.0%}": (HONEST[: round(len(HONEST) * share)], "truncated")
        for share in (0.03, 0.3, 0.6, 0.99)
    },
    "opcodes that do not fit": (program(b"\x87"), "damaged"),
    "no opcodes": (b"\xff\xfe" * 20, "0xff"),
}

REFUSED = RUNS | REACHES | EXHAUSTS | DAMAGED

#: Read as what they are, in little memory: their index makes room in plain pickle alone.
HARMLESS = {
    "a memo of four billion": program(b"Nr\xff\xff\xff\xff"),
    "a memo of a billion in digits": b"Np999999999\n.",
}


if __name__ == "__main__":
    for name, (content, _) in RUNS.items():
        if os.fork() == 0:
            try:
                pickle.loads(content)  # the point of it
            finally:  # some fail once they have run
                with suppress(ChildProcessError):
                    os.wait()  # for the process that it started, if any
                os._exit(0)
        os.wait()
        if Path("marker").exists():
            Path("marker").unlink()
            print(name)
