"""Shards: what is written is read, whole or in parts; what was damaged or forged is refused."""

import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import assert_same, assert_same_sequences, make_items, refusal, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from common.data.dataset import MultimodalDataset, Sequences, concatenate
from common.data.shards import (
    VERSION,
    Shard,
    ShardInfo,
    ShardStream,
    info_of,
    read_shard,
    write_shard,
)
from common.seal import seal
from common.task import Task

KEY = "ha-fedformer"
Arrays = dict[str, Any]
Header = dict[str, Any]


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


def one_modality(audio: Sequences) -> MultimodalDataset:
    return make_items({"audio": audio})


LABELS = {
    # No float32 holds the last.
    Task.regression: np.array([0.5, -3, 1e9 + 1e-6]),
    Task.classification: np.array([2, 0, 1]),
    Task.multilabel: np.array([[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]], dtype=np.float32),
}
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 4}


def dataset(task: Task = Task.regression) -> MultimodalDataset:
    """Three items: ragged and partly shared, one missing, and a table; in no alphabetical order."""
    drawn = {
        "vision": sequences(rows(9, 2), [1, 2, 0], [4, 5, 0]),
        "audio_2": sequences(rows(6, 3), [0, 2, 4], [2, 2, 2], tabular=True),
        "language": sequences(rows(4, 1), [3, 0, 0], [1, 3, 2], dtype="f2"),
    }
    names = ("joy", "anger", "größe", "fear") if task is Task.multilabel else ()
    ids = ["clip/1", "Grüße 你好 🎧", ""]
    return make_items(drawn, LABELS[task], ids, ["speaker", "speaker", "ü"], names)


def info_for(items: MultimodalDataset, task: Task = Task.regression) -> ShardInfo:
    return info_of(items, "validation", task, OUTPUTS[task])


def write(path: Path, items: MultimodalDataset, task: Task = Task.regression) -> Shard:
    seal = write_shard(path, items, info_for(items, task))
    shard = read_shard(path)
    assert shard.seal == seal
    return shard


Part = tuple[np.ndarray, dict[str, Sequences]]


def parts_of(path: Path, size: int) -> list[Part]:
    stream = ShardStream.open(path)
    starts = range(0, stream.count, size)
    return [stream.part(first, min(first + size, stream.count)) for first in starts]


def assert_joined(parts: list[Part], items: MultimodalDataset) -> None:
    assert [name for ids, _ in parts for name in ids.tolist()] == items.ids.tolist()
    for name, expected in items.sequences.items():
        assert_same_sequences(concatenate([each[name] for _, each in parts]), expected)
    for _, each in parts:
        assert list(each) == list(items.sequences)


def refused(path: Path, read: Callable[[Path], object] = read_shard) -> str:
    """The one line with which a file is refused, without the file's name."""
    message = refusal(lambda: read(path), path)
    assert len(message) < len(str(path)) + 400
    return message.replace(str(path), "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audio-0.safetensors"


@pytest.mark.parametrize("task", list(Task))
def test_items_come_back_to_the_bit(path: Path, task: Task) -> None:
    items = dataset(task)
    shard = write(path, items, task)
    assert_same(shard.items, items)
    expected = ("validation", ("vision", "audio_2", "language"), task, OUTPUTS[task])
    assert shard.info == ShardInfo(*expected, items.label_names, ("audio_2",))
    assert ShardStream.open(path).info == shard.info


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def made(draw: st.DrawFn) -> tuple[MultimodalDataset, Task]:
    """Items of any bits, NaN and infinities among them."""
    task = draw(st.sampled_from(list(Task)))
    items = draw(st.integers(1, 5))
    texts = st.lists(names, min_size=items, max_size=items)
    drawn = {}
    for name in draw(st.lists(st.sampled_from(["b", "a_1", "ü", "z"]), min_size=1, unique=True)):
        width, count = draw(st.integers(1, 3)), draw(st.integers(0, 7))
        dtype, bits = draw(st.sampled_from([("f2", "u2"), ("f4", "u4")]))
        values = draw(arrays(bits, (count, width))).view(dtype)
        starts = draw(st.lists(st.integers(0, count), min_size=items, max_size=items))
        lengths = [draw(st.integers(0, count - start)) for start in starts]
        drawn[name] = sequences(values, starts, lengths, dtype=dtype)
    labels = LABELS[task][draw(st.lists(st.integers(0, 2), min_size=items, max_size=items))]
    ids, groups = (np.array(draw(texts), dtype=np.str_) for _ in range(2))
    return MultimodalDataset(ids, groups, labels, drawn), task


@settings(max_examples=150, deadline=None)
@given(made(), st.integers(1, 6))
def test_any_items_come_back_to_the_bit_whole_and_in_parts(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[MultimodalDataset, Task], size: int
) -> None:
    items, task = given
    folder = tmp_path_factory.mktemp("shard")
    one, two = (folder / f"{name}.safetensors" for name in ("one", "two"))
    again = write(one, items, task).items
    assert_same(again, items)
    assert_joined(parts_of(one, size), items)
    write(two, again, task)
    assert one.read_bytes() == two.read_bytes()


def test_a_shard_is_a_plain_safetensors_file(path: Path) -> None:
    write(path, dataset())
    arrays = load_file(path)
    parts = [f"{name}.{part}" for name in dataset().sequences for part in PARTS]
    assert set(arrays) == {"labels", "ids", "ids.ends", "groups", "groups.ends", *parts}
    assert arrays["ids"].tobytes().decode() == "clip/1Grüße 你好 🎧"
    assert arrays["ids.ends"].tolist() == [6, 25, 25]
    assert arrays["groups"].tobytes().decode() == "speakerspeakerü"
    assert arrays["groups.ends"].tolist() == [7, 14, 16]
    assert arrays["vision.values"].tolist() == rows(9, 2)[1:7].tolist()
    assert arrays["vision.starts"].tolist() == [0, 1, 0]
    assert arrays["vision.lengths"].tolist() == [4, 5, 0]
    assert len(arrays["language.values"]) == 4  # two windows share rows 0 and 1


def test_names_cannot_pass_for_labels_or_seals(path: Path) -> None:
    audio = sequences(rows(3, 1), [0, 1, 2], [1, 1, 1])
    text = '\\"seal\\": \\"' + "0" * 64 + '\\", "seal": "' + "1" * 64 + '"'
    items = replace(
        dataset(Task.multilabel),
        ids=np.array([text, "b", "c"]),
        sequences={"labels": audio, "ids": audio, "groups": audio},
        label_names=(text, "seal", "0" * 64, '"'),
    )
    assert_same(write(path, items, Task.multilabel).items, items)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_are_stored_as_asked(path: Path, dtype: type) -> None:
    items = dataset()
    write_shard(path, items, info_for(items), np.dtype(dtype))
    for name, stored in read_shard(path).items.sequences.items():
        expected = items.sequences[name]
        assert_same_sequences(stored, replace(expected, values=expected.values.astype(dtype)))


@pytest.mark.parametrize("value", [65520, -65520, -3e38])
def test_what_float16_cannot_hold_is_refused_by_the_modality(path: Path, value: float) -> None:
    vision = sequences([[0, 1], [np.nan, value], [np.inf, 2]], [0, 1, 2], [1, 1, 1])
    items = replace(dataset(), sequences={"vision": vision})
    half = np.dtype(np.float16)
    words = f"vision has values up to {abs(value):.3g}", "float16", "float32"
    refusal(lambda: write_shard(path, items, info_for(items), half), *words)
    assert not path.exists()
    values = [[65504, -65504], [np.inf, -np.inf], [np.nan, 0], [value, 1e9]]  # the last unused
    held = one_modality(sequences(values, [0, 1, 2], [1, 1, 1]))
    write_shard(path, held, info_for(held), half)
    stored = read_shard(path).items.sequences["audio"].values
    np.testing.assert_array_equal(stored, np.float16(values[:3]))


# In memory --------------------------------------------------------------------------------------


def test_writing_into_what_was_read_does_not_change_the_file(path: Path) -> None:
    items = dataset()
    shard = write(path, items)
    before = path.read_bytes()
    for each in (shard.items.sequences, *(part for _, part in parts_of(path, 2))):
        for array in each.values():
            array.values[:] = 99
            array.starts[:] = 0
    shard.items.labels[:] = 99
    assert path.read_bytes() == before
    assert_same(read_shard(path).items, items)


def test_parts_are_taken_in_any_order_and_outlive_the_file(path: Path) -> None:
    items = dataset()
    write(path, items)
    stream = ShardStream.open(path)
    spans = ((2, 3), (0, 1), (1, 3), (0, 3))
    parts = [stream.part(*span) for span in spans]
    path.unlink()
    for span, part in zip(spans, parts, strict=True):
        assert_joined([part], items.select(np.arange(*span)))
    refusal(lambda: stream.part(0, 1), f"shard {path} does not exist")


@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_parts_hold_shared_rows_once_and_few_between_items_far_apart(path: Path, size: int) -> None:
    starts = np.maximum(np.arange(50) - 9, 0)
    shared = one_modality(Sequences(rows(50, 3), starts, np.arange(50) - starts + 1))
    write(path, shared)
    assert_joined(parts_of(path, size), shared)
    for ids, each in parts_of(path, size):
        assert len(each["audio"].values) <= len(ids) + 9
    starts = np.random.default_rng(0).permutation(64) * 5
    apart = one_modality(Sequences(rows(320, 2), starts, np.arange(64) % 6))
    write(path, apart)
    assert_joined(parts_of(path, size), apart)
    for _, each in parts_of(path, size):
        assert len(each["audio"].values) <= 4 * each["audio"].lengths.sum()


MEASURE = """
from common.data.shards import ShardStream, read_shard

def read_parts(path, size):
    stream = ShardStream.open(path)
    for first in range(0, stream.count, size):
        stream.part(first, first + size)[1]["audio"].values[:, ::64].sum()

small, large = map(Path, sys.argv[1:])
read_parts(small, 1)
before = memory("VmHWM")
read_parts(large, 16)
parts, before = memory("VmHWM") - before, memory("VmRSS")
shard = read_shard(large)
opened, private = memory("VmRSS"), memory("RssAnon")
shard.items.sequences["audio"].values[:, ::64].sum()
print(parts, opened - before, memory("VmRSS") - opened, memory("RssAnon") - private)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or "RssAnon" not in Path("/proc/self/status").read_text(),
    reason="this system does not tell private memory from mapped",
)
def test_a_large_shard_takes_memory_only_where_it_is_read(path: Path, tmp_path: Path) -> None:
    small, count, step, width = tmp_path / "small.safetensors", 320, 128, 1 << 10
    write(small, one_modality(sequences(np.ones((1, 1)), [0], [1])))
    starts = np.arange(count) * step
    starts[count // 2 :] = np.random.default_rng(0).permutation(starts[count // 2 :])
    values = np.ones((count * step, width), np.float32)
    items = one_modality(Sequences(values, starts, np.full(count, step)))
    write_shard(path, items, info_for(items))
    megabytes = path.stat().st_size / (1 << 20)
    assert megabytes > 150
    parts, opened, touched, private = map(float, run_python(MEASURE, small, path).split())
    assert parts < 60  # a part is 8 MB, and a few of them are there at a time
    assert opened < 40
    assert touched > 0.7 * megabytes  # so that the measure can tell
    assert private < 40


# Damage; `tests/common/test_seal.py` flips every byte --------------------------------------------

OTHER_FILES = (
    b"",
    b"label,audio\n1,2\n" * 99,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    b"\0" * 4096,
    struct.pack("<Q", 1 << 25) + b" " * (1 << 25),
    struct.pack("<Q", 2**64 - 1) + b"{}" * 99,
    struct.pack("<Q", 2) + b"[]" + b"\0" * 99,
)


@pytest.mark.parametrize("read", [read_shard, ShardStream.open])
def test_what_is_damaged_or_not_a_shard_is_refused(
    path: Path, read: Callable[[Path], object]
) -> None:
    write(path, dataset())
    whole = path.read_bytes()
    flipped = whole[:-20] + bytes([whole[-20] ^ 4]) + whole[-19:]
    for content in (flipped, whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        assert "is damaged" in refused(path, read)
    for content in (whole[:99], *OTHER_FILES):
        path.write_bytes(content)
        assert re.search("is not a shard: .* utmp-prepare", refused(path, read))
    for metadata in (None, {"format": "pt"}, {KEY: "{}"}, {KEY: '{"version": 1}'}):
        save_file({"encoder.weight": np.ones((2, 2), np.float32)}, path, metadata=metadata)
        assert "not a shard: it has no seal" in refused(path, read)
    assert "is a folder" in refused(path.parent, read)
    assert "does not exist" in refused(path.parent / "none", read)
    assert "cannot be read: Not a directory" in refused(path / "audio-0.safetensors", read)


# A right seal on what is wrong ------------------------------------------------------------------

MISSING: Any = ...
TOP, LOW = 2**63 - 1, -(2**63)
PARTS = ("values", "starts", "lengths")
SEAL = f'"seal": "{"0" * 64}"'


def forge(
    path: Path,
    arrays: Arrays,
    header: Header | None = None,
    text: str | None = None,
    task: Task = Task.regression,
) -> None:
    """Write a shard, replace or take out some of what it holds, and seal it again."""
    write(path, dataset(task), task)
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    said: Header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][KEY])
    said |= {"seal": "0" * 64} | (header or {})
    text = text or json.dumps({key: value for key, value in said.items() if value is not MISSING})
    held = {name: np.array(array) for name, array in load_file(path).items()} | arrays
    whole = {name: np.asarray(array) for name, array in held.items() if array is not MISSING}
    save_file(whole, path, metadata={KEY: text})
    seal(path)


def array(values: Any, dtype: str) -> np.ndarray:
    return np.asarray(values, dtype=dtype)


IDS = "clip/1Grüße 你好 🎧".encode()
LONG = np.full(50_000, 97, np.uint8)
STARTS, LENGTHS, ENDS = [0, 1, 0], [4, 5, 0], [6, 25, 25]  # of vision and the ids, in truth
FEATURES = ((6,), (6, 2, 1), (6, 0), (0, 2))
#: Arrays that are not as they should be.
ARRAYS: dict[str, list[Any]] = {
    "vision.starts": [[-1, 1, 0], [7, 1, 0], [0, 1, 7], [TOP, 1, 0], [0, 0], [[0], [1], [0]], 0],
    "vision.lengths": [[4, 5, -1], [4, 6, 0], [4, TOP, 0], [1, 1, 1, 1], array(LENGTHS, "f8")],
    "audio_2.lengths": [[2, 1, 2]],  # a table has the same number of steps everywhere
    "vision.values": [*(np.ones(shape, "f4") for shape in FEATURES)],
    "ids": [array([0xFF, *IDS[1:]], "u1"), LONG[:5], LONG[:25, None], array([*IDS], "i8")],
    "ids.ends": [[9, 25, 25], [25, 6, 25], [-2, 6, 25], [6, 20, 24], [6, 21, 21], [6, 26, TOP]],
}
ARRAYS["vision.values"] += [np.ones((6, 2), dtype) for dtype in ("f8", "?", "c8")]
ARRAYS["vision.starts"] += [array(STARTS, "i4")]
ARRAYS["ids.ends"] += [[TOP, LOW, 26], [6] * 4, array(ENDS, "i4")]
#: Values of the header.
SAID: dict[str, list[Any]] = {
    "version": [0, VERSION + 1, "1", None, MISSING],
    "name": [MISSING],
    "task": ["translation", ["regression"], MISSING],
    "outputs": ["many", None, float("nan"), float("inf"), 0, 7, MISSING],
    "modalities": [[], None, "vision", MISSING],
    "label_names": [4],
    "tabular": [None],
}


def one_at_a_time(arrays: dict[str, list[Any]]) -> Iterator[tuple[Arrays, Header, str]]:
    """Yield arrays of another kind or none, with the name by which they are refused."""
    for name, values in arrays.items():
        yield from (({name: value}, {}, name.partition(".")[0]) for value in values)
        yield {name: MISSING}, {}, f"lacks {name}"


def forgeries() -> Iterator[tuple[Arrays, Header, str]]:
    yield from one_at_a_time(ARRAYS)
    for starts, lengths in (
        ([0, 6, 0], [4, TOP - 2, 0]),
        ([0, LOW, 0], [4, TOP, 0]),
        ([0, 1], [1, 2]),
    ):
        yield {"vision.starts": starts, "vision.lengths": lengths}, {}, "vision"
    yield {"ids": LONG, "ids.ends": [6, 26, len(LONG)]}, {}, "ids"
    yield {"ids.ends": np.empty(0, "i8")}, {}, "no item"
    yield {}, {"modalities": ["vision", "smell"]}, "lacks smell"
    yield {"labels": np.ones((3, 0), "f4")}, {"task": "multilabel", "outputs": 0}, "outputs"
    for key, values in SAID.items():
        yield from (({}, {key: value}, key[:6]) for value in values)
    for name in ("two words", "a\nb", "a.b", "", "forward"):
        yield {}, {"modalities": [name]}, "modality"


@pytest.mark.parametrize(("arrays", "header", "word"), list(forgeries()))
def test_a_forged_shard_is_refused_by_name_whole_and_in_parts(
    path: Path, arrays: Arrays, header: Header, word: str
) -> None:
    forge(path, arrays, header)
    for read in (read_shard, lambda path: parts_of(path, 2), lambda path: parts_of(path, 3)):
        message = refused(path, read)
        assert word in message
        assert "utmp-prepare" in message
        assert "damaged" not in message


ONES = np.ones((3, 4), "f4")


def forged_labels() -> Iterator[tuple[Task, Arrays, Header, str]]:
    """Of labels and groups, at which a stream does not look."""
    numbers, classes, several = Task
    floats = [[1, np.nan, 1], [1, -np.inf, 1], [1, 1e39, 1], [[1], [1], [1]], 1, [], [1] * 4]
    labels = [*(array(value, "f8") for value in floats), array([1] * 3, "f2"), array([1] * 3, "i8")]
    groups = np.frombuffer(b"\xed\xa0\x80akerspeaker\xc3\xbc", np.uint8)  # a surrogate
    ends = [[14, 7, 16], [7, 16]]
    for case in one_at_a_time({"labels": labels, "groups": [groups], "groups.ends": ends}):
        yield numbers, *case
    for other in (classes, several):
        yield numbers, {}, {"task": other}, "label"
    yield classes, {}, {"task": numbers, "outputs": 1}, "label"
    for unknown in ([3, 0, 1], [-1, 0, 1]):
        yield classes, {"labels": unknown}, {}, "class"
    yield classes, {}, {"outputs": 2}, "class"
    yield classes, {"labels": array([2, 0, 1], "i4")}, {}, "label"
    nan = np.where(np.eye(3, 4), np.float32(np.nan), ONES)
    for odd in (nan, ONES.astype("i8"), ONES[:, 0].copy()):
        yield several, {"labels": odd}, {}, "label"
    yield several, {}, {"outputs": 5}, "label"


@pytest.mark.parametrize(("task", "arrays", "header", "word"), list(forged_labels()))
def test_forged_labels_and_groups_are_refused_where_they_are_read(
    path: Path, task: Task, arrays: Arrays, header: Header, word: str
) -> None:
    forge(path, arrays, header, task=task)
    assert word.removesuffix("s") in refused(path)
    assert_joined(parts_of(path, 2), dataset(task))


def test_numbers_of_shards_that_were_written_as_float32_are_read(path: Path) -> None:
    forge(path, {"labels": array([0.5, -3, 0.1], "f4")})
    labels = read_shard(path).items.labels
    assert (labels.dtype, labels.tolist()) == (np.float64, [0.5, -3, float(np.float32(0.1))])


@pytest.mark.parametrize("start", [3, 6])
def test_where_a_missing_item_begins_does_not_matter(path: Path, start: int) -> None:
    forge(path, {"vision.starts": [0, 1, start]})
    for size in (1, 3):
        assert_joined(parts_of(path, size), dataset())


@pytest.mark.parametrize("ends", [[-25, -19, -8], [-5, -2, 25], [6, 30, 25], [TOP, LOW, 26]])
@pytest.mark.parametrize("last", [2, 3])
def test_forged_ids_are_refused_by_a_part_that_reads_nothing_before(
    path: Path, ends: list[int], last: int
) -> None:
    forge(path, {"ids.ends": ends})
    refusal(lambda: ShardStream.open(path).part(1, last), "ids are not one")


@pytest.mark.parametrize(
    "text",
    [
        f"[{{{SEAL}}}]",
        f"{{{SEAL}",
        f'{{{SEAL}, "version": {"[" * 50_000}{"]" * 50_000}}}',
        f'{{{SEAL}, "version": {"9" * 5000}}}',
        f"{{{SEAL}}}",
    ],
    ids=["list", "open", "deep", "long number", "nothing else"],
)
def test_a_forged_header_is_refused(path: Path, text: str) -> None:
    forge(path, {}, text=text)
    refused(path)


def test_a_seal_elsewhere_or_twice_is_refused(path: Path) -> None:
    write(path, dataset())
    arrays = load_file(path)
    save_file(arrays, path, metadata={KEY: "{}", "other": f"{{{SEAL}}}"})
    seal(path)
    refused(path)
    save_file(arrays, path, metadata={KEY: f"{{{SEAL}, {SEAL}}}"})
    assert "has no seal" in refused(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_features_of_another_kind_of_number_are_refused(path: Path, dtype: torch.dtype) -> None:
    write(path, dataset())
    arrays = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    header = json.dumps({"version": VERSION, "seal": "0" * 64, **vars(info_for(dataset()))})
    arrays["vision.values"] = arrays["vision.values"].to(dtype)
    save_tensors(arrays, path, metadata={KEY: header})
    seal(path)
    assert "vision.values" in refused(path)


LIMITED = """
from common.data.shards import read_shard
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
try:
    read_shard(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_one_long_name_among_many_does_not_take_all_memory(path: Path) -> None:
    """A file of 5 MB must not ask for 400 GB."""
    count, texts = 100_000, np.full(1_000_000, ord("a"), np.uint8)
    arrays: Arrays = {"labels": np.ones(count, np.float32), "ids": texts, "groups": texts}
    arrays |= {f"{name}.ends": np.full(count, len(texts)) for name in ("ids", "groups")}
    for name in dataset().sequences:
        arrays[f"{name}.starts"] = np.zeros(count, np.int64)
        arrays[f"{name}.lengths"] = np.ones(count, np.int64)
    forge(path, arrays)
    assert str(path) in run_python(LIMITED, path)


@pytest.mark.parametrize("what", ["ids", "groups"])
def test_a_name_that_is_too_long_for_a_reader_is_refused_by_the_writer(
    path: Path, what: str
) -> None:
    short, long = (
        replace(dataset(), **{what: np.array(["x", "🎧" * letters, "y"])})
        for letters in (1000, 5000)
    )
    assert_same(write(path, short).items, short)
    path.unlink()
    words = f"{what} are up to 20000 bytes long"
    refusal(lambda: write_shard(path, long, info_for(long)), words)
    assert not path.exists()
