"""Files of arrays: what is read from each layout, and what is said of a file that is wrong."""

import gc
import itertools
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import refusal
from hostile_pickles import Calls
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, FileConfig
from common.data.dataset import MultimodalDataset
from common.data.federation import file_settings, load_joint, read_joint
from common.data.formats.npz import read_npz
from common.task import Task

RNG = np.random.default_rng(0)
PADDED = RNG.normal(size=(6, 4, 3)).astype(np.float32)  # (items, steps, width)
FLAT = RNG.normal(size=(6, 5)).astype(np.float32)  # (items, width)
RAGGED = RNG.normal(size=(9, 2)).astype(np.float32)  # (rows, width)
OFFSETS = np.array([0, 3, 3, 4, 8, 8, 9])
LABEL = np.array([0.5, -1.0, 3.0, -3.0, 0.0, 2.25])


def write(path: Path, **arrays: Any) -> Path:
    """Write a file of six items; None takes an array out."""
    arrays = {"label": LABEL, "audio": PADDED} | arrays
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def read(*paths: Path, names: list[str] | None = None, **settings_: Any) -> MultimodalDataset:
    return read_npz(paths, file_settings(FileConfig(path="", **settings_), names)).items


def refused(*paths: Path, **settings_: Any) -> str:
    return refusal(lambda: read(*paths, **settings_))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


# What is read -----------------------------------------------------------------------------------


PARTS = [RAGGED[first:last] for first, last in itertools.pairwise(OFFSETS)]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"audio": PADDED}, list(PADDED)),
        ({"audio": PADDED.astype(np.float16)}, list(PADDED.astype(np.float16))),
        ({"audio": FLAT}, list(FLAT[:, None])),
        ({"audio": RAGGED, "audio_offsets": OFFSETS}, PARTS),
    ],
)
def test_layouts(file: Path, arrays: dict[str, Any], expected: list[np.ndarray]) -> None:
    items = read(write(file, **arrays))
    last = read(file, max_seq_len=2).sequences["audio"]
    assert np.array_equal(items.labels, LABEL)
    empty = sum(len(part) == 0 for part in expected)
    assert items.cleaning == ({"items without audio": empty} if empty else {})
    for item in range(6):
        np.testing.assert_array_equal(items.sequences["audio"][item], expected[item], strict=True)
        np.testing.assert_array_equal(last[item], expected[item][-2:], strict=True)


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=8),
    st.integers(0, 4),
    st.none() | st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_context_is_what_came_before_in_the_group(
    tmp_path_factory: pytest.TempPathFactory, groups: list[str], context: int, most: int | None
) -> None:
    file = tmp_path_factory.mktemp("npz") / "data.npz"
    rows = np.arange(len(groups), dtype=np.float32)[:, None]
    write(file, audio=rows, label=np.zeros(len(groups)), video=np.array(groups))
    items = read(file, group="video", context=context, max_seq_len=most)
    for item, group in enumerate(groups):
        first = item
        while first > 0 and item - first < context and groups[first - 1] == group:
            first -= 1
        expected = list(range(first, item + 1))[-(most or 99) :]
        assert items.sequences["audio"][item][:, 0].tolist() == expected


def test_items_without_a_label_are_dropped_but_stay_context(file: Path) -> None:
    label = LABEL.copy()
    label[[1, 4]] = np.nan
    items = read(write(file, label=label, audio=FLAT, video=[0] * 6), group="video", context=1)
    assert np.array_equal(items.labels, label[[0, 2, 3, 5]])
    assert items.cleaning == {"items without a label, dropped": 2}
    assert len(items.groups) == len(items.sequences["audio"]) == 4
    assert np.array_equal(items.sequences["audio"][1], FLAT[1:3])
    assert np.array_equal(items.sequences["audio"][3], FLAT[4:6])


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float64])
def test_classes_are_whole_numbers(file: Path, dtype: type) -> None:
    label = np.array([2, 0, 1, 5, 5, 0], dtype=dtype)
    if dtype is np.float64:
        label[2] = np.nan  # dropped
    items = read(write(file, label=label), task=Task.classification)
    assert items.labels.dtype == np.int64
    assert items.labels.tolist() == label[~np.isnan(label)].tolist()
    assert items.label_names == ()


def test_a_class_has_the_same_number_in_all_files(file: Path, tmp_path: Path) -> None:
    write(file, label=["b", "c"] * 3)
    write(tmp_path / "b.npz", label=["a", "c"] * 3)
    items = read(file, tmp_path / "b.npz", task=Task.classification)
    assert items.label_names == ("a", "b", "c")
    assert items.labels.tolist() == [1, 2] * 3 + [0, 2] * 3
    named = read(file, task=Task.classification, classes=("c", "b"))
    assert (named.labels.tolist(), named.label_names) == ([1, 0] * 3, ("c", "b"))
    write(file, label=[0.5] * 6)
    fails_words = (
        "label is '0.5' in item 0 of ",
        "data.npz (and 5 more)",
        "dataset.task=regression",
    )
    refusal(lambda: read(file, task=Task.classification), *fails_words)


def test_labels_in_one_column_are_numbers_and_several_are_present_above_zero(file: Path) -> None:
    assert np.array_equal(read(write(file, label=LABEL[:, None])).labels, LABEL)
    intensity = [[0, 1], [3, 0], [-1, 0.33], [0, 0], [np.nan, 1], [2, 2]]
    items = read(write(file, label=np.array(intensity)), task=Task.multilabel)
    assert items.labels.dtype == np.float32
    assert items.labels.tolist() == [[0, 1], [1, 0], [0, 1], [0, 0], [1, 1]]
    assert items.cleaning == {"items that lack some of the labels, dropped": 1}


def test_modalities_are_the_arrays_of_numbers_and_what_is_not_read_is_counted(file: Path) -> None:
    more = {"language": RAGGED, "language_offsets": OFFSETS, "audio": FLAT, "weight": np.ones(6)}
    more |= {"counts": np.arange(12).reshape(6, 2), "y": np.ones((6, 1))}
    write(file, label=np.eye(6)[:, :2], id=["a"] * 6, segment=np.arange(6), **more)
    items = read(file, task=Task.multilabel)
    assert set(items.sequences) == {"language", "audio", "counts"}
    assert items.cleaning["arrays not used: segment, weight, y"] == 3
    assert items.ids.tolist() == [f"a#{number}" for number in range(6)]  # told apart


def test_modalities_are_those_asked_for(file: Path) -> None:
    write(file, vision=FLAT, counts=np.arange(6 * 2).reshape(6, 2))
    assert list(read(file, modalities=["vision", "audio"]).sequences) == ["vision", "audio"]
    assert list(read(file, modalities=["vision"], names=["audio"]).sequences) == ["audio"]
    counts = read(file, modalities=["counts"]).sequences["counts"]
    assert counts[3].tolist() == [[6, 7]]


def test_a_table_is_a_modality_whose_steps_differ(file: Path) -> None:
    items = read(write(file, vision=FLAT), tabular=["audio"])
    assert items.sequences["audio"].statistics_shape == (4, 3)
    assert items.sequences["vision"].statistics_shape == (5,)
    assert np.array_equal(items.sequences["audio"][2], PADDED[2])


def test_groups_are_any_array_of_the_items_or_each_item_its_own(tmp_path: Path) -> None:
    one = write(tmp_path / "a.npz", video=np.array([7, 7, 8, 8, 8, 9]))
    assert read(one, group="video").groups.tolist() == ["7", "7", "8", "8", "8", "9"]
    assert len(set(read(one, write(tmp_path / "b.npz")).groups)) == 12


def test_files_are_joined_item_after_item(tmp_path: Path) -> None:
    one = write(tmp_path / "a.npz", audio=RAGGED, audio_offsets=OFFSETS, video=list("xxyyzz"))
    second = {"audio": -FLAT[:3, :2], "label": [1, np.nan, 2], "video": list("xpp")}
    two = write(tmp_path / "b.npz", extra=FLAT, **second)
    items = read(one, two, group="video", context=1)
    assert items.labels.tolist() == [*LABEL, 1, 2]
    assert items.groups.tolist() == list("xxyyzz") + list("xp")
    assert items.cleaning == {
        "items without a label, dropped": 1,
        "array not used: extra": 1,
        "items without audio": 2,
    }
    for item, expected in enumerate([*PARTS, -FLAT[:1, :2], -FLAT[1:3, :2]]):
        assert np.array_equal(items.sequences["audio"][item], expected)


def test_values_that_are_not_finite_are_counted_by_modality(file: Path) -> None:
    audio, vision = np.ones((12, 2, 3)), np.ones((12, 3))
    audio[0, 1] = -np.inf
    audio[5, 0, 2] = np.nan
    write(file, label=np.arange(12.0), audio=audio, vision=vision)
    clients = {"default": 1}
    joint = load_joint(Config(run_dir="", clients=clients, dataset=FileConfig(path=str(file))))
    assert joint.cleaning == {"audio values not finite, set to the mean": 4}


CLASSES = {"task": Task.classification}
ASKED = {"modalities": ["audio"]}
TABULAR, GROUP = {"tabular": ["audio"]}, {"group": "video"}


def ragged(offsets: Any) -> dict[str, Any]:
    return {"audio": RAGGED, "audio_offsets": offsets}


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"label": None}, {}, ["'label'", "it has audio"]),
        ({"label": [np.nan] * 6}, {}, ["every label is missing"]),
        ({"label": [np.inf] * 6}, {}, ["label", "infinity"]),
        ({"label": [1e300] * 6}, {}, ["label", "too large"]),
        ({"label": ["happy"] * 6}, {}, ["label is 'happy' in item 0", "expected a number"]),
        ({"label": np.zeros((6, 2))}, {}, ["label", "2 columns", "regression"]),
        ({"label": 3.0}, {}, ["label"]),
        ({"label": [], "audio": np.zeros((0, 4, 3))}, {}, ["label"]),
        ({}, CLASSES, ["whole number"]),
        ({"label": [1e6] * 6}, CLASSES, ["every item is of the class 1000000", "classes=[…]"]),
        ({"audio": None, "id": range(6)}, {}, ["no modality", "it has id, label"]),
        ({}, {"modalities": ["video"]}, ["'video'", "it has audio, label"]),
        ({"audio": np.ones((6, 1, 1, 1))}, ASKED, ["audio", "(6, 1, 1, 1)"]),
        ({"audio": np.zeros((6, 2, 2, 2))}, {}, ["audio", "(6, 2, 2"]),
        ({"audio": np.zeros((6, 3, 0))}, {}, ["audio", "(6, 3, 0)"]),
        ({"audio": np.zeros((6, 0))}, {}, ["audio", "(6, 0)"]),
        ({"audio": np.zeros((6, 0, 3))}, {}, ["audio", "(6, 0, 3)"]),
        ({"audio": np.array([["a"]] * 6)}, ASKED, ["audio", "<U1", "expected numbers"]),
        ({"audio": np.array(["a", None, 1, 2, 3, 4], object)}, ASKED, ["audio", "never read"]),
        ({"audio": PADDED[:5]}, {}, ["audio has 5 items but label has 6"]),
        ({"audio": FLAT[:5]}, {}, ["audio has 5 items but label has 6"]),
        ({"label": LABEL[:5]}, {}, ["audio has 6 items but label has 5"]),
        ({"audio": FLAT, "label": LABEL[:5]}, {}, ["audio has 6 items but label has 5"]),
        ({"audio": RAGGED}, {}, ["audio", "9", "6"]),
        (ragged([0, 3, 9]), {}, ["audio has 2 items but label has 6"]),
        (ragged(OFFSETS.clip(max=8)), {}, ["audio_offsets", "from 0 to 9"]),
        (ragged(OFFSETS.clip(min=1)), {}, ["audio_offsets", "from 0 to 9"]),
        (ragged([0, 5, 3, 4, 8, 8, 9]), {}, ["audio_offsets", "must rise"]),
        (ragged([]), {}, ["audio_offsets"]),
        (ragged(OFFSETS[:, None]), {}, ["audio_offsets"]),
        (ragged(list("abcdefg")), {}, ["audio_offsets"]),
        ({"audio_offsets": np.arange(7)}, {}, ["audio_offsets", "(rows, width)"]),
        (ragged(OFFSETS), TABULAR, ["audio", "dataset.tabular", "same number"]),
        ({}, GROUP, ["'video'", "dataset.group", "it has audio, label"]),
        ({"video": range(5)}, GROUP, ["video has shape (5,)", "(6,)"]),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_wrong_arrays_are_named(
    file: Path, arrays: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    message = refused(write(file, **arrays), **options)
    assert str(file) in message
    for text in words:
        assert text in message.replace(str(file), "")


def test_what_is_missing_is_named(file: Path) -> None:
    refusal(lambda: read(file), f"dataset file {file} does not exist")
    refusal(lambda: read(file.parent), file.parent, "directory")
    dataset = FileConfig(path=str(write(file)), tabular=["video"])
    config = Config(run_dir="", dataset=dataset)
    refusal(lambda: read_joint(config), "dataset.tabular: 'video' is not among audio")


@pytest.mark.parametrize(
    ("first", "second", "options", "words"),
    [
        ({}, {"audio": PADDED[..., :2]}, {}, ["audio is 3 wide in ", "but 2 wide in "]),
        ({}, {"audio": PADDED[:, :2]}, TABULAR, ["audio", "4 steps", "2 steps"]),
        ({"vision": FLAT}, {}, {}, ["'vision'", "it has audio, label"]),
        ({}, {"label": [np.inf] * 6}, {}, ["label"]),
        (
            {"label": np.eye(6)[:, :3]},
            {"label": np.eye(6)[:, :2]},
            {"task": Task.multilabel},
            ["label is 3 wide in", "but 2 wide in"],
        ),
    ],
)
def test_files_must_agree(
    tmp_path: Path,
    first: dict[str, Any],
    second: dict[str, Any],
    options: dict[str, Any],
    words: list[str],
) -> None:
    one, two = write(tmp_path / "a.npz", **first), write(tmp_path / "b.npz", **second)
    message = refusal(lambda: read(one, two, **options), two, *words)
    assert (str(one) in message) == ("audio" in second or bool(options))


# Files that are no archives, or broken ones -----------------------------------------------------


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"PK\x01\x02", b"PK\x00\x00"),  # its list of members
    ],
)
def test_a_broken_archive_is_named_and_closed(
    file: Path, break_it: Callable[[bytes], bytes]
) -> None:
    file.write_bytes(break_it(write(file).read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert str(file) in refused(file)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def trapped(folder: Path) -> np.ndarray:
    """Return what makes a folder when it is unpickled."""
    array = np.empty(6, dtype=object)
    array[:] = [Calls(os.mkdir, str(folder))] + [0] * 5
    return array


@pytest.mark.parametrize("name", ["label", "audio"])
def test_pickle_is_never_loaded(file: Path, name: str) -> None:
    sprung = file.with_name("sprung")
    write(file, **{name: trapped(sprung)})
    refused(file, modalities=["audio"])
    assert set(read(write(file, text=trapped(sprung))).sequences) == {"audio"}  # not asked for
    assert not sprung.exists()
    np.load(file, allow_pickle=True)["text"]  # the trap is armed
    assert sprung.exists()


def test_pickled_files_are_never_loaded(file: Path) -> None:
    sprung = file.with_name("sprung")
    with file.open("wb") as opened:
        np.save(opened, trapped(sprung))
    assert str(file) in refused(file)
    file.write_bytes(trapped(sprung).dumps())
    assert str(file) in refused(file)
    assert not sprung.exists()


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"])
def test_other_files_are_no_archives(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    message = refused(file)
    assert str(file) in message
    assert ".npz" in message
    assert "pickle" not in message  # as NumPy advises


def test_one_array_or_a_zip_of_something_else_is_no_archive(file: Path) -> None:
    with file.open("wb") as opened:
        np.save(opened, LABEL)
    refusal(lambda: read(file), f"{file} is not an .npz file, or only a part of one")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert str(file) in refused(file)


def corrupt(file: Path, member: str, offset: int, junk: bytes) -> None:
    """Overwrite bytes of a member, counted from where its content begins."""
    with zipfile.ZipFile(file) as archive:
        header = archive.getinfo(member).header_offset
    content = bytearray(file.read_bytes())
    # A local header is 30 bytes, then the name and the extra field, whose lengths it holds.
    sizes = [int.from_bytes(content[header + at : header + at + 2], "little") for at in (26, 28)]
    begin = header + 30 + sum(sizes) + offset
    content[begin : begin + len(junk)] = junk
    file.write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("offset", "junk"),
    [(0, b"not numpy"), (10, b"(" * 40), (10, b"\xff" * 40), (150, b"\x00" * 8)],
    ids=["magic", "header", "header not text", "numbers"],
)
def test_a_corrupted_member_is_named(
    file: Path, offset: int, junk: bytes, compressed: bool
) -> None:
    (np.savez_compressed if compressed else np.savez)(file, label=LABEL, audio=PADDED)
    corrupt(file, "audio.npy", offset, junk)
    message = refused(file)
    assert str(file) in message
    assert "audio" in message.replace(str(file), "")
