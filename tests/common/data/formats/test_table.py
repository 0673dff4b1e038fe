"""What the reader of own tables refuses, and how it brings arrays and rows together."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from common.data.formats.registry import FORMATS, Given, read_source
from common.data.source import ReadSettings, Source
from common.errors import UserError
from common.task import Task

ROWS = "id,label,split,group\n001,1,train,a\n002,2,dev,a\n010,3,test,b\n"
AUDIO = np.arange(12, dtype=np.float32).reshape(3, 2, 2) + 1


def make(folder: Path, rows: str = ROWS, **arrays: Any) -> Path:
    """Write a table and arrays: a dict becomes an npz file, an array an npy file."""
    path = folder / "items.csv"
    path.write_text(rows, encoding="utf-8")
    for name, content in (arrays or {"audio": AUDIO}).items():
        if isinstance(content, dict):
            np.savez(folder / f"{name}.npz", **content)
        else:
            np.save(folder / f"{name}.npy", content)
    return path


def read(path: Path, **options: Any) -> Source:
    return read_source([path], "table", ReadSettings(**options))[0]


def fails(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        read(path, prefix="+", **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message, message


def rows_of(source: Source, modality: str = "audio") -> list[list[Any]]:
    sequences = source.items.sequences[modality]
    return [sequences[item].tolist() for item in range(len(sequences))]


# ---- The table ------------------------------------------------------------------------


def test_recognise(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert FORMATS["table"].recognise(Given([path])) == "a table, CSV"
    assert FORMATS["table"].recognise(Given([tmp_path])) == "a folder with the table items.csv"
    assert FORMATS["table"].recognise(Given([tmp_path / "audio.npy"])) is None
    (tmp_path / "more.parquet").touch()
    assert FORMATS["table"].recognise(Given([tmp_path])) is None
    fails(tmp_path, "holds 2 tables", "expected one")


def test_ids_groups_and_splits_are_text(tmp_path: Path) -> None:
    rows = ROWS.replace(",a\n", ",07\n").replace(",b\n", ",7\n")
    source = read(make(tmp_path, rows))
    assert source.items.ids.tolist() == ["001", "002", "010"]
    assert source.items.groups.tolist() == ["07", "07", "7"]
    assert source.splits.tolist() == ["train", "validation", "test"]
    assert source.items.labels.tolist() == [1, 2, 3]
    assert rows_of(source) == AUDIO.tolist()


def test_without_columns_items_are_numbered_and_stand_alone(tmp_path: Path) -> None:
    source = read(make(tmp_path, "label\n1\n2\n3\n"))
    assert source.items.ids.tolist() == source.items.groups.tolist() == ["0", "1", "2"]
    assert source.splits.tolist() == [""] * 3


def test_numbers_are_ids_in_parquet(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "a.parquet"
    when = pa.array([1, 2, 3], pa.timestamp("ns"))  # no cell that anybody asks for
    pq.write_table(pa.table({"id": [7, 8, 9], "label": [1, 2, 3], "when": when}), path)
    assert read(path).items.ids.tolist() == ["7", "8", "9"]
    fails(path, "a.parquet", "'when'", group="when")


def test_an_empty_label_is_dropped_and_counted(tmp_path: Path) -> None:
    source = read(make(tmp_path, ROWS.replace(",2,", ",,")))
    assert source.items.ids.tolist() == ["001", "010"]
    assert source.items.cleaning == {"items without a label, dropped": 1}
    assert rows_of(source) == AUDIO[[0, 2]].tolist()


def test_several_labels(tmp_path: Path) -> None:
    path = make(tmp_path, "id,ill,old\na,0,1\nb,2,0\nc,0,0\n")
    items = read(path, task=Task.multilabel, labels=("old", "ill")).items
    assert items.labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert items.label_names == ("old", "ill")
    fails(path, "+labels names 2 columns", labels=("old", "ill"))


def test_classes(tmp_path: Path) -> None:
    items = read(make(tmp_path), task=Task.classification).items
    assert items.labels.tolist() == [1, 2, 3]
    assert items.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS.replace("label", "y"), ["no column 'label'", "+labels", "id, y, split, group"]),
        (ROWS.replace(",2,", ",good,"), ["'label' holds", "expected numbers"]),
        (ROWS.replace(",2,", ",inf,"), ["infinity"]),
        (ROWS.replace("002", "001"), ["two items have the id '001'"]),
        (ROWS.replace("002", ""), ["'id'", "empty"]),
        (ROWS.replace("002", "2" * 2000), ["'id'", "no short text"]),
        (ROWS.replace("dev", "later"), ["split 'later'", "train"]),
        (ROWS.replace(",b\n", ",\n"), ["'group'", "empty"]),
        (ROWS.replace("split", "label"), ["two columns have the same name"]),
        (ROWS.replace("a\n", "a,b,c\n"), ["cannot be read as a table"]),
        ("id,label\n", ["no rows"]),
        ("", ["cannot be read as a table"]),
    ],
)
def test_a_wrong_table(tmp_path: Path, rows: str, words: list[str]) -> None:
    fails(make(tmp_path, rows), "items.csv", *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": "ward"}, ["no column 'ward'", "+group"]),
        ({"emotions": True, "task": Task.multilabel}, ["+labels", "+task=multilabel"]),
        ({"modalities": ("smell",)}, ["smell.npy", "+arrays.smell"]),
        ({"arrays": {"smell": "/nothing.npy"}}, ["/nothing.npy", "does not exist"]),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, options: dict[str, Any], words: list[str]
) -> None:
    fails(make(tmp_path), *words, **options)


def test_a_small_file_of_very_many_rows(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "a.parquet"
    column = pa.array(np.zeros(1 << 25, np.int8))
    pq.write_table(pa.table({"label": column}), path)
    fails(path, "a.parquet", "GiB")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    fails(path, "a.parquet", "cannot be read as a table")


def test_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    fails(path, "needs pyarrow: pip install 'ha-fedformer[prepare]'")


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


def test_context_needs_groups_and_rows_in_order(tmp_path: Path) -> None:
    fails(make(tmp_path, "label\n1\n2\n3\n", audio=np.ones((3, 1))), "+context=2", context=2)
    arrays = {"values": np.ones((3, 1)), "ids": np.array(["001", "002", "010"])}
    (tmp_path / "audio.npy").unlink()
    fails(make(tmp_path, audio=arrays), "audio.npz", "+context=2", "'ids'", context=2)


def test_offsets_with_ids_in_another_order(tmp_path: Path) -> None:
    arrays = {
        "values": np.array([[1.0], [2], [3]]),
        "offsets": np.array([0, 1, 3]),
        "ids": np.array(["010", "001"]),
    }
    assert rows_of(read(make(tmp_path, audio=arrays))) == [[[2], [3]], [], [[1]]]


def test_ids_in_safetensors_are_rows_of_bytes(tmp_path: Path) -> None:
    path = make(tmp_path, text=AUDIO)
    names = np.array([b"010", b"001"]).view(np.uint8).reshape(2, 3)
    save_file({"values": AUDIO[:2], "ids": names}, tmp_path / "audio.safetensors")
    source = read(path)
    assert set(source.items.sequences) == {"audio", "text"}
    assert rows_of(source) == [AUDIO[1].tolist(), [], AUDIO[0].tolist()]


def test_one_array_for_each_id(tmp_path: Path) -> None:
    arrays = {"002": np.array([[1.0, 2], [3, 4]]), "001": np.array([5.0, 6])}
    assert rows_of(read(make(tmp_path, audio=arrays))) == [[[5, 6]], [[1, 2], [3, 4]], []]


@pytest.mark.parametrize(("dtype", "kept"), [("f2", "f2"), ("f8", "f4"), ("i4", "f4")])
def test_types(tmp_path: Path, dtype: str, kept: str) -> None:
    items = read(make(tmp_path, audio=AUDIO.astype(dtype))).items
    assert items.sequences["audio"].values.dtype == kept


def test_arrays_elsewhere(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "far").mkdir()
    moved = (tmp_path / "audio.npy").rename(tmp_path / "far" / "a.npy")
    fails(path, "no modality")
    assert rows_of(read(path, arrays={"audio": str(moved)})) == AUDIO.tolist()


def test_two_files_of_one_modality(tmp_path: Path) -> None:
    path = make(tmp_path)
    np.savez(tmp_path / "audio.npz", values=AUDIO)
    fails(path, "several files for audio", "+arrays")
    named = {"audio": str(tmp_path / "audio.npz")}
    assert rows_of(read(path, arrays=named)) == AUDIO.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones((2, 2, 2)), ["audio.npy", "2 items and the table 3"]),
        (np.ones(3), ["audio.npy", "(3,)", "2 or 3 dimensions"]),
        (np.ones((3, 2, 0)), ["audio.npy"]),
        (np.array([["a"], ["b"], ["c"]]), ["audio.npy", "<U1"]),
        (np.array([{}, {}, {}], object), ["audio.npy", "cannot be read"]),
        ({"values": np.ones((3, 1)), "offsets": np.array([0, 2, 1, 3])}, ["'offsets'", "0 to 3"]),
        ({"values": np.ones((3, 1)), "offsets": np.array([0.0, 1, 2, 3])}, ["'offsets'"]),
        ({"values": np.ones((3, 1)), "offsets": np.array([0, 3])}, ["1 items and the table 3"]),
        ({"values": np.ones((2, 1)), "ids": np.array(["001", "001"])}, ["'ids'", "each once"]),
        ({"values": np.ones((2, 1)), "ids": np.array(["001"])}, ["'ids'", "2 items"]),
        ({"values": np.ones((1, 1)), "ids": np.array(["x"])}, ["none of its ids"]),
        ({"x": np.ones((1, 1))}, ["neither 'values' nor an array for an id", "x"]),
        ({"001": np.ones((1, 1)), "002": np.ones((1, 2))}, ["differ in width", "[1, 2]"]),
        ({"001": np.ones((1, 1, 1))}, ["'001'", "(1, 1, 1)"]),
    ],
)
def test_wrong_arrays(tmp_path: Path, content: Any, words: list[str]) -> None:
    fails(make(tmp_path, audio=content), *words)


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for content in (np.array([Trap()] * 3), {"values": np.array([Trap()] * 3)}):
        for old in tmp_path.glob("audio.*"):
            old.unlink()
        fails(make(tmp_path, audio=content), "audio", "cannot be read")
    assert not (tmp_path / "sprung").exists()


def test_tabular_items_are_of_one_length(tmp_path: Path) -> None:
    arrays = {"values": np.ones((4, 1)), "offsets": np.array([0, 1, 2, 4])}
    fails(make(tmp_path, audio=arrays), "audio.npz", "+tabular", tabular=("audio",))


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("raw", [b"", b"PK\x05\x06", b"\x93NUMPY", bytes(100)])
def test_damaged_arrays(tmp_path: Path, suffix: str, raw: bytes) -> None:
    path = make(tmp_path, text=AUDIO)
    (tmp_path / f"audio.{suffix}").write_bytes(raw)
    fails(path, f"audio.{suffix}")


def test_an_archive_that_declares_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.formats.layouts.FREE", 1000)
    path = make(tmp_path, text=AUDIO)
    np.savez_compressed(tmp_path / "audio.npz", values=np.zeros((3, 1 << 16, 2)))
    fails(path, "audio.npz", "GiB")
