"""Shards: what is written is read, what was damaged or forged is refused in one line."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from common.data.dataset import MultimodalDataset, Sequences
from common.data.shards import (
    VERSION,
    Shard,
    ShardInfo,
    info_of,
    read_shard,
    write_shard,
)
from common.errors import UserError
from common.seal import seal
from common.task import Task

KEY = "ha-fedformer"
Arrays = dict[str, Any]
Header = dict[str, Any]
Change = Callable[[Arrays, Header], Any]


def sequences(
    values: Any, starts: list[int], lengths: list[int], tabular: bool = False, dtype: Any = "f4"
) -> Sequences:
    return Sequences(
        np.asarray(values, dtype=dtype),
        np.array(starts, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        tabular,
    )


def rows(number: int, width: int) -> np.ndarray:
    return np.arange(number * width, dtype=np.float32).reshape(number, width) / 8


LABELS = {
    Task.regression: np.array([0.5, -3, 1e-9], dtype=np.float32),
    Task.classification: np.array([2, 0, 1]),
    Task.multilabel: np.array([[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]], dtype=np.float32),
}
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 4}


def dataset(task: Task = Task.regression) -> MultimodalDataset:
    """Three items: ragged and partly shared, one missing, and a table; in no alphabetical order."""
    return MultimodalDataset(
        ids=np.array(["clip/1", "Grüße 你好 🎧", ""]),
        groups=np.array(["speaker", "speaker", "ü"]),
        labels=LABELS[task],
        sequences={
            "vision": sequences(rows(9, 2), [1, 2, 0], [4, 5, 0]),
            "audio_2": sequences(rows(6, 3), [0, 2, 4], [2, 2, 2], tabular=True),
            "language": sequences(rows(4, 1), [3, 0, 0], [1, 3, 2], dtype="f2"),
        },
        label_names=("joy", "anger", "größe", "fear") if task is Task.multilabel else (),
    )


def info_for(items: MultimodalDataset, task: Task = Task.regression) -> ShardInfo:
    return info_of(items, "validation", task, OUTPUTS[task])


def write(path: Path, items: MultimodalDataset, task: Task = Task.regression) -> Shard:
    seal = write_shard(path, items, info_for(items, task))
    shard = read_shard(path)
    assert shard.seal == seal
    return shard


def assert_same(found: MultimodalDataset, items: MultimodalDataset) -> None:
    """Equal to the bit, item by item."""
    assert found.ids.tolist() == items.ids.tolist()
    assert found.groups.tolist() == items.groups.tolist()
    assert found.labels.dtype == items.labels.dtype
    assert found.labels.shape == items.labels.shape
    assert found.labels.tobytes() == items.labels.tobytes()
    assert found.label_names == items.label_names
    assert list(found.sequences) == list(items.sequences)
    for name, expected in items.sequences.items():
        each = found.sequences[name]
        assert each.tabular == expected.tabular
        assert each.statistics_shape == expected.statistics_shape
        assert each.values.dtype == expected.values.dtype
        assert each.lengths.tolist() == expected.lengths.tolist()
        assert len(each) == len(expected)
        for item in range(len(expected)):
            assert each[item].shape == expected[item].shape
            assert each[item].tobytes() == expected[item].tobytes()


def refused(path: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(UserError) as error:
        read_shard(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audio-0.safetensors"


# What is written is read ------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_items_come_back_to_the_bit(path: Path, task: Task) -> None:
    items = dataset(task)
    shard = write(path, items, task)
    assert_same(shard.items, items)
    assert shard.info == ShardInfo(
        "validation",
        ("vision", "audio_2", "language"),
        task,
        OUTPUTS[task],
        items.label_names,
        ("audio_2",),
    )


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_what_is_not_finite_is_kept(path: Path, dtype: str) -> None:
    values = [[np.nan, -np.inf], [np.inf, -0.0], [1, 2]]
    audio = sequences(values, [0, 2], [2, 1], dtype=dtype)
    items = replace(dataset().select(np.array([0, 1])), sequences={"audio": audio})
    found = write(path, items).items
    assert_same(found, items)
    assert found.not_finite() == items.not_finite() != {}


def test_shared_rows_are_shared_and_unused_ones_left_out(path: Path) -> None:
    found = write(path, dataset()).items.sequences
    assert {name: len(each.values) for name, each in found.items()} == {
        "vision": 6,  # rows 1 to 6 of 9, in two windows that share three
        "audio_2": 6,
        "language": 4,  # two windows share rows 0 and 1
    }


def test_context_does_not_make_a_shard_larger(tmp_path: Path) -> None:
    items = 40
    sizes = []
    for context in (0, 9):
        starts = [max(item - context, 0) for item in range(items)]
        lengths = [item - start + 1 for item, start in enumerate(starts)]
        names = np.array([str(item) for item in range(items)])
        audio = sequences(rows(items, 5), starts, lengths)
        made = MultimodalDataset(names, names, np.ones(items, np.float32), {"audio": audio})
        write(tmp_path / f"{context}.safetensors", made)
        sizes.append((tmp_path / f"{context}.safetensors").stat().st_size)
    assert sizes[0] == sizes[1]


def test_selected_items_come_back_in_their_order(path: Path) -> None:
    items = dataset().select(np.array([2, 0]))
    assert_same(write(path, items).items, items)


def test_a_modality_that_no_item_has_comes_back_empty(path: Path) -> None:
    none = sequences(rows(4, 3), [4, 0, 2], [0, 0, 0])
    items = replace(dataset(), sequences={"audio": none, **dataset().sequences})
    found = write(path, items).items
    assert_same(found, items)
    assert found.sequences["audio"].values.shape == (0, 3)


def test_names_may_all_be_empty(path: Path) -> None:
    items = replace(dataset(), ids=np.array([""] * 3), groups=np.array([""] * 3))
    assert_same(write(path, items).items, items)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def made(draw: st.DrawFn) -> tuple[MultimodalDataset, Task]:
    task = draw(st.sampled_from(list(Task)))
    items = draw(st.integers(1, 5))
    texts = st.lists(names, min_size=items, max_size=items)
    found = {}
    for name in draw(st.lists(st.sampled_from(["b", "a_1", "ü", "z"]), min_size=1, unique=True)):
        width, count = draw(st.integers(1, 3)), draw(st.integers(0, 7))
        dtype, bits = draw(st.sampled_from([("f2", "u2"), ("f4", "u4")]))
        top = np.iinfo(bits).max
        drawn = st.lists(st.integers(0, top), min_size=count * width, max_size=count * width)
        values = np.array(draw(drawn), dtype=bits).view(dtype).reshape(count, width)
        starts = draw(st.lists(st.integers(0, count), min_size=items, max_size=items))
        lengths = [draw(st.integers(0, count - start)) for start in starts]
        found[name] = sequences(values, starts, lengths, dtype=dtype)
    labels = LABELS[task][draw(st.lists(st.integers(0, 2), min_size=items, max_size=items))]
    return (
        MultimodalDataset(
            np.array(draw(texts), dtype=np.str_),
            np.array(draw(texts), dtype=np.str_),
            labels,
            found,
        ),
        task,
    )


@settings(max_examples=150, deadline=None)
@given(made())
def test_any_items_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[MultimodalDataset, Task]
) -> None:
    items, task = given
    folder = tmp_path_factory.mktemp("shard")
    assert_same(write(folder / "one.safetensors", items, task).items, items)
    again = read_shard(folder / "one.safetensors").items
    write(folder / "two.safetensors", again, task)
    one, two = (folder / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


# Equal bytes ------------------------------------------------------------------------------------

REWRITE = """
import sys
from pathlib import Path
from common.data.shards import read_shard, write_shard
shard = read_shard(Path(sys.argv[1]))
write_shard(Path(sys.argv[2]), shard.items, shard.info)
"""


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_writes_the_same_bytes(path: Path, tmp_path: Path, hash_seed: str) -> None:
    write(path, dataset(Task.multilabel), Task.multilabel)
    other = tmp_path / "elsewhere.safetensors"
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", REWRITE, str(path), str(other)]
    subprocess.run(command, env=environment, cwd=root, check=True)
    assert other.read_bytes() == path.read_bytes()


def test_rows_that_no_item_uses_do_not_change_the_bytes(tmp_path: Path) -> None:
    bytes_of = []
    for first, start_of_none in ((0, 0), (3, 7)):
        values = np.concatenate([np.full((first, 2), 7), rows(4, 2), np.full((first, 2), np.nan)])
        audio = sequences(values, [first, first + 1, start_of_none], [2, 3, 0])
        path = tmp_path / f"{first}.safetensors"
        write(path, replace(dataset(), sequences={"audio": audio}))
        bytes_of.append(path.read_bytes())
    assert bytes_of[0] == bytes_of[1]


def test_whatever_is_said_of_a_shard_is_in_its_seal(tmp_path: Path) -> None:
    items, seals = dataset(Task.multilabel), set()
    info = info_for(items, Task.multilabel)
    changes: list[dict[str, Any]] = [{}, {"name": "test"}, {"label_names": ()}, {"tabular": ()}]
    for number, change in enumerate(changes):
        path = tmp_path / f"{number}.safetensors"
        seals.add(write_shard(path, items, replace(info, **change)))
    assert len(seals) == len(changes)


# The layout -------------------------------------------------------------------------------------


def test_a_shard_is_a_plain_safetensors_file(path: Path) -> None:
    items = dataset()
    write(path, items)
    arrays = load_file(path)
    expected = {"labels", "ids", "ids.ends", "groups", "groups.ends"}
    for name in items.sequences:
        expected |= {f"{name}.{part}" for part in ("values", "starts", "lengths")}
    assert set(arrays) == expected
    assert arrays["labels"].tolist() == items.labels.tolist()
    assert arrays["ids"].tobytes().decode() == "".join(items.ids)
    assert arrays["ids.ends"].tolist() == np.cumsum([len(e.encode()) for e in items.ids]).tolist()
    assert arrays["groups"].tobytes().decode() == "speakerspeakerü"
    assert arrays["groups.ends"].tolist() == [7, 14, 16]
    assert arrays["vision.values"].tolist() == rows(9, 2)[1:7].tolist()
    assert arrays["vision.starts"].tolist() == [0, 1, 0]
    assert arrays["vision.lengths"].tolist() == [4, 5, 0]
    assert arrays["language.values"].dtype == np.float16
    for name in ("vision.starts", "vision.lengths", "ids.ends", "groups.ends"):
        assert arrays[name].dtype == np.int64


def test_the_seal_is_the_digest_of_the_file_with_the_seal_blank(path: Path) -> None:
    seal = write(path, dataset()).seal
    content = path.read_bytes()
    assert content.count(seal.encode()) == 1
    blank = content.replace(seal.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == seal


def test_a_modality_cannot_pass_for_the_labels(path: Path) -> None:
    audio = sequences(rows(3, 1), [0, 1, 2], [1, 1, 1])
    items = replace(dataset(), sequences={"labels": audio, "ids": audio, "groups": audio})
    assert_same(write(path, items).items, items)


def test_a_name_that_looks_like_a_seal_is_only_a_name(path: Path) -> None:
    text = '\\"seal\\": \\"' + "0" * 64 + '\\", "seal": "' + "1" * 64 + '"'
    items = replace(dataset(Task.multilabel), label_names=(text, "seal", "0" * 64, '"'))
    items = replace(items, ids=np.array([text, "b", "c"]))
    assert_same(write(path, items, Task.multilabel).items, items)


# Half the size ----------------------------------------------------------------------------------


def test_features_are_stored_as_asked(path: Path) -> None:
    items = dataset()
    write_shard(path, items, info_for(items), np.dtype(np.float16))
    for name, found in read_shard(path).items.sequences.items():
        assert found.values.dtype == np.float16
        for item in range(3):
            expected = items.sequences[name][item].astype(np.float16)
            assert found[item].tobytes() == expected.tobytes()
    write_shard(path, items, info_for(items), np.dtype(np.float32))
    assert {each.values.dtype for each in read_shard(path).items.sequences.values()} == {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("value", [65520, -65520, 1e5, -3e38])
def test_what_float16_cannot_hold_is_refused_by_the_modality(path: Path, value: float) -> None:
    vision = sequences([[0, 1], [np.nan, value], [np.inf, 2]], [0, 1, 2], [1, 1, 1])
    items = replace(
        dataset(), sequences={"audio": dataset().sequences["audio_2"], "vision": vision}
    )
    with pytest.raises(UserError, match=r"^vision has values up to .*float16.*float32") as error:
        write_shard(path, items, info_for(items), np.dtype(np.float16))
    assert len(str(error.value).splitlines()) == 1
    assert f"{abs(value):.3g}" in str(error.value)
    assert not path.exists()
    write_shard(path, items, info_for(items), np.dtype(np.float32))
    assert_same(read_shard(path).items, items)


def test_float16_holds_its_greatest_values_and_infinities(path: Path) -> None:
    vision = sequences([[65504, -65504], [np.inf, -np.inf], [np.nan, 0]], [0, 1, 2], [1, 1, 1])
    items = replace(dataset(), sequences={"vision": vision})
    write_shard(path, items, info_for(items), np.dtype(np.float16))
    values = read_shard(path).items.sequences["vision"].values
    np.testing.assert_array_equal(values, vision.values.astype(np.float16))


def test_rows_that_no_item_uses_may_be_too_large(path: Path) -> None:
    vision = sequences([[1e9, 1e9], [1, 2]], [1, 1, 0], [1, 1, 0])
    items = replace(dataset(), sequences={"vision": vision})
    write_shard(path, items, info_for(items), np.dtype(np.float16))
    assert read_shard(path).items.sequences["vision"].values.tolist() == [[1, 2]]


# In memory --------------------------------------------------------------------------------------


def mapped_from(address: int) -> str:
    """The file that an address of this process is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(each, 16) for each in line.split()[0].split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_features_are_mapped_from_the_file(path: Path, dtype: str) -> None:
    audio = sequences(rows(3, 5), [0, 1, 2], [1, 1, 1], dtype=dtype)
    found = write(path, replace(dataset(), sequences={"audio": audio})).items
    chosen = found.select(np.array([1])).in_modalities(["audio"]).last_steps(1)
    for values in (found.sequences["audio"].values, chosen.sequences["audio"].values):
        assert not values.flags.owndata
        assert isinstance(values.base, torch.Tensor)
        assert mapped_from(values.ctypes.data) == str(path)


def test_writing_into_what_was_read_does_not_change_the_file(path: Path) -> None:
    items = dataset()
    shard = write(path, items)
    before = path.read_bytes()
    for each in shard.items.sequences.values():
        each.values[:] = 99
        each.starts[:] = 0
    shard.items.labels[:] = 99
    assert path.read_bytes() == before
    assert_same(read_shard(path).items, items)


MEASURE = """
import sys
from pathlib import Path
from common.data.shards import read_shard

def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024

read_shard(Path(sys.argv[1]))
before = resident("VmRSS")
shard = read_shard(Path(sys.argv[2]))
opened, private = resident("VmRSS"), resident("RssAnon")
values = shard.items.sequences["audio"].values
total = float(values[:, ::64].sum())
print(opened - before, resident("VmRSS") - opened, resident("RssAnon") - private)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_a_large_shard_takes_memory_only_where_it_is_read(path: Path, tmp_path: Path) -> None:
    if "RssAnon" not in Path("/proc/self/status").read_text():
        pytest.skip("this kernel does not tell private memory from mapped")
    small, count, width = tmp_path / "small.safetensors", 50, 1 << 10
    write(small, dataset())
    labels, ids = np.ones(count, np.float32), np.array([str(each) for each in range(count)])
    step = 1 << 10
    audio = sequences(
        np.ones((count * step, width), np.float32), [i * step for i in range(count)], [step] * count
    )
    items = MultimodalDataset(ids, ids, labels, {"audio": audio})
    write_shard(path, items, info_for(items))
    megabytes = path.stat().st_size / (1 << 20)
    assert megabytes > 190
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", MEASURE, str(small), str(path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        command, env=environment, cwd=root, check=True, capture_output=True, text=True
    )
    opened, touched, private = map(float, done.stdout.split())
    assert opened < 40
    assert touched > 0.7 * megabytes  # so that the measure can tell
    assert private < 40


# Damage -----------------------------------------------------------------------------------------


def test_every_flipped_byte_is_refused(path: Path) -> None:
    items = dataset(Task.multilabel)
    write(path, items, Task.multilabel)
    content = path.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    assert len(content) > 8 + header > 8 + len(content[8 : 8 + header].rstrip(b" ")) > 8  # padding
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= (0x01, 0x20, 0x80, 0xFF)[place % 4]
        path.write_bytes(damaged)
        assert "shard" in refused(path), place
    path.write_bytes(content)
    assert_same(read_shard(path).items, items)


def test_every_truncation_is_refused(path: Path) -> None:
    write(path, dataset())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert "shard" in refused(path), length


@pytest.mark.parametrize("more", [b"\0", b" ", b"\n", b"\0" * 4096, b"x" * 5_000_000])
def test_appended_bytes_are_refused(path: Path, more: bytes) -> None:
    write(path, dataset())
    path.write_bytes(path.read_bytes() + more)
    assert "damaged" in refused(path)


def test_two_files_in_one_are_refused(path: Path) -> None:
    write(path, dataset())
    path.write_bytes(path.read_bytes() * 2)
    refused(path)


def test_damage_far_into_a_large_file_is_refused(path: Path) -> None:
    audio = sequences(np.zeros((3 << 20, 1), np.float32), [0, 1, 2], [1 << 20, 1 << 20, 3 << 18])
    write(path, replace(dataset(), sequences={"audio": audio}))
    with path.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        file.write(b"\1")
    assert "damaged" in refused(path)


def test_swapped_bytes_are_refused(path: Path) -> None:
    write(path, dataset())
    content = bytearray(path.read_bytes())
    content[-1], content[-9] = content[-9], content[-1]
    path.write_bytes(content)
    assert "damaged" in refused(path)


@pytest.mark.parametrize("seal", ["0" * 64, "f" * 64])
def test_a_blank_or_another_seal_is_refused(path: Path, seal: str) -> None:
    found = write(path, dataset()).seal
    path.write_bytes(path.read_bytes().replace(found.encode(), seal.encode()))
    assert "damaged" in refused(path)


# Not a shard ------------------------------------------------------------------------------------


def length(size: int) -> bytes:
    return struct.pack("<Q", size)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"label,audio\n1,2\n" * 99, id="text"),
        pytest.param(b"\xff\xfe" * 999, id="binary"),
        pytest.param(length(2**63), id="length-2**63"),
        pytest.param(length(2**64 - 1) + b"{}" * 99, id="length-2**64-1"),
        pytest.param(length(0) + b"{}", id="length-0"),
        pytest.param(length(2) + b"{}", id="empty-header"),
        pytest.param(length(99) + b"{}", id="short-header"),
        pytest.param(length(2) + b"[]" + b"\0" * 99, id="list-header"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", id="lfs"),
        pytest.param(b"\0" * 4096, id="zeros"),
    ],
)
def test_what_is_not_a_shard_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "not a shard" in refused(path)
    assert "utmp-prepare" in refused(path)


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "site.npz", label=np.ones(3), audio=np.ones((3, 2, 2)))
    assert "not a shard" in refused(tmp_path / "site.npz")
    for metadata in (None, {"format": "pt"}, {KEY: "{}"}, {KEY: '{"version": 1}'}):
        save_file({"encoder.weight": np.ones((2, 2), np.float32)}, path, metadata=metadata)
        assert "not a shard" in refused(path)


def test_a_folder_and_a_missing_file_are_refused(path: Path) -> None:
    assert "No such file" in refused(path)
    path.mkdir()
    assert "is a folder" in refused(path)
    assert "Not a directory" in refused(Path(__file__) / "audio-0.safetensors")


def test_a_header_larger_than_any_shard_s_is_refused(path: Path) -> None:
    path.write_bytes(length(1 << 25) + b" " * (1 << 25))
    assert "not a shard" in refused(path)


def test_a_path_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        read_shard(tmp_path / "a\nb")
    assert len(str(error.value).splitlines()) == 1


# A right seal on what is wrong ------------------------------------------------------------------


def forge(path: Path, change: Change, task: Task = Task.regression) -> None:
    """Write a shard, change what it holds and seal it again."""
    write(path, dataset(task), task)
    arrays: Arrays = {name: np.array(array) for name, array in load_file(path).items()}
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header: Header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
    header["seal"] = "0" * 64
    replaced = change(arrays, header)
    text = replaced if isinstance(replaced, str) else json.dumps(header)
    save_file(arrays, path, metadata={KEY: text})
    seal(path)


def put(name: str, index: Any, value: Any) -> Change:
    return lambda arrays, _: arrays[name].__setitem__(index, value)


def swap(name: str, array: Any) -> Change:
    return lambda arrays, _: arrays.__setitem__(name, np.asarray(array))


def cast_to(name: str, dtype: Any) -> Change:
    return lambda arrays, _: arrays.__setitem__(name, arrays[name].astype(dtype))


def drop(name: str) -> Change:
    return lambda arrays, _: arrays.__delitem__(name)


def say(**values: Any) -> Change:
    return lambda _, header: header.update(values)


def unsay(name: str) -> Change:
    return lambda _, header: header.__delitem__(name)


def rename(modality: str, name: str) -> Change:
    def change(arrays: Arrays, header: Header) -> None:
        for part in ("values", "starts", "lengths"):
            arrays[f"{name}.{part}"] = arrays.pop(f"{modality}.{part}")
        header["modalities"] = [name if e == modality else e for e in header["modalities"]]

    return change


TOP, LOW = 2**63 - 1, -(2**63)
ARRAYS = ["labels", "ids", "ids.ends", "groups", "groups.ends"]
ARRAYS += [f"vision.{part}" for part in ("values", "starts", "lengths")]

FORGED: dict[str, tuple[Change, str]] = {
    "start-negative": (put("vision.starts", 0, -1), "vision"),
    "start-least": (put("vision.starts", 0, LOW), "vision"),
    "start-beyond": (put("vision.starts", 0, 7), "vision"),
    "start-beyond-of-none": (put("vision.starts", 2, 7), "vision"),
    "start-greatest": (put("vision.starts", 0, TOP), "vision"),
    "length-negative": (put("vision.lengths", 2, -1), "vision"),
    "length-least": (put("vision.lengths", 0, LOW), "vision"),
    "length-beyond": (put("vision.lengths", 1, 6), "vision"),
    "length-greatest": (put("vision.lengths", 1, TOP), "vision"),
    "start-and-length-overflow": (
        lambda a, _: (put("vision.starts", 1, 6)(a, _), put("vision.lengths", 1, TOP - 2)(a, _)),
        "vision",
    ),
    "start-least-length-greatest": (
        lambda a, _: (put("vision.starts", 1, LOW)(a, _), put("vision.lengths", 1, TOP)(a, _)),
        "vision",
    ),
    "starts-too-few": (swap("vision.starts", [0, 0]), "vision"),
    "lengths-too-many": (swap("vision.lengths", [1, 1, 1, 1]), "vision"),
    "items-too-few": (
        lambda a, _: (swap("vision.starts", [0, 1])(a, _), swap("vision.lengths", [1, 2])(a, _)),
        "vision",
    ),
    "items-too-many": (
        lambda a, _: (swap("vision.starts", [0] * 4)(a, _), swap("vision.lengths", [1] * 4)(a, _)),
        "vision",
    ),
    "starts-i4": (cast_to("vision.starts", "i4"), "vision.starts"),
    "lengths-u8": (cast_to("vision.lengths", "u8"), "vision.lengths"),
    "lengths-f8": (cast_to("vision.lengths", "f8"), "vision.lengths"),
    "starts-2d": (swap("vision.starts", [[0], [1], [0]]), "vision.starts"),
    "starts-0d": (swap("vision.starts", np.int64(0)), "vision.starts"),
    "values-f8": (cast_to("vision.values", "f8"), "vision.values"),
    "values-i4": (cast_to("vision.values", "i4"), "vision.values"),
    "values-bool": (cast_to("vision.values", "?"), "vision.values"),
    "values-1d": (swap("vision.values", np.ones(6, "f4")), "vision.values"),
    "values-3d": (swap("vision.values", np.ones((6, 2, 1), "f4")), "vision.values"),
    "values-no-width": (swap("vision.values", np.ones((6, 0), "f4")), "vision"),
    "values-no-rows": (swap("vision.values", np.ones((0, 2), "f4")), "vision"),
    "table-of-different-lengths": (put("audio_2.lengths", 1, 1), "audio_2"),
    "labels-nan": (put("labels", 1, np.nan), "label"),
    "labels-infinite": (put("labels", 1, -np.inf), "label"),
    "labels-f8": (cast_to("labels", "f8"), "labels"),
    "labels-classes": (cast_to("labels", "i8"), "labels"),
    "labels-2d": (swap("labels", np.ones((3, 1), "f4")), "labels"),
    "labels-0d": (swap("labels", np.float32(1)), "labels"),
    "labels-none": (swap("labels", np.ones(0, "f4")), "labels"),
    "labels-too-few": (swap("labels", np.ones(2, "f4")), "ids"),
    "labels-too-many": (swap("labels", np.ones(4, "f4")), "ids"),
    "ids-not-text": (put("ids", 0, 0xFF), "ids"),
    "ids-split-a-letter": (put("ids.ends", 0, 9), "ids"),
    "ids-i8": (cast_to("ids", "i8"), "ids"),
    "ids-2d": (lambda a, _: swap("ids", a["ids"][None])(a, _), "ids"),
    "groups-surrogate": (
        lambda a, _: put("groups", slice(0, 3), [0xED, 0xA0, 0x80])(a, _),
        "groups",
    ),
    "ends-falling": (swap("groups.ends", [14, 7, 16]), "groups"),
    "ends-negative": (swap("groups.ends", [-2, 14, 16]), "groups"),
    "ends-short": (swap("groups.ends", [7, 14, 15]), "groups"),
    "ends-beyond": (swap("groups.ends", [7, 14, 17]), "groups"),
    "ends-beyond-and-back": (swap("groups.ends", [7, 99, 16]), "groups"),
    "ends-greatest": (swap("groups.ends", [7, 14, TOP]), "groups"),
    "ends-wrap-around": (swap("groups.ends", [TOP, -5, 16]), "groups"),
    "ends-too-few": (swap("groups.ends", [7, 16]), "groups"),
    "ends-none": (swap("groups.ends", np.empty(0, "i8")), "groups"),
    "ends-i4": (cast_to("groups.ends", "i4"), "groups.ends"),
    "version-0": (say(version=0), "version 0"),
    "version-2": (say(version=VERSION + 1), f"version {VERSION + 1}"),
    "version-text": (say(version="1"), "version 1"),
    "version-none": (unsay("version"), "version None"),
    "task-unknown": (say(task="translation"), "translation"),
    "task-none": (say(task=None), "None"),
    "task-list": (say(task=["regression"]), "regression"),
    "task-missing": (unsay("task"), "task"),
    "task-other": (say(task="multilabel"), "labels"),
    "task-classes": (say(task="classification"), "labels"),
    "name-missing": (unsay("name"), "name"),
    "outputs-text": (say(outputs="many"), "many"),
    "outputs-none": (say(outputs=None), "header"),
    "outputs-list": (say(outputs=[1]), "header"),
    "outputs-nan": (say(outputs=float("nan")), "header"),
    "outputs-infinite": (say(outputs=float("inf")), "header"),
    "outputs-missing": (unsay("outputs"), "outputs"),
    "outputs-0": (say(outputs=0), "output"),
    "outputs-negative": (say(outputs=-1), "output"),
    "outputs-of-regression": (say(outputs=7), "output"),
    "modalities-none": (say(modalities=[]), "no modality"),
    "modalities-null": (say(modalities=None), "header"),
    "modalities-number": (say(modalities=3), "header"),
    "modalities-text": (say(modalities="vision"), "lacks"),
    "modalities-missing": (unsay("modalities"), "modalities"),
    "modality-not-there": (say(modalities=["vision", "smell"]), "smell"),
    "modality-two-words": (rename("vision", "two words"), "two words"),
    "modality-a-line": (rename("vision", "a\nb"), "modality"),
    "modality-dotted": (rename("vision", "a.b"), "a.b"),
    "modality-number": (rename("vision", "3d"), "3d"),
    "modality-empty": (rename("vision", ""), "modality"),
    "modality-default": (rename("vision", "default"), "default"),
    "modality-of-torch": (rename("vision", "forward"), "forward"),
    "label-names-number": (say(label_names=4), "header"),
    "tabular-null": (say(tabular=None), "header"),
}
FORGED |= {f"no-{name}": (drop(name), f"lacks {name}") for name in ARRAYS}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_shard_is_refused_by_name(path: Path, what: str) -> None:
    change, word = FORGED[what]
    forge(path, change)
    message = refused(path).replace(str(path), "")
    assert word in message
    assert "utmp-prepare" in message
    assert "damaged" not in message


@pytest.mark.parametrize(
    ("task", "change", "word"),
    [
        (Task.classification, put("labels", 0, 3), "class"),
        (Task.classification, put("labels", 0, -1), "class"),
        (Task.classification, put("labels", 0, TOP), "class"),
        (Task.classification, say(outputs=2), "class"),
        (Task.classification, say(outputs=0), "class"),
        (Task.classification, cast_to("labels", "i4"), "labels"),
        (Task.classification, cast_to("labels", "f4"), "labels"),
        (Task.classification, say(task="regression"), "labels"),
        (Task.multilabel, put("labels", (1, 1), np.nan), "label"),
        (Task.multilabel, say(outputs=3), "labels"),
        (Task.multilabel, say(outputs=5), "labels"),
        (Task.multilabel, say(task="regression"), "labels"),
        (Task.multilabel, cast_to("labels", "i8"), "labels"),
        (Task.multilabel, swap("labels", np.ones(3, "f4")), "labels"),
        (Task.multilabel, swap("labels", np.ones((3, 4, 1), "f4")), "labels"),
        (
            Task.multilabel,
            lambda a, h: (swap("labels", np.ones((3, 0), "f4"))(a, h), say(outputs=0)(a, h)),
            "labels",
        ),
    ],
)
def test_forged_classes_and_labels_are_refused(
    path: Path, task: Task, change: Change, word: str
) -> None:
    forge(path, change, task)
    assert word in refused(path).replace(str(path), "")


SEALED = f'"seal": "{"0" * 64}"'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"[{{{SEALED}}}]", id="list"),
        pytest.param(f"[{SEALED[:6]}]" + SEALED, id="broken"),
        pytest.param(f"{{{SEALED}", id="open"),
        pytest.param(f"{{{SEALED}, {SEALED}}}", id="two-seals"),
        pytest.param(f'{{{SEALED}, "version": {"[" * 50_000}{"]" * 50_000}}}', id="deep"),
        pytest.param(f'{{{SEALED}, "version": {"9" * 5000}}}', id="long-number"),
        pytest.param(f"{{{SEALED}}}", id="nothing-else"),
    ],
)
def test_a_forged_header_is_refused(path: Path, text: str) -> None:
    forge(path, lambda arrays, header: text)
    refused(path)


def test_a_seal_elsewhere_than_in_the_header_s_key_is_refused(path: Path) -> None:
    write(path, dataset())
    for metadata in ({"other": f"{{{SEALED}}}"}, {KEY: "{}", "other": f"{{{SEALED}}}"}):
        save_file(load_file(path), path.with_name("x.safetensors"), metadata=metadata)
        seal(path.with_name("x.safetensors"))
        refused(path.with_name("x.safetensors"))


def test_features_of_another_kind_of_number_are_refused(path: Path) -> None:
    write(path, dataset())
    arrays = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    header = json.dumps({"version": VERSION, "seal": "0" * 64, **vars(info_for(dataset()))})
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.complex64):
        other = path.with_name("other.safetensors")
        changed = arrays | {"vision.values": arrays["vision.values"].to(dtype)}
        save_tensors(changed, other, metadata={KEY: header})
        seal(other)
        assert "vision.values" in refused(other)


LIMITED = """
import resource, sys
from pathlib import Path
from common.data.shards import read_shard
from common.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
try:
    read_shard(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_one_long_name_among_many_does_not_take_all_memory(path: Path) -> None:
    """A file of 5 MB must not ask for 400 GB."""
    count = 100_000

    def change(arrays: Arrays, header: Header) -> None:
        arrays["labels"] = np.ones(count, np.float32)
        for name in ("ids", "groups"):
            arrays[name] = np.full(1_000_000, ord("a"), np.uint8)
            arrays[f"{name}.ends"] = np.full(count, 1_000_000)
        for name in header["modalities"]:
            arrays[f"{name}.starts"] = np.zeros(count, np.int64)
            arrays[f"{name}.lengths"] = np.ones(count, np.int64)

    forge(path, change)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert str(path) in done.stdout


@pytest.mark.parametrize("what", ["ids", "groups"])
@pytest.mark.parametrize("letter", ["a", "🎧"])
def test_whatever_is_written_can_be_read(path: Path, what: str, letter: str) -> None:
    """A name that is too long for a reader is refused by the writer, and nothing is left."""
    for size in (1000, 5000, 100_000):
        items = replace(dataset(), **{what: np.array(["x", letter * size, "y"])})
        try:
            write_shard(path, items, info_for(items))
        except UserError as error:
            assert what in str(error)
            assert len(str(error).splitlines()) == 1
            assert not path.exists()
        else:
            assert_same(read_shard(path).items, items)
            path.unlink()
