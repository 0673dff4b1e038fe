"""Items of every source a few at a time: the same as all of them together."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import assert_same_sequences, make_items, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.dataset import MultimodalDataset, Sequences, concatenate
from common.data.formats.registry import read_source
from common.data.item_stream import ItemStream, open_items
from common.data.manifest import MANIFEST
from common.data.shards import info_of, write_shard
from common.data.source import ReadSettings
from common.task import Task
from tests.common.data.formats import writers

UTTERANCES = writers.make_utterances(0, count=20, zero_text=2, missing_audio=3)


def opened(paths: Path | Sequence[Path], format: str = "auto", **options: Any) -> ItemStream:
    listed = [paths] if isinstance(paths, Path) else paths
    return open_items(listed, format, ReadSettings(predicting=True, **options))


def fails(
    paths: Path | Sequence[Path], words: object, format: str = "auto", **options: Any
) -> None:
    refusal(lambda: opened(paths, format, **options), words)


def assert_joined(stream: ItemStream, size: int, items: MultimodalDataset) -> None:
    parts = list(stream.parts(size))
    assert stream.count == len(items) == sum(len(part.ids) for part in parts)
    assert [name for part in parts for name in part.ids.tolist()] == items.ids.tolist()
    assert all(0 < len(part.ids) <= size for part in parts)
    for part in parts:
        assert list(part.sequences) == list(items.sequences)
    for name, expected in items.sequences.items():
        assert_same_sequences(concatenate([part.sequences[name] for part in parts]), expected)


@pytest.mark.parametrize("format", [name for name in writers.WRITERS if name != "python 2"])
@pytest.mark.parametrize("size", [1, 7, 20, 999])
@pytest.mark.parametrize("options", [{}, {"modalities": ("vision", "audio"), "max_seq_len": 3}])
def test_parts_of_any_size_are_the_whole(
    tmp_path: Path, format: str, size: int, options: dict[str, Any]
) -> None:
    path = writers.WRITERS[format](tmp_path, UTTERANCES)
    whole, _, why = read_source([path], format, ReadSettings(predicting=True, **options))
    stream = opened(path, **options)
    assert stream.format == format
    assert stream.why and (why == stream.why or why == f"format={format}")
    assert stream.label_names == ()
    assert_joined(stream, size, whole.items)
    assert stream.cleaning == whole.items.cleaning
    assert_joined(opened(path, format, **options), size, whole.items)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_context_reaches_across_parts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 12))
    groups = data.draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, audio=np.arange(count * 2.0).reshape(count, 2), video=groups)
    options = {"group": "video", "context": data.draw(st.integers(0, 4))}
    whole = read_source([path], "npz", ReadSettings(predicting=True, **options))[0].items
    assert_joined(opened(path, **options), data.draw(st.integers(1, 13)), whole)


def test_several_files_whose_parts_hold_their_own_rows(tmp_path: Path) -> None:
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for number, path in enumerate(paths):
        np.savez(path, audio=np.full((2, 3, 1), number, np.float32))
    stream = opened(paths)
    assert stream.count == 4
    parts = list(stream.parts(3))
    ids = [name for part in parts for name in part.ids.tolist()]
    assert ids == ["a.npz#0", "a.npz#1", "b.npz#0", "b.npz#1"]
    for part in parts:
        assert len(part.sequences["audio"].values) == part.sequences["audio"].lengths.sum()


def test_names_do_not_deceive(tmp_path: Path) -> None:
    writers.write_csd(tmp_path / "csd", UTTERANCES)
    (tmp_path / "csd" / "notes.csv").write_text("id,note\n1,a\n")
    assert opened(tmp_path / "csd").format == "csd"
    path = writers.write_multibench(tmp_path / "a.csv", UTTERANCES)
    assert opened(path).format == "multibench"
    fails(path, "is a pickle and not of format=table", "table")


# Shards -----------------------------------------------------------------------------------------


def ragged(
    lengths: list[int], width: int, first: float = 0, tabular: bool = False, dtype: str = "f4"
) -> Sequences:
    values = np.arange(sum(lengths) * width).reshape(-1, width) + first
    return Sequences.ragged(values.astype(dtype), np.array(lengths), tabular)


def write(
    path: Path, ids: list[str], sequences: dict[str, Sequences], names: tuple[str, ...] = ()
) -> None:
    task = Task.multilabel if names else Task.regression
    labels = np.zeros((len(ids), len(names)) if names else len(ids), np.float32)
    items = make_items(sequences, labels, ids, names=names)
    write_shard(path, items, info_of(items, path.stem, task, max(len(names), 1)))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """One shard with two modalities, one with one of them."""
    both = {"vision": ragged([2, 0, 1], 2), "audio": ragged([1, 4, 0], 3, dtype="f2")}
    write(tmp_path / "test.safetensors", ["a", "b", "c"], both)
    write(tmp_path / "audio-0.safetensors", ["c", "d"], {"audio": ragged([5, 2], 3, first=99)})
    return [tmp_path / "test.safetensors", tmp_path / "audio-0.safetensors"]


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_several_shards_follow_each_other(two: list[Path], size: int) -> None:
    stream = opened(two)
    assert (stream.format, stream.why, stream.count) == ("shard", "test, audio-0", 5)
    parts = list(stream.parts(size))
    assert [name for part in parts for name in part.ids.tolist()] == ["a", "b", "c", "c", "d"]
    here = [part for part in parts if "vision" in part.sequences]
    there = [part for part in parts if "vision" not in part.sequences]
    assert sum(len(part.ids) for part in here) == 3
    assert sum(len(part.ids) for part in there) == 2
    lengths = [n for part in parts for n in part.sequences["audio"].lengths.tolist()]
    assert lengths == [1, 4, 0, 5, 2]
    last = there[-1].sequences["audio"]
    assert last[len(last) - 1].tolist() == [[114, 115, 116], [117, 118, 119]]


def test_shards_are_read_as_asked(two: list[Path]) -> None:
    first = next(opened(two, modalities=("smell", "audio"), max_seq_len=2).parts(9))
    assert list(first.sequences) == ["audio"]
    audio = first.sequences["audio"]
    assert audio.lengths.tolist() == [1, 2, 0]
    assert audio[1].tolist() == [[9, 10, 11], [12, 13, 14]]
    order = next(opened(two, modalities=("audio", "vision")).parts(9))
    assert list(order.sequences) == ["audio", "vision"]
    words = f"shard {two[1]} holds audio, and none of smell, vision"
    fails(two, words, modalities=("smell", "vision"))


def test_a_shard_of_another_name_says_what_its_labels_are(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    write(path, ["a"], {"audio": ragged([3], 1, tabular=True)}, ("joy", "größe"))
    stream = opened(path, "shard")
    assert stream.label_names == ("joy", "größe")
    assert next(stream.parts(1)).sequences["audio"].tabular
    fails(path, "is of no known format")


def test_what_is_no_source(two: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "none.npz"
    fails(missing, words := f"{missing} does not exist")
    fails([two[0], missing], words)
    npz = writers.write_npz(tmp_path / "a.npz", UTTERANCES)
    fails(npz, "is not a shard", "shard")
    fails([two[0], npz], "is not a shard")
    fails([npz, two[0]], "test.safetensors is not an .npz file")
    damaged, notes, folder = tmp_path / "b.safetensors", tmp_path / "notes.txt", tmp_path / "folder"
    damaged.write_bytes(two[0].read_bytes()[:-1])
    fails(damaged, "is damaged")
    notes.write_text("hello")
    fails(notes, "is of no known format")
    fails(notes, "format=hdf: expected one of auto, csd, ", "hdf")
    path = writers.write_table(tmp_path / "table", UTTERANCES)
    fails([path, path], "format table is one file; 2 paths were given")
    folder.mkdir()
    for shard in two:
        shutil.copy(shard, folder)
    (folder / MANIFEST).write_text("{}")
    for format in ("auto", "shard"):
        fails(folder, f"{folder} is a folder of shards; give one or several of them: ", format)
        fails(folder, "audio-0.safetensors, test.safetensors", format)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_source_without_items(tmp_path: Path, steps: int) -> None:
    np.savez(tmp_path / "a.npz", audio=np.empty((0, steps, 2)) if steps else np.empty((0, 2)))
    fails(tmp_path / "a.npz", f"{tmp_path / 'a.npz'} has no items")
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "audio.npy", np.empty((0, 2, 2)))
    (tmp_path / "t" / "a.csv").write_text("id\n")
    fails(tmp_path / "t" / "a.csv", f"{tmp_path / 't' / 'a.csv'} has no items")
