"""Untrusted pickles: honest ones are read, hostile ones run nothing."""

import collections
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_pickles
import numpy as np
import pytest
from data_checks import refusal, run_python
from hostile_pickles import HARMLESS, REFUSED, RUNS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data.safe_pickle import is_pickle, load
from common.errors import UserError


def loaded(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return load(path)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data.pkl"


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(name: str, file: Path) -> None:
    content, says = REFUSED[name]
    message = refusal(lambda: loaded(file, content))
    assert message.startswith(str(file))
    assert len(message) < len(str(file)) + 250
    assert says in message.removeprefix(str(file))
    assert not Path("marker").exists()


def test_plain_pickle_would_have_run_them(file: Path) -> None:
    command = [sys.executable, "-I", "-W", "ignore", hostile_pickles.__file__]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == list(RUNS)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_plain_pickle_makes_room_for_is_read_without(name: str, file: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert loaded(file, HARMLESS[name]) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 10_000  # KiB


def test_no_hostile_pickle_takes_memory(file: Path) -> None:
    """All of them in one process that may have 1 GiB beside what it imports."""
    script = """
from common.data.safe_pickle import load
from tests.common.data.hostile_pickles import REFUSED
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**30,) * 2)
path = Path(sys.argv[1])
for name, (content, says) in REFUSED.items():
    path.write_bytes(content)
    try:
        load(path)
    except UserError as error:
        assert says in str(error), name
print(memory())
"""
    assert float(run_python(script, file, OPENBLAS_NUM_THREADS="1")) < 390  # MiB


ARRAYS = {
    "floats": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2),
    "half": np.arange(4, dtype=np.float16),
    "double": np.array([np.nan, np.inf, -np.inf, 1e300]),
    "whole": np.arange(5, dtype=np.int64),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "big endian": np.arange(5, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.empty((0, 50, 3), dtype=np.float32),
    "no dimension": np.array(3.5),
    "strided": np.arange(10)[::2],
    "axes in another order": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "big endian text": np.array(["a", "größe"]).astype(">U5"),
    "no text": np.array([], dtype="U3"),
    "text": np.array(["a", "größe"]),
    "bytes": np.array([b"a", b"xyz"]),
    "rows of bytes": np.array([[b"video", b"0.5", b"1.5"]], dtype=object),
    "objects": np.array(["a", None, 3, b"x", [1, 2]], dtype=object),
}
VALUES = {
    "text": "größe",
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "numbers": [0, -1, 2**70, 1.5, float("inf"), True, None, 1 + 2j],
    "nested": {"a": [(1, (2,)), {"b": {3}}, frozenset({4})]},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "scalars": [np.float32(1.5), np.int64(-3), np.str_("x"), np.bytes_(b"y"), np.bool_(True)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(file: Path, name: str, protocol: int) -> None:
    array = ARRAYS[name]
    found = np.asarray(loaded(file, pickle.dumps({"train": {"x": array}}, protocol))["train"]["x"])
    assert found.shape == array.shape
    assert found.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert found.tolist() == array.tolist() or np.array_equal(found, array, equal_nan=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", VALUES)
def test_plain_values_come_back(file: Path, name: str, protocol: int) -> None:
    assert loaded(file, pickle.dumps(VALUES[name], protocol)) == VALUES[name]


def test_a_dictionary_with_a_default_is_a_plain_one(file: Path) -> None:
    value = collections.defaultdict(list, {"a": [1]})
    found = loaded(file, pickle.dumps(value))
    assert found == {"a": [1]}
    assert type(found) is dict


def test_arrays_are_not_copied(file: Path) -> None:
    """Peak memory of loading 200 MB stays near 200 MB."""
    file.write_bytes(pickle.dumps({"x": np.ones((50_000_000,), dtype=np.float32)}, protocol=4))
    script = """
from common.data.safe_pickle import load
before = memory()
load(Path(sys.argv[1]))
print(memory() - before)
"""
    taken = float(run_python(script, file, OPENBLAS_NUM_THREADS="1"))
    assert 0.9 < taken * (1 << 20) / file.stat().st_size < 1.3


def test_many_small_values_are_no_attack(file: Path) -> None:
    values = [{"id": number, "span": (number, number + 1), "no": []} for number in range(100_000)]
    assert loaded(file, pickle.dumps(values, 4)) == values


def test_a_pickle_of_python_2(file: Path) -> None:
    raw = np.array([1.5, -2.25], dtype="<f8").tobytes()
    assert max(raw) > 127
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\nq\x02K\x00\x85U\x01bt"
        b"Rq\x03(K\x01K\x02\x85cnumpy\ndtype\nq\x04(U\x02f8K\x00K\x01tRq\x05(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    content = b"\x80\x02}q\x00(U\x05audio" + array + b"U\x02idU\x05abc[1u."
    found = loaded(file, content)
    assert found["id"] == "abc[1"
    np.testing.assert_array_equal(found["audio"], [1.5, -2.25])
    assert pickle.loads(content, encoding="latin1")["audio"].tolist() == [1.5, -2.25]


def test_what_is_a_pickle(tmp_path: Path) -> None:
    def named(name: str, content: bytes) -> bool:
        (tmp_path / name).write_bytes(content)
        return is_pickle(tmp_path / name)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert named("data", pickle.dumps({"a": [1]}, protocol))
    assert named("data.pkl", b"anything")
    assert not named("data.csv", b"id,label\n1,2\n")
    assert not named("data.npz", b"PK\x03\x04")
    assert not named("data.csd", b"\x89HDF\r\n")
    assert not named("empty", b"")


def test_an_array_can_be_written_once_it_is_loaded(file: Path) -> None:
    for protocol in (4, 5):
        array = loaded(file, pickle.dumps({"x": np.zeros(3)}, protocol))["x"]
        array[1] = 5
        assert np.asarray(array).tolist() == [0, 5, 0]


def test_lists_that_hold_themselves_are_looked_through_and_what_follows_ignored(file: Path) -> None:
    value: list[Any] = [1]
    value.append(value)
    assert loaded(file, pickle.dumps(value) + pickle.dumps([2]))[1][1][0] == 1


def test_an_empty_file_a_folder_and_a_pipe_that_is_not_waited_for(file: Path) -> None:
    refusal(lambda: loaded(file, b""), "empty")
    refusal(lambda: load(file.parent), "cannot be read")
    refusal(lambda: load(file.parent / "missing.pkl"), "cannot be read")
    os.mkfifo(file.parent / "pipe")
    refusal(lambda: load(file.parent / "pipe"), "regular file")


SEEDS = [
    pickle.dumps({"train": {**ARRAYS, "v": VALUES}}, protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
]
OPCODES = b"".join(each.code.encode("latin1") for each in pickletools.opcodes)
PLAIN = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex)


fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
#: What a pickle may name, and the beginnings of calls of it.
PIECES = [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"]
PIECES += [b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n"]
PIECES += [b"X\x02\x00\x00\x00f8", b"C\x08abcdefgh", b"K\x00\x85"]
PIECES += [b"(", b"R", b"b", b"q\x00", b"h\x00"]
EDIT = st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 8))
CODE = st.sampled_from(list(OPCODES)).map(lambda code: bytes([code]))


@fuzz
@given(seed=st.sampled_from(SEEDS), edits=st.lists(EDIT, max_size=6))
def test_damaged_pickles_are_read_or_refused(
    file: Path, seed: bytes, edits: list[tuple[int, bytes, int]]
) -> None:
    content = seed
    for place, inserted, removed in edits:
        at = place % len(content) if content else 0
        content = content[:at] + inserted + content[at + removed :]
    assert read_or_refused(file, content)


@fuzz
@given(parts=st.lists(CODE | st.sampled_from(PIECES) | st.binary(max_size=3), max_size=60))
def test_random_opcodes_are_read_or_refused(file: Path, parts: list[bytes]) -> None:
    assert read_or_refused(file, b"\x80\x04" + b"".join(parts) + b".")


def data_only(value: object, seen: set[int]) -> bool:
    """Whether a value and all that it holds are data."""
    if id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, dict):
        return all(data_only(each, seen) for pair in value.items() for each in pair)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return all(data_only(each, seen) for each in np.asarray(value).ravel().tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return all(data_only(each, seen) for each in value)
    return value is None or isinstance(value, (*PLAIN, np.ndarray, np.generic))


def read_or_refused(file: Path, content: bytes) -> bool:
    try:
        return data_only(loaded(file, content), set())
    except UserError as error:
        return "\n" not in str(error)
