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

from common.data.formats.registry import FORMATS, read_source
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
NAMES = sorted(FORMATS)

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
    assert items.labels.dtype in (np.float64, np.float32, np.int64)
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


# ---- Wrong values ---------------------------------------------------------------------

DTYPES = ("f2", "f4", "f8", ">f4", "i1", "i8", "u8", "?", "c8", "S3", "U2", "O", "M8[s]", "m8[D]")
KEYS: tuple[Any, ...] = ("text", "audio", "labels", "id", "train", "valid", "test", "dev", "smell")
KEYS += (b"text", "", "a\nb", "\ud800", 0, None, (1, 2), "regression_labels", "audio_lengths")
KEYS += ("values", "ids", "label", "split", "__metadata__")


def circular() -> list[Any]:
    """Lists, dicts and arrays that hold themselves."""
    items: list[Any] = [1.0]
    table: dict[Any, Any] = {"text": 1}
    array = np.empty(3, object)
    items.append(items)
    table["audio"] = table
    array[:] = [1.0, array, None]
    return [items, table, array]


NESTED: list[Any] = []
for _ in range(200):
    NESTED = [NESTED]

SCALARS: list[Any] = [None, True, 0, -1, 2**70, 1.5, np.nan, -np.inf, 1e300, 1j, "", "text"]
SCALARS += ["a\nb", "\x00", "\ud800", b"", b"\xff\n", (), ("a",), [], {}, [[1], [2, 3]]]
SCALARS += [["a", None], [b"x", "y"], {"a": {"b": 1}}, {1, 2}]
SCALARS += [np.float32(1), np.str_("x\ny"), np.int64(-5)]
SCALARS += [..., object, *circular(), NESTED, np.array(3.0), np.array([], np.float32)]
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


def mutate(rng: Random, content: Content, odd: Callable[[Random, Any], Any] = odd_value) -> Content:
    """Change a dict, or the dicts in it, in one to three places: values or keys."""
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
                part[key] = odd(rng, part[key])
            case "drop":
                del part[key]
            case "rename":
                part[rng.choice(KEYS)] = part.pop(key)
            case "add":
                part[rng.choice(KEYS)] = odd(rng, None)
            case "swap":
                part[key], part[other] = part[other], part[key]
            case _:  # the same to all splits, so that they agree
                seed = rng.randrange(2**32)
                for same in (same for same in parts or [part] if key in same):
                    same[key] = odd(Random(seed), same[key])
    return content


# ---- Wrong contents, by a file's suffix: other bytes, or what UNWRITABLE names ---------


def other_pickle(rng: Random, raw: bytes) -> bytes:
    content: Any = mutate(rng, pickle.loads(raw, encoding="latin1"))
    content = odd_value(rng, None) if rng.random() < 0.03 else content
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
    named = {str(key).replace("\ud800", "?"): as_array(v) for key, v in content.items()}
    file = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(file, **named)
    return file.getvalue()


def other_npy(rng: Random, raw: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, as_array(odd_value(rng, np.load(io.BytesIO(raw)))))
    return file.getvalue()


COUNT = len(UTTERANCES)
TEXTS = [str(number) for number in range(COUNT)]
CELLS = ["nan", "inf", "-inf", "1e999", "x", '"', "1,5", "train", "\x00", "é", "-1", "../a"]
CELLS += ["Test", "1_0", "\ufeff", "True", "0x10"]
CELLS += ["", " ", "a\nb", "1" * 5000, "x" * 200_000, "\u2028"]


def odd_cells(rng: Random, cells: list[str] | None) -> list[str]:
    cells = list(cells or TEXTS)
    some = slice(None) if rng.random() < 0.3 else slice(row := rng.randrange(COUNT), row + 1)
    cells[some] = [rng.choice(CELLS)] * len(cells[some])
    return cells


def other_csv(rng: Random, raw: bytes) -> bytes:
    """Change cells and columns, and sometimes rows, the encoding and the text itself."""
    names, *rows = csv.reader(io.StringIO(raw.decode()))
    old = {name: list(cells) for name, *cells in zip(names, *rows, strict=True)}
    content = mutate(rng, old, odd_cells)
    file = io.StringIO()
    csv.writer(file).writerows([content, *zip(*content.values(), strict=True)])
    raw = file.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
    lines, row = raw.splitlines(keepends=True), rng.randrange(COUNT)
    short, long, twice = (
        lines[row][: rng.randrange(20)] + b"\n",
        b"more," + lines[row],
        lines[row] * 2,
    )
    other = b"".join([*lines[:row], rng.choice((short, long, twice, b"")), *lines[row + 1 :]])
    odd = (raw.replace(b",", b";"), raw.replace(b"a", b"\xe9"), raw + b'"', other, other, other)
    return rng.choice((*[raw] * 6, *odd))


#: Columns of any type: throughout one value, of numbers, and of others.
COLUMNS = [
    *(
        pa.array([cell] * COUNT)
        for cell in (None, [1, 2], {"a": 1}, b"\xff\n", True, 1e300, "a\nb")
    ),
    *(pa.array([cell] * COUNT) for cell in (np.nan, -np.inf)),
    *(pa.array(range(COUNT), kind) for kind in (pa.int8(), pa.float32(), pa.uint64(), pa.date32())),
    pa.array(range(COUNT), pa.timestamp("s")),
    pa.array(range(COUNT), pa.duration("us")),
    pa.array(range(COUNT), pa.decimal128(30, 10)),
    pa.array(range(COUNT), pa.float32()).cast(pa.float16()),
    pa.array([2**63] * COUNT, pa.uint64()),
    pa.array(["train", "test"] * COUNT)[:COUNT].dictionary_encode(),
    pa.array([text.encode() for text in TEXTS]),
    pa.array(TEXTS, pa.large_string()),
    pa.array([None, *[1.0] * (COUNT - 1)]),
    pa.array(["1.5", None] * COUNT)[:COUNT],
    pa.array([[("k", 1)]] * COUNT, pa.map_(pa.string(), pa.int64())),
]


def other_parquet(rng: Random, raw: bytes) -> bytes:
    """Make columns others, elsewhere, twice or missing."""
    table = pq.read_table(io.BytesIO(raw))
    old = dict(zip(table.column_names, table.columns, strict=True))
    content = mutate(rng, old, lambda rng, _: rng.choice(COLUMNS))
    names = [str(key) for key in content]
    if rng.random() < 0.1:
        names[0] = names[-1]
    file, rows = io.BytesIO(), rng.choice((*[COUNT] * 9, 0, 1, 5))
    pq.write_table(pa.table(list(content.values()), names).slice(0, rows), file)
    return file.getvalue()


FIELDS: list[Any] = [None, -1, 0, "", "F32", "BF16", "I64", "U8", "F8_E4M3", "BOOL", "a\nb", {}]
FIELDS += [[], [0], [-1], [2**62, 4], [1e3], [0, 0], [3, 2], [[1]], {"a": "b"}, {"a": 1}]


def other_safetensors(rng: Random, raw: bytes) -> bytes:
    """Change the header."""
    length = int.from_bytes(raw[:8], "little")
    old = json.loads(raw[8 : 8 + length])
    text = json.dumps(mutate(rng, old, lambda rng, _: rng.choice(FIELDS))).encode()
    declared = max(0, len(text) + rng.choice((*[0] * 9, -1, 1, 2**40)))
    return declared.to_bytes(8, "little") + text + raw[8 + length :]


def replace_object(rng: Random, file: h5py.File, name: str, old: Any) -> None:
    """Put something else at a name."""
    data = partial(file.create_dataset, name)
    link = partial(file.__setitem__, name)
    odd: tuple[Callable[[], Any], ...] = (
        lambda: file.create_group(name),
        lambda: data(data=rng.choice((1.0, "text", h5py.Empty("f4")))),
        lambda: data((4,), dtype=rng.choice((h5py.string_dtype(), h5py.vlen_dtype(np.float32)))),
        lambda: data((4, 2), dtype=h5py.enum_dtype({"a\n": 1, "b": 2})),
        lambda: data(data=np.zeros(4, [("a", "f4"), ("b", "S2")])),
        lambda: data((1 << rng.choice((28, 40)), 7), "f4", chunks=(1024, 7)),
        lambda: data((4, 1 << 40), "f4", chunks=(4, 1024)),
        lambda: data((4, 7), h5py.opaque_dtype(np.dtype("M8[s]"))),
        lambda: data((3,), dtype=h5py.ref_dtype),
        lambda: link(h5py.SoftLink(rng.choice(("/nowhere", f"/{name}", "/")))),
        lambda: link(file["/"]),
        lambda: link(h5py.ExternalLink(rng.choice(("nowhere.h5", "/etc/passwd")), "/")),
    )
    rng.choice((*odd, *(lambda: data(data=as_array(odd_value(rng, old))),) * 8))()


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


def damaged(rng: Random, raw: bytes) -> bytes:
    """Put other bytes, or none, in the place of some, often near the ends: there is structure."""
    for _ in range(rng.choice((1, 1, 3))):
        near, length = rng.choice((64, 1024, len(raw))), rng.choice((1, 1, 2, 4, 8, 64, 4096))
        start = rng.randrange(min(near, len(raw)) + 1)
        start = len(raw) - start if rng.random() < 0.3 else start
        end = rng.choice((start, start + length, start + length, start + length, len(raw)))
        copy, source = raw, rng.randrange(len(raw) + 1)
        number = rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1))
        some = (b"", rng.randbytes(min(length, 16)), copy[source : source + length])
        new = rng.choice((*some, b"\xff" * length, bytes(length), number.to_bytes(8, "little")))
        note(f"{new[:20]!r} from {start} to {end} of {len(raw)}")
        raw = raw[:start] + new + raw[end:] or b"\x80"
    return raw


OTHERS = {".pkl": other_pickle, ".npz": other_npz, ".npy": other_npy, ".csv": other_csv}
OTHERS |= {".parquet": other_parquet, ".safetensors": other_safetensors, ".csd": other_csd}
#: What libraries raise of what they cannot write.
UNWRITABLE = (pickle.PicklingError, pa.ArrowException, TypeError, ValueError, OverflowError)
UNWRITABLE += (OSError, RuntimeError, KeyError)


# ---- Valid files ----------------------------------------------------------------------


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "multibench": ("multibench", {"label_shape": "(N,1,7)", "length": 30, "protocol": 2}),
    "mult": ("mult", {"aligned": False, "ids": "object"}),
    "python2": ("python 2", {"aligned": False}),
    "mmsa": ("mmsa", {"bert": False, "protocol": 5}),
    "mmsa-bert": ("mmsa", {"aligned": True}),
    "npz": ("npz", {}),
    "csd": ("csd", {}),
    "csd-videos": ("csd", {"per_video": True}),
    "csv-npy": ("table", {"arrays": "npy"}),
    "csv-npz": ("table", {"arrays": "npz"}),
    "csv-npz-by-id": ("table", {"arrays": "npz-by-id"}),
    "parquet-safetensors": ("table", {"kind": "parquet", "arrays": "safetensors"}),
    "parquet-safetensors-by-id": ("table", {"kind": "parquet", "arrays": "safetensors-by-id"}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def valid(kind: str) -> tuple[str, dict[str, bytes]]:
    """Return what is read, relative to its folder, and the bytes of each file there."""
    format, options = KINDS[kind]
    with folder() as path:
        read = writers.WRITERS[format](
            path, ALIGNED if kind == "mmsa-bert" else UTTERANCES, **options
        )
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        where = "" if read.is_dir() else read.name
        return where, {file.name: file.read_bytes() for file in files}


def place(kind: str, target: Path, changed: Mapping[str, bytes]) -> Path:
    """Write a valid source with some files changed; return what is read."""
    read, files = valid(kind)
    for name, raw in {**files, **changed}.items():
        (target / name).write_bytes(raw)
    return target / read


def attempt_changed(kind: str, rng: Random, change: Callable[[str, bytes], bytes]) -> None:
    """Change one file of a valid source, and read it in some way."""
    name = rng.choice(list(valid(kind)[1]))
    note(name)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that only the making of wrong values gives
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
    attempt_changed(kind, rng, lambda _, raw: damaged(rng, raw))


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
        with folder() as path, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attempt([place(kind, path, {name: raw})], "auto", ReadSettings())
            gc.collect()  # which warns of files left open
        assert not caught, [str(warning.message) for warning in caught]


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


TWO_LINES = {"a\nb": np.zeros((COUNT, 2), np.float32)}
NPZ = {**TWO_LINES, **writers.npz_content(UTTERANCES)}
ITEMS = {"a\nb": [1.0] * COUNT, **writers.table_columns(UTTERANCES)}


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("npz", "data.npz", NPZ),
        ("csv-npz", "audio.npz", TWO_LINES),
        ("parquet-safetensors", "audio.safetensors", TWO_LINES),
        *(
            (kind, file, {name: ITEMS[name] for name in ITEMS if name != lost})
            for kind, file in (("csv-npy", "items.csv"), ("parquet-safetensors", "items.parquet"))
            for lost in ("label", "id")
        ),
    ],
)
def test_names_of_two_lines(kind: str, file: str, content: dict[str, Any]) -> None:
    write: Any = writers.write_columns if file.startswith("items") else writers.write_arrays
    with folder() as path:
        read = place(kind, path, {})
        write(path / file, content)
        for reading in ({}, {"group": "video"}, {"modalities": ("smell",)}):
            attempt([read], "auto", ReadSettings(**reading))


def test_an_archive_whose_first_member_is_damaged() -> None:
    raw = b"Px" + valid("npz")[1]["data.npz"][2:]
    with folder() as path:
        attempt([place("npz", path, {"data.npz": raw})], "auto", ReadSettings())
