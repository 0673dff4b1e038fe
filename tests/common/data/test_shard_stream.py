"""A shard read in parts is the shard, in memory that does not grow; what is forged is refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.dataset import MultimodalDataset, Sequences
from common.data.shard_stream import ShardStream
from common.data.shards import read_shard, write_shard
from common.errors import UserError
from common.task import Task
from tests.common.data.test_shards import (
    FORGED,
    TOP,
    Change,
    dataset,
    forge,
    info_for,
    made,
    put,
    rows,
    sequences,
    swap,
    write,
)

#: A part: ids, and modality to sequences.
Part = tuple[np.ndarray, dict[str, Sequences]]


def parts_of(path: Path, size: int) -> list[Part]:
    stream = ShardStream.open(path)
    return [
        stream.part(first, min(first + size, stream.count))
        for first in range(0, stream.count, size)
    ]


def assert_joined(parts: list[Part], items: MultimodalDataset) -> None:
    """Equal to the bit, item by item."""
    assert [name for ids, _ in parts for name in ids.tolist()] == items.ids.tolist()
    for name, expected in items.sequences.items():
        found = [
            (each[name], item) for ids, each in parts for item in range(len(ids)) if name in each
        ]
        assert len(found) == len(expected)
        for number, (each, item) in enumerate(found):
            assert each.tabular == expected.tabular
            assert each.values.dtype == expected.values.dtype
            assert each[item].shape == expected[number].shape
            assert each[item].tobytes() == expected[number].tobytes()
    for _, each in parts:
        assert list(each) == list(items.sequences)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audio-0.safetensors"


# Parts of any size ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(made(), st.integers(1, 6))
def test_parts_of_any_size_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, given: tuple[MultimodalDataset, Task], size: int
) -> None:
    items, task = given
    path = tmp_path_factory.mktemp("shard") / "one.safetensors"
    write_shard(path, items, info_for(items, task))
    assert_joined(parts_of(path, size), read_shard(path).items)


@pytest.mark.parametrize("size", [1, 2, 3, 99])
@pytest.mark.parametrize("task", list(Task))
def test_shared_missing_and_tabular_items(path: Path, task: Task, size: int) -> None:
    items = dataset(task)
    write(path, items, task)
    stream = ShardStream.open(path)
    assert stream.count == 3
    assert stream.info == info_for(items, task)
    assert_joined(parts_of(path, size), items)


def test_parts_may_be_taken_in_any_order(path: Path) -> None:
    items = dataset()
    write(path, items)
    stream = ShardStream.open(path)
    for first, last in ((2, 3), (0, 1), (1, 3), (0, 3)):
        index = np.arange(first, last)
        assert_joined([stream.part(first, last)], items.select(index))


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_context_is_shared_across_parts(path: Path, size: int) -> None:
    count = 50
    starts = [max(item - 9, 0) for item in range(count)]
    lengths = [item - start + 1 for item, start in enumerate(starts)]
    audio = sequences(rows(count, 3), starts, lengths)
    names = np.array([str(item) for item in range(count)])
    items = MultimodalDataset(names, names, np.ones(count, np.float32), {"audio": audio})
    write(path, items)
    parts = parts_of(path, size)
    assert_joined(parts, items)
    # Rows that items share are there once.
    for ids, each in parts:
        assert len(each["audio"].values) <= len(ids) + 9


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_rows_between_items_far_apart_are_not_read(path: Path, size: int) -> None:
    count, step = 64, 5
    order = np.random.default_rng(0).permutation(count)
    starts = (order * step).tolist()
    lengths = (np.arange(count) % (step + 1)).tolist()
    audio = sequences(rows(count * step, 2), starts, lengths, dtype="f2")
    names = np.array([f"ü{item}" for item in range(count)])
    items = MultimodalDataset(names, names, np.ones(count, np.float32), {"audio": audio})
    write(path, items)
    parts = parts_of(path, size)
    assert_joined(parts, items)
    for _, each in parts:
        assert len(each["audio"].values) <= 4 * each["audio"].lengths.sum()


def test_nothing_of_the_file_is_held_open(path: Path) -> None:
    write(path, dataset())
    parts = parts_of(path, 2)
    path.unlink()
    assert_joined(parts, dataset())


def test_what_is_read_may_be_written_into(path: Path) -> None:
    write(path, dataset())
    before = path.read_bytes()
    for _, each in parts_of(path, 2):
        for found in each.values():
            found.values[:] = 99
    assert path.read_bytes() == before


# Memory -----------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from pathlib import Path
from common.data.shard_stream import ShardStream

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def read(path, size):
    stream = ShardStream.open(Path(path))
    return sum(
        float(stream.part(first, min(first + size, stream.count))[1]["audio"].values[:, ::64].sum())
        for first in range(0, stream.count, size)
    )

read(sys.argv[1], 1)
before = peak()
read(sys.argv[2], 16)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes there")
def test_a_large_shard_takes_the_memory_of_a_part(path: Path, tmp_path: Path) -> None:
    small, count, step, width = tmp_path / "small.safetensors", 320, 128, 1 << 10
    audio = sequences(np.ones((1, 1), np.float32), [0], [1])
    names = np.array(["a"])
    one = MultimodalDataset(names, names, np.ones(1, np.float32), {"audio": audio})
    write(small, one)
    starts = np.arange(count) * step
    starts[count // 2 :] = np.random.default_rng(0).permutation(starts[count // 2 :])
    values = np.ones((count * step, width), np.float32)
    audio = sequences(values, starts.tolist(), [step] * count)
    names = np.array([str(item) for item in range(count)])
    items = MultimodalDataset(names, names, np.ones(count, np.float32), {"audio": audio})
    write_shard(path, items, info_for(items))
    assert path.stat().st_size > 160 << 20
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    # A part is 8 MB, and a few of them are there at a time.
    assert float(done.stdout) < 60


# Damage and forgery -----------------------------------------------------------------------------


def refused(path: Path, size: int) -> str:
    """The one line with which a file is refused, opened or read; it names the file."""
    with pytest.raises(UserError) as error:
        parts_of(path, size)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return message.replace(str(path), "")


def test_damage_is_refused_before_anything_is_read(path: Path) -> None:
    write(path, dataset())
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x20
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="shard"):
            ShardStream.open(path)
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="shard"):
            ShardStream.open(path)


def test_what_is_no_shard(path: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(path, 1)
    assert "is a folder" in refused(tmp_path, 1)
    path.write_bytes(b"label,audio\n1,2\n" * 99)
    assert "not a shard" in refused(path, 1)


#: Of labels and groups.
UNUSED = ("labels-", "no-labels", "groups-", "no-groups", "ends-", "task-other", "task-classes")
IDS_TOO = {
    "ids-ends-falling": (swap("ids.ends", [26, 6, 26]), "ids"),
    "ids-ends-negative": (swap("ids.ends", [-2, 6, 26]), "ids"),
    "ids-ends-all-negative": (swap("ids.ends", [-9, -5, -1]), "ids"),
    "ids-ends-beyond": (swap("ids.ends", [6, 26, 99]), "ids"),
    "ids-ends-greatest": (swap("ids.ends", [6, 26, TOP]), "ids"),
    "ids-ends-wrap-around": (swap("ids.ends", [TOP, -5, 26]), "ids"),
    "ids-ends-none": (swap("ids.ends", np.empty(0, "i8")), "items"),
    "ids-ends-i4": (lambda a, _: swap("ids.ends", a["ids.ends"].astype("i4"))(a, _), "ids.ends"),
    "ids-ends-2d": (lambda a, _: swap("ids.ends", a["ids.ends"][None])(a, _), "ids.ends"),
    "ids-ends-too-few": (swap("ids.ends", [6, 26]), "items"),
    "ids-ends-too-many": (swap("ids.ends", [6, 26, 26, 26]), "items"),
    "ids-too-short": (swap("ids", np.full(5, 97, np.uint8)), "ids"),
    "ids-too-long": (
        lambda a, _: (
            swap("ids", np.full(50_000, 97, np.uint8))(a, _),
            swap("ids.ends", [6, 26, 50_000])(a, _),
        ),
        "ids",
    ),
    "starts-shorter-than-lengths": (swap("vision.starts", [0, 0]), "vision"),
    "values-complex": (swap("vision.values", np.ones((6, 2), "c8")), "vision"),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("what", [each for each in FORGED if not each.startswith(UNUSED)])
def test_a_forged_shard_is_refused_by_name(path: Path, what: str, size: int) -> None:
    change, word = FORGED[what]
    forge(path, change)
    assert word in refused(path, size)


@pytest.mark.parametrize("what", [each for each in FORGED if each.startswith(UNUSED)])
def test_labels_and_groups_are_not_looked_at(path: Path, what: str) -> None:
    forge(path, FORGED[what][0])
    assert_joined(parts_of(path, 2), dataset())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("what", IDS_TOO)
def test_forged_ids_are_refused(path: Path, what: str, size: int) -> None:
    change, word = IDS_TOO[what]
    forge(path, change)
    assert word in refused(path, size)


@pytest.mark.parametrize("ends", [[-25, -19, -8], [-20, 6, 26], [6, -1, 26], [6, 26, TOP]])
def test_forged_ids_of_a_part_alone_are_refused(path: Path, ends: list[int]) -> None:
    """Whatever was not read before it."""
    forge(path, swap("ids.ends", ends))
    stream = ShardStream.open(path)
    with pytest.raises(UserError, match="ids are not one for each"):
        stream.part(1, 3)


@pytest.mark.parametrize("change", [put("vision.starts", 2, 6), put("vision.starts", 2, 3)])
def test_where_a_missing_item_begins_does_not_matter(path: Path, change: Change) -> None:
    forge(path, change)
    assert_joined(parts_of(path, 3), dataset())
    assert_joined(parts_of(path, 1), dataset())


def test_a_modality_that_no_item_has(path: Path) -> None:
    none = sequences(rows(4, 3), [4, 0, 2], [0, 0, 0])
    items = replace(dataset(), sequences={"audio": none, **dataset().sequences})
    write(path, items)
    for size in (1, 3):
        assert_joined(parts_of(path, size), items)
