"""Whatever a file holds, a reader returns items or says in one line what is wrong with it.

How many files are tried is set by the environment variable UTMP_FUZZ_EXAMPLES; without it they are
few, and the same every time.
"""

import csv
import gc
import io
import json
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from common.data.formats.registry import read_source
from common.data.source import EMOTIONS, ReadSettings, Source
from common.errors import UserError
from common.task import Task
from tests.common.data.formats import writers

EXAMPLES = os.environ.get("UTMP_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or 8),
    derandomize=EXAMPLES is None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
randoms = st.randoms(use_true_random=False)
Content = dict[Any, Any]
NAMES = ["csd", "mmsa", "mult", "multibench", "npz", "table"]

UTTERANCES = writers.make_utterances(5, count=10, videos=5, zero_text=1, missing_audio=1)
ALIGNED = writers.make_utterances(6, count=10, videos=5, aligned=True)

READINGS = (
    ReadSettings(),
    ReadSettings(task=Task.classification),
    ReadSettings(task=Task.multilabel),
    ReadSettings(task=Task.multilabel, emotions=True),
    ReadSettings(task=Task.multilabel, labels=EMOTIONS),
    ReadSettings(modalities=("audio",), max_seq_len=2),
    ReadSettings(modalities=("smell",)),
    ReadSettings(group="video"),
    ReadSettings(group="split", context=2),
    ReadSettings(tabular=("audio",)),
    ReadSettings(labels=("label",), max_seq_len=1),
    ReadSettings(arrays={"audio": "audio.npy"}),
    ReadSettings(arrays={"audio": "."}),
)


def attempt(paths: Sequence[Path], format: str, reading: ReadSettings) -> None:
    """Read: the result is a source, or a `UserError` of one line; and no warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            source, _, _ = read_source(paths, format, reading)
        except UserError as error:
            message = str(error)
            assert message.strip()
            assert "\n" not in message and "\r" not in message, message
        else:
            check_source(source)
    assert not caught, [str(warning.message) for warning in caught]


def check_source(source: Source) -> None:
    """Check that the parts of a source fit together."""
    items = source.items
    count = len(items)
    assert len(items.ids) == len(items.groups) == len(source.splits) == count
    assert len(set(items.ids.tolist())) == count
    assert set(source.splits.tolist()) <= {"", "train", "validation", "test"}
    assert np.isfinite(items.labels).all()
    assert items.labels.dtype in (np.float32, np.int64)
    assert items.sequences
    for sequences in items.sequences.values():
        assert sequences.values.ndim == 2
        assert sequences.values.dtype in (np.float32, np.float16)
        assert len(sequences.starts) == len(sequences.lengths) == count
        assert (sequences.lengths >= 0).all() and (sequences.starts >= 0).all()
        assert (sequences.starts + sequences.lengths <= len(sequences.values)).all()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what only the making of wrong values warns of."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


# ---- Wrong values ---------------------------------------------------------------------

DTYPES = ("f2", "f4", "f8", ">f4", "i1", "i8", "u8", "?", "c8", "S3", "U2", "O", "M8[s]", "m8[D]")
KEYS: tuple[Any, ...] = ("text", "audio", "labels", "id", "train", "valid", "test", "dev", "smell")
KEYS += (b"text", "", "a\nb", "\ud800", 0, None, (1, 2), "regression_labels", "audio_lengths")


def circular() -> list[Any]:
    """Lists, dicts and arrays that hold themselves."""
    items: list[Any] = [1.0]
    table: dict[Any, Any] = {"text": 1}
    array = np.empty(3, object)
    items.append(items)
    table["audio"] = table
    array[:] = [1.0, array, None]
    return [items, table, array]


def nested() -> list[Any]:
    made: list[Any] = []
    for _ in range(200):
        made = [made]
    return made


SCALARS: list[Any] = [None, True, 0, -1, 2**70, 1.5, np.nan, -np.inf, 1e300, 1j, "", "text"]
SCALARS += ["a\nb", "\x00", "\ud800", b"", b"\xff\n", (), ("a",), [], {}, [[1], [2, 3]]]
SCALARS += [["a", None], [b"x", "y"], {"a": {"b": 1}}, {1, 2}]
SCALARS += [np.float32(1), np.str_("x\ny"), np.int64(-5)]
SCALARS += [..., object, *circular(), nested(), np.array(3.0), np.array([], np.float32)]
SCALARS += [np.zeros((0, 0, 0)), np.zeros((3, 0, 4)), np.array(["a\nb", "a\nb", ""], "U")]
SCALARS += [np.array([b"\xff\n", "x", None, 1.0, [1]], object)]
SCALARS += [np.zeros(4, [("a", "f4"), ("b", "S2")]), np.ma.masked_array([1.0, 2.0], [True, False])]
ELEMENTS = (np.nan, np.inf, -np.inf, 1e300, -1, 2**62, "x", b"\xff", None, [1], "a\n")


def with_element(rng: Random, array: np.ndarray) -> np.ndarray:
    """Put one wrong value into an array; most become arrays of objects."""
    changed = array.copy() if rng.random() < 0.5 else array.astype(object)
    changed[tuple(rng.randrange(size) for size in array.shape)] = rng.choice(ELEMENTS)
    return changed


CHANGES: tuple[Callable[[Random, np.ndarray], Any], ...] = (
    with_element,
    with_element,
    lambda rng, a: a.astype(rng.choice(DTYPES)),
    lambda rng, a: a.astype(rng.choice(DTYPES)),
    lambda rng, a: a[: rng.randrange(len(a) + 1)],
    lambda rng, a: a[..., : rng.randrange(a.shape[-1] + 1)],
    lambda rng, a: np.expand_dims(a, rng.randrange(a.ndim + 1)),
    lambda rng, a: np.full_like(a, rng.choice((np.nan, np.inf, 0, 1e300, -7))),
    lambda _, a: np.concatenate([a, a[:1]]),
    lambda _, a: a.T,
    lambda _, a: a.ravel(),
    lambda _, a: np.asfortranarray(a),
    lambda _, a: a[::-1],
    lambda _, a: a[[0] * len(a)],
    lambda _, a: a.tolist(),
    lambda _, a: tuple(a),
    lambda _, a: {"values": a},
    lambda _, a: np.zeros_like(a),
    lambda _, a: a[0],
)


def odd_value(rng: Random, value: object) -> Any:
    """Return something else, or the value in another shape or type."""
    array = isinstance(value, np.ndarray)
    if not (array or isinstance(value, list)) or rng.random() < 0.35:
        return deepcopy(rng.choice(SCALARS))
    try:
        changed = rng.choice(CHANGES)(rng, np.asarray(value))
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return changed if array or rng.random() < 0.3 else np.asarray(changed).tolist()


def mutate(rng: Random, content: Content) -> Any:
    """Change a dict, or the dicts in it, in one to three places: values, keys, or all of it."""
    content = {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        parts = [part for part in content.values() if isinstance(part, dict)]
        part = rng.choice(parts) if parts and rng.random() < 0.85 else content
        if not part:
            continue
        key, other = rng.choice(list(part)), rng.choice(list(part))
        action = rng.choice(("replace",) * 6 + ("drop", "rename", "add", "swap", "all splits"))
        note(f"{action} {key!r}")
        match action:
            case "replace":
                part[key] = odd_value(rng, part[key])
            case "drop":
                del part[key]
            case "rename":
                part[rng.choice(KEYS)] = part.pop(key)
            case "add":
                part[rng.choice(KEYS)] = deepcopy(rng.choice(SCALARS))
            case "swap":
                part[key], part[other] = part[other], part[key]
            case _:  # the same to all splits, so that they agree
                seed = rng.randrange(2**32)
                for same in (same for same in parts or [part] if key in same):
                    same[key] = odd_value(Random(seed), same[key])
    return deepcopy(rng.choice(SCALARS)) if rng.random() < 0.03 else content


# ---- Wrong contents, by a file's suffix: other bytes, or None where they cannot be made ---


def other_pickle(rng: Random, raw: bytes) -> bytes:
    content = mutate(rng, pickle.loads(raw, encoding="latin1"))
    return pickle.dumps(content, rng.choice((2, 3, 4, 5)))


def as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        return value.data
    try:
        return np.asarray(value)
    except (ValueError, TypeError):
        made = np.empty((), object)
        made[()] = value
        return made


def other_npz(rng: Random, raw: bytes) -> bytes:
    content = mutate(rng, dict(np.load(io.BytesIO(raw))))
    arrays = content if isinstance(content, dict) else {}
    named = {str(key).replace("\ud800", "?"): as_array(v) for key, v in arrays.items()}
    file = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(file, **named)
    return file.getvalue()


def other_npy(rng: Random, raw: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, as_array(odd_value(rng, np.load(io.BytesIO(raw)))))
    return file.getvalue()


CELLS = ["nan", "inf", "-inf", "1e999", "x", '"', "1,5", "train", "\x00", "é", "-1", "../a"]
CELLS += ["Test", "1_0", "\ufeff", "True", "0x10"]
CELLS += ["", " ", "a\nb", "1" * 5000, "x" * 200_000, "\u2028"]


def other_csv(rng: Random, raw: bytes) -> bytes:
    """Change cells, rows, columns and the text itself."""
    rows = list(csv.reader(io.StringIO(raw.decode())))
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.randrange(len(rows)) if rng.random() < 0.7 else 0
        column = rng.randrange(max(1, len(rows[row])))
        match rng.choice(("cell", "cell", "cell", "short", "long", "column", "row", "twice")):
            case "cell":
                rows[row][column : column + 1] = [rng.choice(CELLS)]
            case "short":
                del rows[row][column:]
            case "long":
                rows[row] += ["more"] * 3
            case "column":
                for cells in rows:
                    del cells[column : column + 1]
            case "row":
                rows = rows[:row] + rows[row + 1 :] or [[]]
            case _:
                rows.append(list(rows[row]))
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    raw = file.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
    odd = (raw.replace(b",", b";"), raw.replace(b"a", b"\xe9"), raw + b'"')
    return rng.choice((raw, raw, raw, raw, *odd))


#: A value that a column holds throughout, and the type of columns that count.
CELLS_OF_COLUMNS = [None, [1, 2], {"a": 1}, b"\xff\n", True, 1e300, "a\nb", np.nan, -np.inf]
TYPES = [pa.decimal128(30, 10), pa.timestamp("s"), pa.duration("us"), pa.int8(), pa.float32()]
TYPES += [pa.date32(), pa.uint64()]


def odd_column(rng: Random, count: int) -> pa.Array:
    """Return a column of any type."""
    numbers, texts = range(count), [str(number) for number in range(count)]
    made: list[Callable[[], pa.Array]] = [
        lambda: pa.array(["train", "test"] * count)[:count].dictionary_encode(),
        lambda: pa.array([text.encode() for text in texts]),
        lambda: pa.array([None, *[1.0] * (count - 1)]),
        lambda: pa.array([2**63] * count, pa.uint64()),
        lambda: pa.array(numbers, pa.float32()).cast(pa.float16()),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(["1.5", None] * count)[:count],
        lambda: pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int64())),
    ]
    made += [partial(pa.array, [cell] * count) for cell in CELLS_OF_COLUMNS]
    made += [partial(pa.array, numbers, kind) for kind in TYPES]
    return rng.choice(made)()


def other_parquet(rng: Random, raw: bytes) -> bytes:
    """Make columns others, elsewhere, or missing."""
    table = pq.read_table(io.BytesIO(raw))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not table.num_columns:
            break
        index = rng.randrange(min(table.num_columns, 5))
        name = table.column_names[index]
        other = rng.choice((*writers.EMOTIONS, "", "a\nb", "id", "label", "split", "x"))
        match rng.choice(("type", "type", "type", "type", "drop", "name", "rows", "again")):
            case "type":
                table = table.set_column(index, name, odd_column(rng, table.num_rows))
            case "drop":
                table = table.remove_column(index)
            case "name":
                table = table.set_column(index, other, table[index])
            case "rows":
                table = table.slice(0, max(1, rng.randrange(table.num_rows + 1)))
            case _:
                table = table.append_column(other, table[index])
    file = io.BytesIO()
    pq.write_table(table.slice(0, 0) if rng.random() < 0.05 else table, file)
    return file.getvalue()


FIELDS: list[Any] = [None, -1, 0, "", "F32", "BF16", "I64", "U8", "F8_E4M3", "BOOL", "a\nb", {}]
FIELDS += [[], [0], [-1], [2**62, 4], [1e3], [0, 0], [3, 2], [[1]]]


def other_safetensors(rng: Random, raw: bytes) -> bytes:
    """Change the header."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = rng.choice(list(header))
    declared = 0
    match rng.choice(("field", "field", "field", "field", "drop", "name", "metadata", "length")):
        case "field":
            header[name][rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(FIELDS)
        case "drop":
            del header[name]
        case "name":
            header[rng.choice(("values", "ids", "a\nb", "", "x"))] = header.pop(name)
        case "metadata":
            header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, None, []))
        case _:
            declared = length + rng.choice((-1, 1, 2**40))
    text = json.dumps(header).encode()
    return (declared or len(text)).to_bytes(8, "little") + text + raw[8 + length :]


def replace_object(rng: Random, file: h5py.File, name: str, old: Any) -> None:
    """Put something else at a name."""
    data = partial(file.create_dataset, name)
    link = partial(file.__setitem__, name)
    odd: tuple[Callable[[], Any], ...] = (
        lambda: file.create_group(name),
        lambda: data(data=1.0),
        lambda: data(data="text"),
        lambda: data(data=h5py.Empty("f4")),
        lambda: data((4,), dtype=h5py.string_dtype()),
        lambda: data((4,), dtype=h5py.vlen_dtype(np.float32)),
        lambda: data((4, 2), dtype=h5py.enum_dtype({"a\n": 1, "b": 2})),
        lambda: data(data=np.zeros(4, [("a", "f4"), ("b", "S2")])),
        lambda: data((1 << 40, 7), "f4", chunks=(1024, 7)),
        lambda: data((1 << 28, 7), "f4", chunks=(1024, 7)),
        lambda: data((4, 1 << 40), "f4", chunks=(4, 1024)),
        lambda: data((4, 7), h5py.opaque_dtype(np.dtype("M8[s]"))),
        lambda: data((3,), dtype=h5py.ref_dtype),
        lambda: link(h5py.SoftLink("/nowhere")),
        lambda: link(h5py.SoftLink(f"/{name}")),
        lambda: link(h5py.SoftLink("/")),
        lambda: link(file["/"]),
        lambda: link(h5py.ExternalLink("nowhere.h5", "/")),
        lambda: link(h5py.ExternalLink("/etc/passwd", "/")),
    )
    rng.choice((*odd, *(lambda: data(data=as_array(odd_value(rng, old))),) * 14))()


PLACES = ("x", "data", "metadata", "a\nb", "features", "All Labels", "v[1]", "é[a]")


def other_csd(rng: Random, raw: bytes) -> bytes:
    """Change one object: mostly data, and sometimes the root."""
    memory = io.BytesIO(raw)
    with h5py.File(memory, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name, new = rng.choice(names if rng.random() < 0.7 else names[:4]), rng.choice(PLACES)
        old = file.get(name)
        old = old[()] if isinstance(old, h5py.Dataset) and old.size in range(1 << 16) else None
        action = rng.choice(("replace",) * 6 + ("drop", "move", "copy"))
        note(f"{action} {name}")
        match action:
            case "move":
                file.move(name, str(Path(name).parent / new))
            case "copy":
                file.copy(name, f"{names[0]}/data/{new}")
            case _:
                del file[name]
                if action == "replace":
                    replace_object(rng, file, name, old)
    return memory.getvalue()


OTHERS = {".pkl": other_pickle, ".npz": other_npz, ".npy": other_npy, ".csv": other_csv}
OTHERS |= {".parquet": other_parquet, ".safetensors": other_safetensors, ".csd": other_csd}
#: What libraries raise of what they cannot write.
UNWRITABLE = (pickle.PicklingError, pa.ArrowException, TypeError, ValueError, OverflowError)
UNWRITABLE += (OSError, RuntimeError, KeyError)


# ---- Valid files ----------------------------------------------------------------------


def csd(path: Path, per_video: bool) -> Path:
    writers.write_csd(path, UTTERANCES, per_video=per_video)
    return path


def table(path: Path, **options: Any) -> Path:
    return writers.write_table(path, UTTERANCES, **options)


KINDS: dict[str, Callable[[Path], Path]] = {
    "multibench": lambda p: writers.write_multibench(
        p / "a.pkl", UTTERANCES, label_shape="(N,1,7)", length=30, protocol=2
    ),
    "mult": lambda p: writers.write_mult(p / "a.pkl", UTTERANCES, aligned=False, ids="object"),
    "python2": lambda p: writers.write_python2(p / "a.pkl", UTTERANCES, aligned=False),
    "mmsa": lambda p: writers.write_mmsa(p / "a.pkl", UTTERANCES, bert=False, protocol=5),
    "mmsa-bert": lambda p: writers.write_mmsa(p / "a.pkl", ALIGNED, aligned=True),
    "npz": lambda p: writers.write_npz(p / "a.npz", UTTERANCES),
    "csd": partial(csd, per_video=False),
    "csd-videos": partial(csd, per_video=True),
    "csv-npy": partial(table, arrays="npy"),
    "csv-npz": partial(table, arrays="npz"),
    "csv-npz-by-id": partial(table, arrays="npz-by-id"),
    "parquet-safetensors": partial(table, kind="parquet", arrays="safetensors"),
    "parquet-safetensors-by-id": partial(table, kind="parquet", arrays="safetensors-by-id"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def valid(kind: str) -> tuple[str, dict[str, bytes]]:
    """Return what is read, relative to its folder, and the bytes of each file there."""
    with folder() as path:
        read = KINDS[kind](path)
        files = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        return str(read.relative_to(path)), files


def place(kind: str, target: Path, changed: Mapping[str, bytes]) -> Path:
    """Write a valid source with some files changed; return what is read."""
    read, files = valid(kind)
    for name, raw in {**files, **changed}.items():
        (target / name).write_bytes(raw)
    return target / read


def position(rng: Random, raw: bytes) -> int:
    """Return a position, often near the ends, where the structure is."""
    near = min(len(raw), rng.choice((64, 1024, len(raw), len(raw))))
    offset = rng.randrange(near + 1)
    return len(raw) - offset if rng.random() < 0.3 else offset


def damage(rng: Random, raw: bytes) -> bytes:
    """Flip, cut, overwrite or insert bytes."""
    start, length = position(rng, raw), rng.choice((1, 1, 2, 4, 8, 64, 4096))
    action = rng.choice(("flip", "flip", "flip", "cut", "drop", "copy", "insert", "fill", "number"))
    note(f"{action} at {start} of {len(raw)}, {length}")
    match action:
        case "flip":
            changed = bytearray(raw)
            for _ in range(rng.choice((1, 1, 2, 16))):
                changed[min(position(rng, raw), len(raw) - 1)] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case "cut":
            return raw[:start]
        case "drop":
            return raw[:start] + raw[start + length :]
        case "copy":
            source = position(rng, raw)
            return raw[:start] + raw[source : source + length] + raw[start + length :]
        case "insert":
            more = bytes(rng.randrange(256) for _ in range(min(length, 16)))
            return raw[:start] + more + raw[start:]
        case "fill":
            return raw[:start] + rng.choice((b"\xff", b"\x00")) * length + raw[start + length :]
        case _:
            number = rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1))
            return raw[:start] + number.to_bytes(8, "little") + raw[start + 8 :]


def attempt_changed(kind: str, rng: Random, change: Callable[[str, bytes], bytes]) -> None:
    """Change one file of a valid source, and read it in some way."""
    name = rng.choice(list(valid(kind)[1]))
    note(name)
    with quiet():
        try:
            raw = change(name, valid(kind)[1][name])
        except UNWRITABLE:
            return
    with folder() as path:
        read = place(kind, path, {name: raw})
        paths = [read]
        if read.is_dir():  # or its files, or some of them, or one twice
            files = sorted(path.iterdir())
            some = ([read], files, files[1:], files[::-1], [*files, files[0]], [read, files[0]])
            paths = rng.choice(([read], *some))
        attempt(paths, rng.choice(["auto"] * 8 + NAMES), rng.choice(READINGS))


@each_kind
@fuzz
@given(rng=randoms)
def test_damaged_bytes(kind: str, rng: Random) -> None:
    def damaged(_: str, raw: bytes) -> bytes:
        for _ in range(rng.choice((1, 1, 3))):
            raw = damage(rng, raw) or b"\x80"
        return raw

    attempt_changed(kind, rng, damaged)


@each_kind
@settings(fuzz, max_examples=3 * fuzz.max_examples)
@given(rng=randoms)
def test_other_contents(kind: str, rng: Random) -> None:
    attempt_changed(kind, rng, lambda name, raw: OTHERS[Path(name).suffix](rng, raw))


@each_kind
@pytest.mark.parametrize("other", ["mult", "npz", "csd", "csv-npy", "parquet-safetensors"])
def test_a_file_in_the_place_of_another(kind: str, other: str) -> None:
    _, files = valid(kind)
    strangers = list(valid(other)[1].values())
    for index, name in enumerate(files):
        with folder() as path:
            read = place(kind, path, {name: strangers[index % len(strangers)]})
            attempt([read], "auto", ReadSettings())


@each_kind
@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80\x04.", b"PK\x05\x06", b"\n", b"\x89HDF\r\n"])
def test_a_file_of_nothing(kind: str, raw: bytes) -> None:
    for name in valid(kind)[1]:
        with folder() as path:
            attempt([place(kind, path, {name: raw})], "auto", ReadSettings())


@each_kind
@pytest.mark.parametrize("reading", range(len(READINGS)))
def test_a_valid_file_read_in_every_way(kind: str, reading: int) -> None:
    with folder() as path:
        read = place(kind, path, {})
        for format in ("auto", *NAMES):
            attempt([read], format, READINGS[reading])
        attempt([read, read], "auto", READINGS[reading])
        attempt([read / "nothing"], "auto", READINGS[reading])
        attempt([path], "auto", READINGS[reading])


LINES = {"a\nb": np.zeros((3, 2), np.float32)}  # a name of two lines
COLUMNS = {"a\nb": [1.0] * len(UTTERANCES), **writers.table_columns(UTTERANCES)}


def write_silent(path: Path) -> None:
    content = pickle.loads((path / "a.pkl").read_bytes())
    for part in content.values():
        part |= {key: np.zeros_like(part[key]) for key in part if key.startswith("text")}
    (path / "a.pkl").write_bytes(pickle.dumps(content))


def without_text(path: Path) -> None:
    zero = {"language": np.zeros((2, 5), np.float32)}
    writers.write_csd(path, [replace(e, sequences=e.sequences | zero) for e in UTTERANCES])


def write_without(path: Path, table: str, lost: str) -> None:
    kept = {name: column for name, column in COLUMNS.items() if name != lost}
    writers.write_columns(path / table, kept)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, write_silent) for kind in ("multibench", "mult", "mmsa", "mmsa-bert")),
        ("csd", without_text),
        ("npz", lambda p: (p / "a.npz").write_bytes(b"Px" + (p / "a.npz").read_bytes()[2:])),
        ("npz", lambda p: np.savez(p / "a.npz", **LINES, **writers.npz_content(UTTERANCES))),
        ("csv-npz", lambda p: writers.write_arrays(p / "audio.npz", LINES)),
        ("parquet-safetensors", lambda p: writers.write_arrays(p / "audio.safetensors", LINES)),
        ("csv-npy", lambda p: write_without(p, "items.csv", "label")),
        ("csv-npy", lambda p: write_without(p, "items.csv", "id")),
        ("parquet-safetensors", lambda p: write_without(p, "items.parquet", "label")),
        ("parquet-safetensors", lambda p: write_without(p, "items.parquet", "id")),
    ],
)
def test_what_was_no_line_once(kind: str, change: Callable[[Path], object]) -> None:
    with folder() as path:
        read = place(kind, path, {})
        change(path)
        for reading in ({}, {"group": "video"}, {"modalities": ("smell",)}):
            attempt([read], "auto", ReadSettings(**reading))


def test_a_file_of_arrays_that_is_the_start_of_a_zip_is_closed() -> None:
    with folder() as path, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt([place("csv-npy", path, {"audio.npy": b"PK\x05\x06"})], "auto", ReadSettings())
        gc.collect()
    assert not caught, [str(warning.message) for warning in caught]
