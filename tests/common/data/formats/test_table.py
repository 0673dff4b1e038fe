"""Own tables: what is read whole or in parts, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_checks import refusal, run_python
from hostile_pickles import Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.data.dataset import ItemPart
from common.data.formats.layouts import check_unpacked
from common.data.formats.registry import FORMATS, Given, read_source, recognise
from common.data.source import ReadSettings, Source
from common.task import Task
from tests.common.data.formats.writers import write_columns

ROWS = "id,label,split,group\n001,1,train,a\n002,2,dev,a\n010,3,test,b\n"
AUDIO = np.arange(12, dtype=np.float32).reshape(3, 2, 2) + 1
IDS = ["001", "002", "010"]
each_kind = pytest.mark.parametrize("kind", ["csv", "parquet"])


def make(
    folder: Path, table: str | dict[str, Any] = ROWS, kind: str = "csv", **arrays: Any
) -> Path:
    """Write a table, and arrays: a dict becomes an npz file, an array an npy file."""
    for name, content in (arrays or {"audio": AUDIO}).items():
        if isinstance(content, dict):
            np.savez(folder / f"{name}.npz", **content)
        else:
            np.save(folder / f"{name}.npy", content)
    path = folder / f"items.{kind}"
    if isinstance(table, dict):
        return write_columns(path, table)
    path.write_text(table, encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> Source:
    return read_source([path], "table", ReadSettings(**options))[0]


def rows_of(source: Source, modality: str = "audio") -> list[list[Any]]:
    sequences = source.items.sequences[modality]
    return [sequences[item].tolist() for item in range(len(sequences))]


def parts_of(path: Path, size: int, **options: Any) -> list[ItemPart]:
    reading = ReadSettings(predicting=True, **options)
    given, name, _ = recognise([path], "table", reading)
    stream = FORMATS[name].stream(given, reading)
    assert stream is not None
    return list(stream[1](size))


def ids_of(parts: list[ItemPart]) -> list[str]:
    return [name for ids, _ in parts for name in ids.tolist()]


def fails(path: Path, *words: object, **options: Any) -> None:
    """Reading it whole fails with some words."""
    refusal(lambda: read(path, prefix="+", **options), *words)


def fails_in_parts(path: Path, *words: object) -> None:
    refusal(lambda: parts_of(path, 2), *words)


# ---- The table ------------------------------------------------------------------------


def test_recognise(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert FORMATS["table"].recognise(Given([path])) == "a table, CSV"
    assert FORMATS["table"].recognise(Given([tmp_path])) == "a folder with the table items.csv"
    assert FORMATS["table"].recognise(Given([tmp_path / "audio.npy"])) is None
    (tmp_path / "more.parquet").touch()
    assert FORMATS["table"].recognise(Given([tmp_path])) is None
    fails(tmp_path, "holds 2 tables", "expected one")


def test_ids_groups_and_splits_are_text_and_classes_numbers(tmp_path: Path) -> None:
    rows = ROWS.replace(",a\n", ",07\n").replace(",b\n", ",7\n")
    source = read(make(tmp_path, rows))
    assert source.items.ids.tolist() == IDS
    assert source.items.groups.tolist() == ["07", "07", "7"]
    assert source.splits.tolist() == ["train", "validation", "test"]
    assert source.items.labels.tolist() == [1, 2, 3]
    assert rows_of(source) == AUDIO.tolist()
    classes = read(tmp_path, task=Task.classification).items
    assert (classes.labels.tolist(), classes.labels.dtype) == ([0, 1, 2], np.int64)
    assert classes.label_names == ("1", "2", "3")
    fails(tmp_path, "+labels names 2 columns", labels=("id", "label"))


def test_without_columns_items_are_numbered_and_stand_alone(tmp_path: Path) -> None:
    source = read(make(tmp_path, "label\n1\n2\n3\n"))
    assert source.items.ids.tolist() == source.items.groups.tolist() == ["0", "1", "2"]
    assert source.splits.tolist() == [""] * 3


def test_a_cell_that_is_no_value_of_python(tmp_path: Path) -> None:
    when = pa.array([1, 2, 3], pa.timestamp("ns"))  # no cell that anybody asks for
    path = make(tmp_path, {"label": [1, 2, 3], "when": when}, "parquet")
    assert len(read(path).items) == 3
    fails(path, "items.parquet", "'when'", group="when")


def test_an_empty_label_is_dropped_and_counted(tmp_path: Path) -> None:
    source = read(make(tmp_path, ROWS.replace(",2,", ",,")))
    assert source.items.ids.tolist() == ["001", "010"]
    assert source.items.cleaning == {"items without a label, dropped": 1}
    assert rows_of(source) == AUDIO[[0, 2]].tolist()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS.replace("label", "y"), ["no column 'label'", "+label=…", "id, y, split, group"]),
        (ROWS.replace(",2,", ",good,"), ["'label' is 'good' in data row 2; expected a number"]),
        (ROWS.replace(",2,", ",inf,"), ["infinity"]),
        (ROWS.replace("002", "001"), ["two items have the id '001'"]),
        (ROWS.replace("dev", "later"), ["split 'later'", "train"]),
        (ROWS.replace(",b\n", ",\n"), ["'group'", "empty"]),
        (ROWS.replace("split", "label"), ["two columns have the same name"]),
        (ROWS.replace("dev,a\n", "dev,a,b\n"), ["data row 2 has 5 cells", "4 columns"]),
        ("id,label\n", ["no rows"]),
    ],
)
def test_a_wrong_table(tmp_path: Path, rows: str, words: list[str]) -> None:
    fails(make(tmp_path, rows), "items.csv", *words)


@pytest.mark.parametrize("cell", [7, "x" * 1000])
def test_a_small_file_of_very_many_equal_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: Any
) -> None:
    sizes: list[int] = []

    def check(path: Path, size: int) -> None:
        sizes.append(size)
        check_unpacked(path, size)

    monkeypatch.setattr("common.data.formats.layouts.FREE", 1 << 20)
    monkeypatch.setattr("common.data.formats.layouts.check_unpacked", check)
    path = make(tmp_path, {"id": [cell] * 40_000}, "parquet")
    fails(path, "items.parquet", "GiB")
    fails_in_parts(path, "items.parquet", "GiB")
    assert max(sizes) < 2 << 20  # long before all of it is read


@pytest.mark.parametrize(
    ("kind", "ids", "row"),
    [
        ("csv", ["", *IDS[1:]], 1),
        ("parquet", [IDS[0], "", ""], 2),
        ("csv", [*IDS[:2], "x" * 1001], 3),
        ("parquet", [*IDS[:2], "x" * 1001], 3),
        ("parquet", [1.5, 2.5, 3.5], 1),
        ("parquet", ["a", None, "b"], 2),
        ("parquet", [None] * 3, 1),
        ("parquet", [{"a": 1}] * 3, 1),
    ],
)
def test_ids_that_are_none(tmp_path: Path, kind: str, ids: list[Any], row: int) -> None:
    path = make(tmp_path, {"id": ids, "label": [1, 2, 3]}, kind)
    for fail in (fails, fails_in_parts):
        fail(path, f"{path}: column 'id' ", f"in data row {row}; expected text", "1000")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", b""),
        ("csv", b"id,label\na,1\nb\n"),
        ("csv", b"id\na\n\xff\xfe\nb\n"),
        ("csv", b'id\n"a\nb\nc\n'),
        ("csv", bytes(100)),
        ("parquet", b""),
        ("parquet", b"PAR1" + bytes(50) + b"PAR1"),
        ("parquet", b"id,label\n"),
    ],
)
def test_a_damaged_table(tmp_path: Path, kind: str, content: bytes) -> None:
    path = make(tmp_path, {"id": IDS}, kind)
    path.write_bytes(content)
    fails(path, str(tmp_path))
    fails_in_parts(path, str(tmp_path))


# ---- Arrays ---------------------------------------------------------------------------


def test_zeros_at_either_end_are_padding(tmp_path: Path) -> None:
    audio = AUDIO.copy()
    audio[0, 0], audio[1, 1], audio[2] = 0, 0, 0
    source = read(make(tmp_path, audio=audio))
    assert rows_of(source) == [AUDIO[0, 1:].tolist(), AUDIO[1, :1].tolist(), []]
    tabular = read(tmp_path, tabular=("audio",))
    assert rows_of(tabular) == audio.tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[[1]], [[2]], [[3]]]),
        ({"context": 1}, [[[1]], [[1], [2]], [[3]]]),
        ({"context": 5, "group": "split"}, [[[1]], [[2]], [[3]]]),
    ],
)
def test_vectors_and_their_context(
    tmp_path: Path, options: dict[str, Any], expected: list[Any]
) -> None:
    assert rows_of(read(make(tmp_path, audio=np.array([[1], [2], [3]])), **options)) == expected


def test_offsets_with_ids_in_another_order_and_one_array_for_each_id(tmp_path: Path) -> None:
    values, offsets = np.array([[1.0], [2], [3]]), np.array([0, 1, 3])
    arrays = {"values": values, "offsets": offsets, "ids": np.array(["010", "001"])}
    assert rows_of(read(make(tmp_path, audio=arrays))) == [[[2], [3]], [], [[1]]]
    arrays = {"002": np.array([[1.0, 2], [3, 4]]), "001": np.array([5.0, 6])}
    assert rows_of(read(make(tmp_path, audio=arrays))) == [[[5, 6]], [[1, 2], [3, 4]], []]


def test_arrays_are_found_elsewhere_or_beside_others_by_name(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "far").mkdir()
    moved = (tmp_path / "audio.npy").rename(tmp_path / "far" / "a.npy")
    fails(path, "no modality")
    assert rows_of(read(path, arrays={"audio": str(moved)})) == AUDIO.tolist()
    make(tmp_path)
    make(tmp_path, audio={"values": AUDIO})
    fails(path, "several files for audio", "+arrays")
    named = {"audio": str(tmp_path / "audio.npz")}
    assert rows_of(read(path, arrays=named)) == AUDIO.tolist()


def test_ids_in_safetensors_are_rows_of_bytes(tmp_path: Path) -> None:
    path = make(tmp_path, text=AUDIO)
    names = np.array([b"010", b"001"]).view(np.uint8).reshape(2, 3)
    save_file({"values": AUDIO[:2], "ids": names}, tmp_path / "audio.safetensors")
    source = read(path)
    assert set(source.items.sequences) == {"audio", "text"}
    assert rows_of(source) == [AUDIO[1].tolist(), [], AUDIO[0].tolist()]


CONTEXT, TABULAR = {"context": 2}, {"tabular": ("audio",)}
TWO_IDS = {"values": np.ones((2, 1)), "ids": np.array(["001", "001"])}


def ragged(offsets: list[Any]) -> dict[str, Any]:
    return {"values": np.ones((3, 1)), "offsets": np.array(offsets)}


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (np.ones((2, 2, 2)), {}, ["audio.npy", "2 items and the table 3"]),
        (np.ones((3, 1, 1, 1)), {}, ["audio.npy", "(3, 1, 1, 1)", "(items, steps, width)"]),
        (np.float32(3), {}, ["audio.npy", "float32 of shape ()"]),
        (np.ones((3, 2, 0)), {}, ["audio.npy", "(3, 2, 0)"]),
        (np.array([["a"], ["b"], ["c"]]), {}, ["audio.npy", "<U1"]),
        (np.array([{}, {}, {}], object), {}, ["audio.npy", "Python objects", "array for each id"]),
        (ragged([0, 2, 1, 3]), {}, ["'offsets'", "0 to 3"]),
        (ragged([0.0, 1, 2, 3]), {}, ["'offsets'"]),
        (ragged([0, 3]), {}, ["1 items and the table 3"]),
        (ragged([0, 0, 1, 3]), TABULAR, ["audio.npz", "+tabular"]),
        (TWO_IDS, {}, ["'ids'", "each once"]),
        (TWO_IDS | {"ids": np.array(["001"])}, {}, ["'ids'", "2 items"]),
        (TWO_IDS | {"ids": np.array(["x", "y"])}, {}, ["none of its ids"]),
        (
            TWO_IDS | {"ids": np.array(["001", "x"])},
            CONTEXT,
            ["audio.npz", "+context=2", "without ids"],
        ),
        (
            {"x": np.ones((1, 1))},
            {},
            ["neither 'values' nor an array for an id", "x here, 001, 002"],
        ),
        ({"001": np.ones((1, 1)), "002": np.ones((1, 2))}, {}, ["differ in width", "[1, 2]"]),
        ({"001": np.ones((1, 1, 1))}, {}, ["'001'", "(1, 1, 1)"]),
    ],
)
def test_wrong_arrays(
    tmp_path: Path, content: Any, options: dict[str, Any], words: list[str]
) -> None:
    path = make(tmp_path, audio=content)
    fails(path, *words, **options)
    if not isinstance(content, dict):
        fails_in_parts(path, *words[: 2 if np.ndim(content) == 3 else None])


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    traps = np.array([Calls(Path.touch, tmp_path / "sprung")] * 3)
    path = make(tmp_path, audio=traps)
    fails(path, "audio", "cannot be read")
    fails_in_parts(path)
    (tmp_path / "audio.npy").unlink()
    fails(make(tmp_path, audio={"values": traps}), "audio", "cannot be read")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_damaged_arrays(tmp_path: Path, suffix: str) -> None:
    path, file = make(tmp_path, text=AUDIO), tmp_path / f"audio.{suffix}"
    whole = (tmp_path / "text.npy").read_bytes()
    starts = [whole[:kept] for kept in (8, 60, 140, 170)]
    for raw in (b"", b"PK\x05\x06", b"\x93NUMPY", bytes(100), *starts):
        file.write_bytes(raw)
        fails(path, f"{file} ")
        if suffix == "npy":
            fails_in_parts(path, f"{file} cannot be read: ")


def test_signalling_nan(tmp_path: Path) -> None:
    nan = np.full((3, 2, 2), 0x7FF4000000000000, "u8").view("f8")
    nan[:, :, 1] = 1
    assert read(make(tmp_path, audio=nan)).items.not_finite()


def test_an_archive_that_declares_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.formats.layouts.FREE", 1000)
    path = make(tmp_path, text=AUDIO)
    np.savez_compressed(tmp_path / "audio.npz", values=np.zeros((3, 1 << 16, 2)))
    fails(path, "audio.npz", "GiB")


# ---- In parts -------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs", "Cc"])
#: Spaces around ids are no part of them.
names = st.text(characters, min_size=1, max_size=5).map(str.strip).filter(bool)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Columns, arrays and settings."""
    count = draw(st.integers(1, 9))
    columns: dict[str, Any] = {"note": [draw(names) for _ in range(count)]}
    if draw(st.booleans()):
        ids = names.map(str.strip).filter(bool)  # as they are read
        columns["id"] = draw(st.lists(ids, min_size=count, max_size=count, unique=True))
    arrays, tabular = {}, []
    for name in draw(st.lists(st.sampled_from(["audio", "b", "ü"]), min_size=1, unique=True)):
        steps, width = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        shape = (count, width) if draw(st.booleans()) else (count, steps, width)
        dtype = draw(st.sampled_from(["f2", "f4", ">f8", "i2", "u1"]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        array = rng.integers(0, 2, shape).astype(dtype)  # zeros at either end are padding
        arrays[name] = np.asfortranarray(array) if draw(st.booleans()) else array
        if draw(st.booleans()):
            tabular.append(name)
    cut = draw(st.none() | st.integers(1, 3))
    return columns, arrays, {"tabular": tuple(tabular), "max_seq_len": cut}


@settings(max_examples=100, deadline=None)
@given(tables(), st.integers(1, 10), st.sampled_from(["csv", "parquet"]))
def test_parts_of_any_size_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]],
    size: int,
    kind: str,
) -> None:
    columns, arrays, options = made
    path = make(tmp_path_factory.mktemp("table"), columns, kind, **arrays)
    whole = read(path, predicting=True, **options).items
    parts = parts_of(path, size, **options)
    ids = list(columns.get("id", map(str, range(len(whole)))))
    assert [len(ids) for ids, _ in parts[:-1]] == [size] * (len(parts) - 1)
    assert ids_of(parts) == whole.ids.tolist() == ids
    for name, expected in whole.sequences.items():
        rows = [each[name][item].tolist() for ids, each in parts for item in range(len(ids))]
        assert rows == [expected[item].tolist() for item in range(len(whole))]
        for _, each in parts:
            assert each[name].values.dtype == expected.values.dtype
            assert each[name].tabular == expected.tabular
        assert list(parts[0][1]) == list(whole.sequences)


@each_kind
@pytest.mark.parametrize("name", ["two\nlines {}", None])
def test_many_items_come_in_order(tmp_path: Path, kind: str, name: str | None) -> None:
    """More than PyArrow reads at once; labels that become text late are not looked at."""
    count = 150_000
    ids = [(name or "{}").format(number) for number in range(count)]
    audio = np.arange(count, dtype=np.float32)[:, None] + 1
    columns = {"label": ["1"] * (count - 1) + ["good"], **({"id": ids} if name else {})}
    parts = parts_of(make(tmp_path, columns, kind, audio=audio), 4096)
    assert ids_of(parts) == ids
    assert np.concatenate([each["audio"].values for _, each in parts]).tolist() == audio.tolist()


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("csv", ["001", "NA", "null"]),
        ("parquet", [7, 8, 9]),
        ("csv", ["a\nb", 'say "a"', "c,\r\nd"]),
        ("csv", ["a", "a", "b"]),  # to predict, two items may have one id
    ],
)
def test_ids(tmp_path: Path, kind: str, ids: list[Any]) -> None:
    path, texts = make(tmp_path, {"label": [3, 2, 1], "id": ids}, kind), list(map(str, ids))
    assert ids_of(parts_of(path, 2)) == texts
    if len(set(ids)) == 3:
        assert read(path, predicting=True).items.ids.tolist() == texts


def test_other_arrays_and_context_are_read_whole(tmp_path: Path) -> None:
    columns = {"id": IDS, "group": ["a", "a", "b"]}
    path = make(tmp_path, columns, audio=np.ones((3, 1)), smell=AUDIO)
    parts = parts_of(path, 2, modalities=("language", "audio"))  # language is not there
    assert [list(each) for _, each in parts] == [["audio"], ["audio"]]

    def streamed(**options: Any) -> bool:
        reading = ReadSettings(predicting=True, **options)
        return FORMATS["table"].stream(Given([path]), reading) is not None

    assert streamed()
    assert not streamed(context=2)
    np.savez(tmp_path / "vision.npz", values=AUDIO)
    assert not streamed()
    assert streamed(modalities=("audio",))


@each_kind
@pytest.mark.parametrize("column", ["id", "label"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_table_and_arrays_of_different_lengths(
    tmp_path: Path, kind: str, column: str, count: int
) -> None:
    words = f"{tmp_path / 'audio.npy'} has 3 items and the table {count}; expected as many"
    fails_in_parts(make(tmp_path, {column: range(count)}, kind), words)


@pytest.mark.parametrize("items", [2, 4])
def test_every_array_is_compared_with_the_table(tmp_path: Path, items: int) -> None:
    path = make(tmp_path, audio=AUDIO, vision=np.zeros((items, 2, 2)))
    fails_in_parts(path, f"vision.npy has {items} items and the table 3; expected as many")


def test_a_table_without_rows_and_arrays_without_items(tmp_path: Path) -> None:
    assert parts_of(make(tmp_path, {"id": []}, audio=np.empty((0, 2, 2))), 2) == []


MEASURE = """
from common.data.item_stream import open_items
from common.data.source import ReadSettings

def read(path):
    stream = open_items([Path(path)], "table", ReadSettings(predicting=True))
    return sum(float(part.sequences["audio"].values.sum()) for part in stream.parts(256))

read(sys.argv[1])
before = memory()
total = read(sys.argv[2])
print(total, memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@each_kind
def test_a_large_table_takes_the_memory_of_a_part(tmp_path: Path, kind: str) -> None:
    count, shape = 10_000, (16, 256)
    (tmp_path / "small").mkdir()
    small = make(tmp_path / "small", {"id": IDS, "label": IDS}, kind)
    path = make(tmp_path, {"id": range(count), "label": ["x" * 1000] * count}, kind)
    audio = np.lib.format.open_memmap(tmp_path / "audio.npy", "w+", np.float32, (count, *shape))
    audio[:] = 1
    del audio
    assert (tmp_path / "audio.npy").stat().st_size > 160e6
    total, megabytes = map(float, run_python(MEASURE, small, path).split())
    assert total == count * 16 * 256
    # A part is 4 MB; the table's text is 10 MB.
    assert megabytes < 60
