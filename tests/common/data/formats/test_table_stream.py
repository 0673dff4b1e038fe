"""A table read in parts is the table read whole, in memory that does not grow."""

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.dataset import Sequences
from common.data.formats.registry import FORMATS, Given, check_format, read_source
from common.data.source import ReadSettings
from common.errors import UserError
from tests.common.data.formats.writers import write_columns

AUDIO = np.arange(12, dtype=np.float32).reshape(3, 2, 2) + 1
IDS = ["001", "002", "010"]

#: A part: ids, and modality to sequences.
Part = tuple[np.ndarray, dict[str, Sequences]]


def make(folder: Path, columns: dict[str, Any], kind: str = "csv", **arrays: Any) -> Path:
    """Write a table, and an array file for each modality."""
    for name, array in (arrays or {"audio": AUDIO}).items():
        np.save(folder / f"{name}.npy", array)
    return write_columns(folder / f"items.{kind}", columns)


def predicting(**options: Any) -> ReadSettings:
    return ReadSettings(predicting=True, **options)


def stream_of(path: Path, **options: Any) -> TableStream:
    stream = TableStream.open(path, predicting(**options))
    assert stream is not None
    return stream


def parts_of(path: Path, size: int, **options: Any) -> list[Part]:
    return list(stream_of(path, **options).parts(size))


def ids_of(parts: list[Part]) -> list[str]:
    return [name for ids, _ in parts for name in ids.tolist()]


def rows_of(parts: list[Part], name: str = "audio") -> list[Any]:
    return [each[name][item].tolist() for ids, each in parts for item in range(len(ids))]


def fails(path: Path, size: int = 2, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        parts_of(path, size, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# Parts of any size ------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Columns, arrays and settings."""
    count = draw(st.integers(1, 9))
    columns: dict[str, Any] = {"note": [draw(names) for _ in range(count)]}
    if draw(st.booleans()):
        columns["id"] = draw(st.lists(names, min_size=count, max_size=count, unique=True))
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
    whole = table.read(path, predicting(**options)).items
    parts = parts_of(path, size, **options)
    assert [len(ids) for ids, _ in parts[:-1]] == [size] * (len(parts) - 1)
    assert (
        ids_of(parts) == whole.ids.tolist() == list(columns.get("id", map(str, range(len(whole)))))
    )
    for name, expected in whole.sequences.items():
        assert rows_of(parts, name) == [expected[item].tolist() for item in range(len(whole))]
        for _, each in parts:
            assert each[name].values.dtype == expected.values.dtype
            assert each[name].tabular == expected.tabular
        assert list(parts[0][1]) == list(whole.sequences)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["item {}", "two\nlines {}", None])
def test_many_items_come_in_order(tmp_path: Path, kind: str, name: str | None) -> None:
    """More than PyArrow reads at once, whatever the parts."""
    count = 150_000
    ids = [(name or "{}").format(number) for number in range(count)]
    audio = np.arange(count, dtype=np.float32)[:, None] + 1
    columns = {"note": ["of no use"] * count, **({"id": ids} if name else {})}
    path = make(tmp_path, columns, kind, audio=audio)
    parts = parts_of(path, 4096)
    assert ids_of(parts) == ids
    assert np.concatenate([each["audio"].values for _, each in parts]).tolist() == audio.tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_items_without_ids_are_numbered(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, {"label": [3, 2, 1]}, kind)
    for size in (1, 2, 5):
        assert ids_of(parts_of(path, size)) == ["0", "1", "2"]


def test_ids_are_text_in_csv_and_may_be_numbers_in_parquet(tmp_path: Path) -> None:
    path = make(tmp_path, {"id": ["001", "NA", "null"]})
    assert ids_of(parts_of(path, 2)) == ["001", "NA", "null"]
    pq.write_table(pa.table({"id": [7, 8, 9]}), tmp_path / "a.parquet")
    assert ids_of(parts_of(tmp_path / "a.parquet", 2)) == ["7", "8", "9"]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ids_of_several_lines(tmp_path: Path, size: int) -> None:
    ids = ["a\nb", 'say "a"', "c,\r\nd"]
    path = make(tmp_path, {"id": ids})
    assert ids_of(parts_of(path, size)) == ids
    assert table.read(path, predicting()).items.ids.tolist() == ids


def test_other_columns_do_not_matter(tmp_path: Path) -> None:
    """Labels that are broken, or become text after a million rows, are not read."""
    count = 200_000
    label = ["1"] * (count - 1) + ["good"]
    path = make(tmp_path, {"label": label, "id": range(count)}, audio=np.ones((count, 1)))
    assert ids_of(parts_of(path, 9999)) == [str(number) for number in range(count)]
    path = make(tmp_path, {"id": IDS, "split": ["?", "", "?"], "group": ["", "", ""]})
    assert ids_of(parts_of(path, 2)) == IDS
    assert table.read(path, predicting()).items.ids.tolist() == IDS


def test_two_items_may_have_one_id(tmp_path: Path) -> None:
    assert ids_of(parts_of(make(tmp_path, {"id": ["a", "a", "b"]}), 2)) == ["a", "a", "b"]


def test_a_folder_and_arrays_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    make(folder, {"id": IDS})
    moved = (folder / "audio.npy").rename(tmp_path / "sounds.npy")
    parts = parts_of(folder, 2, arrays={"audio": str(moved)})
    assert rows_of(parts) == AUDIO.tolist()


def test_modalities_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path, {"id": IDS}, audio=AUDIO, smell=AUDIO)
    parts = parts_of(path, 2, modalities=("language", "audio"))
    assert [list(each) for _, each in parts] == [["audio"], ["audio"]]


# What is read whole -----------------------------------------------------------------------------


def test_other_arrays_and_context_are_read_whole(tmp_path: Path) -> None:
    path = make(tmp_path, {"id": IDS, "group": ["a", "a", "b"]}, audio=np.ones((3, 1)))
    assert TableStream.open(path, predicting(context=2)) is None
    assert TableStream.open(path, predicting()) is not None
    np.savez(tmp_path / "vision.npz", values=AUDIO)
    assert TableStream.open(path, predicting()) is None
    assert TableStream.open(path, predicting(modalities=("audio",))) is not None


# What does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("ids", "told"), [(IDS[:2], "2"), ([*IDS, "x"], "more"), ([*IDS, *"abcdef"], "more")]
)
def test_a_table_and_arrays_of_different_lengths(
    tmp_path: Path, kind: str, size: int, ids: list[str], told: str
) -> None:
    path = make(tmp_path, {"id": ids}, kind)
    expected = f"{tmp_path / 'audio.npy'} has 3 items and the table {told}; expected as many"
    assert fails(path, size) == expected


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = make(tmp_path, {"id": []})
    assert fails(path).endswith("audio.npy has 3 items and the table 0; expected as many")
    path = make(tmp_path, {"id": []}, audio=np.empty((0, 2, 2)))
    assert stream_of(path).count == 0
    assert parts_of(path, 2) == []


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    path = make(tmp_path, {"id": IDS}, audio=AUDIO, vision=AUDIO[:2])
    assert fails(path) == f"{path}: arrays differ in number of items: 3 of audio, 2 of vision"


@pytest.mark.parametrize("cell", ["", "x" * 1001])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("place", [0, 2])
def test_ids_that_are_none(tmp_path: Path, cell: str, kind: str, place: int) -> None:
    ids = [*IDS]
    ids[place] = cell
    path = make(tmp_path, {"id": ids, "label": [1, 2, 3]}, kind)
    assert fails(path) == f"{path}: column 'id' has cells empty or no short text"


@pytest.mark.parametrize("ids", [[1.5, 2.5, 3.5], ["a", None, "b"], [None] * 3, [{"a": 1}] * 3])
def test_ids_of_another_kind(tmp_path: Path, ids: list[Any]) -> None:
    path = make(tmp_path, {"id": ids}, "parquet")
    assert fails(path) == f"{path}: column 'id' has cells empty or no short text"


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
    assert fails(path).startswith((f"{path} cannot be read as a table: ", f"{path.parent}/audio"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.ones(3), "'values' is float64 of shape (3,), expected numbers of 2 or 3 dimensions"),
        (np.float32(3), "'values' is float32 of shape ()"),
        (np.ones((3, 2, 0)), "'values' is float64 of shape (3, 2, 0)"),
        (np.array([["a"], ["b"], ["c"]]), "'values' is <U1"),
        (np.array([{}, {}, {}], object), "audio.npy cannot be read"),
    ],
)
def test_wrong_arrays(tmp_path: Path, content: Any, words: str) -> None:
    assert words in fails(make(tmp_path, {"id": IDS}, audio=content))


@pytest.mark.parametrize("kept", [0, 8, 60, 140, 170])
def test_an_array_file_of_which_only_a_part_is_there(tmp_path: Path, kept: int) -> None:
    path = make(tmp_path, {"id": IDS})
    file = tmp_path / "audio.npy"
    content = file.read_bytes()
    assert len(content) > kept
    file.write_bytes(content[:kept])
    assert fails(path).startswith(f"{file} cannot be read: ")


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    fails(make(tmp_path, {"id": IDS}, audio=np.array([Trap()] * 3)))
    assert not (tmp_path / "sprung").exists()


def test_no_modality_that_was_asked_for(tmp_path: Path) -> None:
    message = fails(make(tmp_path, {"id": IDS}), modalities=("language", "vision"))
    assert message.startswith(
        f"{tmp_path} has no language.npy, .npz or .safetensors; give its file"
    )


def test_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, {"id": IDS})
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert fails(path) == f"{path} needs pyarrow: pip install 'ha-fedformer[prepare]'"


# Memory -----------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from common.data.formats.table_stream import TableStream
from common.data.source import ReadSettings

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def read(path):
    stream = TableStream.open(Path(path), ReadSettings(predicting=True))
    return sum(float(each["audio"].values.sum()) for _, each in stream.parts(256))

read(sys.argv[1])
before = peak()
total = read(sys.argv[2])
print(total, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes there")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_large_table_takes_the_memory_of_a_part(tmp_path: Path, kind: str) -> None:
    count, shape = 10_000, (16, 256)
    (tmp_path / "small").mkdir()
    small = make(tmp_path / "small", {"id": IDS, "label": IDS}, kind)
    path = make(tmp_path, {"id": range(count), "label": ["x" * 1000] * count}, kind)
    audio = np.lib.format.open_memmap(tmp_path / "audio.npy", "w+", np.float32, (count, *shape))
    audio[:] = 1
    del audio
    assert (tmp_path / "audio.npy").stat().st_size > 160e6
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    total, megabytes = map(float, done.stdout.split())
    assert total == count * 16 * 256
    # A part is 4 MB; the table's text is 10 MB.
    assert megabytes < 60
