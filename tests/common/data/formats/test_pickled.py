"""What the readers of pickles refuse, in which words, and what they do with each item."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import refusal

from common.data.formats.pickled import PUBLISHED
from common.data.formats.registry import FORMATS, Format, Given
from common.data.safe_pickle import load
from common.data.source import ReadSettings, Source
from common.task import Task

mmsa, mult, multibench = (FORMATS[name] for name in ("mmsa", "mult", "multibench"))
FILE = Path("mosi.pkl")  # what it holds is given apart
REPEATED = "items whose id occurred before, dropped"


def split(count: int = 3, video: str = "v", **changes: Any) -> dict[str, Any]:
    """Return a split without padding; a change to None leaves the key out."""
    made = {
        "text": np.ones((count, 4, 3)),
        "audio": np.ones((count, 4, 2)),
        "labels": np.arange(count, dtype=np.float32)[:, None],
        "id": np.array([f"{video}[{item}]" for item in range(count)]),
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def signalling(kind: str, *shape: int) -> np.ndarray:
    """Make signalling NaN, which casts warn of."""
    bits = {"f4": 0x7FA00000, "f8": 0x7FF4000000000000}[kind]
    return np.full(shape, bits, kind.replace("f", "u")).view(kind)


def mmsa_split(count: int = 3, **changes: Any) -> dict[str, Any]:
    labels = {"regression_labels": np.zeros(count), "classification_labels": np.arange(count)}
    ids = [f"v$_${item}" for item in range(count)]
    return split(count, **{"labels": None, "id": ids, **labels, **changes})


def read(content: object, reader: Format = multibench, **options: Any) -> Source:
    return reader.read(Given([FILE], content), ReadSettings(**options))


def fails(content: object, *words: str, reader: Format = multibench, **options: Any) -> None:
    refusal(lambda: read(content, reader, **options), *words)


def circular() -> list[Any]:
    made: list[Any] = [1.0]
    made.append(made)
    return made


ROW = [b"v", b"0.5", b"1.5"]
BARE = [np.array([[b"v"]] * 3), np.array([["v"]] * 3), np.array([b"v"] * 3), [b"v"] * 3]
ROWS = [np.array([ROW] * 3), np.array([ROW] * 3, object), [np.array(ROW)] * 3]
TEXTS = [split()["id"].astype(kind) for kind in ("U", "S", object)]


@pytest.mark.parametrize(
    ("content", "readers", "words"),
    [
        *(
            ({"train": split(id=ids)}, ["mult", "multibench"], "train")
            for ids in (*BARE, *ROWS, np.array([["v", "0.5", "1.5"]] * 3))
        ),
        *(
            ({"train": split(id=ids), "valid": split()}, ["multibench"], "train, valid")
            for ids in TEXTS
        ),
        ({"test": mmsa_split()}, ["mmsa"], "regression_labels"),
        *(
            (content, [], "")
            for content in (None, 1, "train", [], {}, {"train": 1}, {"train": {}}, {1: 2})
        ),
        (circular(), [], ""),
    ],
)
def test_readers_are_tried_in_order_and_know_theirs(
    content: object, readers: list[str], words: str
) -> None:
    """All ids may be of MultiBench, which is asked last."""
    given = Given([FILE], content)
    found = {name: FORMATS[name].recognise(given) for name in ("mmsa", "mult", "multibench")}
    assert [name for name, why in found.items() if why is not None] == readers
    assert all(words in why and "\n" not in why for why in found.values() if why is not None)


@pytest.mark.parametrize("key", ["audio", "text", "labels", "id"])
def test_a_split_that_lacks_a_key_is_named(key: str) -> None:
    content = {"train": split(), "valid": split(**{key: None})}
    assert multibench.recognise(Given([FILE], content))
    fails(content, "mosi.pkl", "'valid'", "lacks", f"'{key}'")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("text", "words", ["str", "expected an array"]),
        ("text", [[[1.0]], [[1.0], [2.0]]], ["list", "expected an array"]),
        ("text", circular(), ["list", "expected an array"]),
        ("text", np.ones((3, 4)), ["(3, 4)", "(items, steps, width)"]),
        ("text", np.ones((3, 0, 4)), ["(3, 0, 4)"]),
        ("text", np.ones((2, 4, 3)), ["2 items", "'id' has 3"]),
        ("text", np.full((3, 4, 3), "a"), ["<U1"]),
        ("text", np.ones((3, 4, 3), complex), ["ndarray", "expected an array"]),
        ("labels", [1.0, 2**2000, 0.0], ["list", "expected an array"]),
        ("labels", [np.datetime64("2020"), 1.0, 2.0], ["list", "expected an array"]),
        ("labels", np.ones((2, 1)), ["(2, 1)", "expected 3 numbers"]),
        ("labels", np.ones((3, 2)), ["(3, 2)", "7 columns"]),
        ("labels", np.zeros((3, 7, 1)), ["(3, 7, 1)", "7 columns"]),
        ("labels", np.zeros((3, 1, 1, 1)), ["(3, 1, 1, 1)", "7 columns"]),
        ("labels", np.float32(1), ["float32", "expected an array"]),
        ("id", np.array([]), ["(0,)", "expected one for each item"]),
        ("id", ["a", 2**20000, "b"], ["list", "expected an array"]),
        ("id", ["a", "b" * 2000, "c"], ["list", "expected an array"]),
        ("id", np.array(["a", "b" * 2000, "c"]), ["2000 characters"]),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any, words: list[str]) -> None:
    fails({"train": split(**{key: value})}, "mosi.pkl", "'train'", f"'{key}'", *words)


LONG = np.array([np.longdouble("1e4000"), 1, 2])


def test_contents_that_do_not_fit() -> None:
    fails({"train": split(), "test": None}, "'test'", "NoneType", "expected")
    wider = {"train": split(), "valid": split(text=np.ones((3, 4, 9)))}
    fails(wider, "'text'", "3 in 'train'", "9 in 'valid'")
    audio = np.ones((3, 4, 2))
    audio[1, :3] = 0
    words = "audio", "from 1 to 4 steps", "+tabular"
    fails({"train": split(audio=audio)}, *words, prefix="+", tabular=("audio",))
    fails({"train": split(labels=LONG)}, "too large")
    fails({"train": split(labels=["good", "1", "2"])}, "mosi.pkl", "'good' in v[0]", "a number")
    fails({"train": split(labels=np.full(3, np.nan))}, "mosi.pkl")  # and nothing is left
    fails({"train": split(text=np.zeros((3, 4, 3)))}, "mosi.pkl")
    some = np.ones((3, 4, 3)) * [[[0]], [[1]], [[1]]]
    fails({"train": split(text=some, labels=np.array([1, np.nan, np.nan]))}, "mosi.pkl")


@pytest.mark.parametrize("last", [[5], [-1], [2.5], [np.nan], [], [np.inf]])
def test_lengths_that_do_not_fit(last: list[float]) -> None:
    content = {"valid": mmsa_split(audio_lengths=[1, 2, *last])}
    fails(content, "'valid'", "audio_lengths", reader=mmsa)


# ---- Items ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_is_no_padding(value: float) -> None:
    audio = np.zeros((3, 4, 2))
    audio[:, 1:] = 1
    audio[1, 0, 1] = value
    items = read({"train": split(audio=audio)}).items
    assert items.sequences["audio"].lengths.tolist() == [3, 4, 3]
    assert items.not_finite() == {"audio values not finite, set to the mean": 1}


def test_items_without_text_are_kept_where_text_is_not_read() -> None:
    content = {"train": split(text=np.zeros((3, 4, 3)))}
    assert len(read(content, modalities=("audio",)).items) == 3


def test_an_id_that_occurred_before_is_dropped() -> None:
    content = {"train": split(2), "test": split(3)}
    source = read(content)
    assert source.items.ids.tolist() == ["v[0]", "v[1]", "v[2]"]
    assert source.splits.tolist() == ["train", "train", "test"]
    assert source.items.cleaning == {REPEATED: 2}
    one = split()
    source = read({"train": one, "test": one})
    assert source.splits.tolist() == ["train"] * 3
    assert source.items.cleaning == {REPEATED: 3}


def test_dev_is_validation() -> None:
    assert read({"dev": split()}).splits.tolist() == ["validation"] * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([[b"v", b"1", b"2"], [b"w", b"1", b"2"]]), ["v[1,2]", "w[1,2]"]),
        (np.array([[b"v", 1.5, 2]] * 1 + [["w", 1, 2]], object), ["v[1.5,2]", "w[1,2]"]),
        (["caf\u00e9[0]", "caf\u00c3\u00a9[1]"], ["café[0]", "café[1]"]),
        (["caf\u00e9[0]".encode(), "caf\u00e9[1]".encode("latin1")], ["café[0]", "café[1]"]),
        (["a[b][0]", "c"], ["a[b][0]", "c[0]"]),
    ],
)
def test_ids(ids: Any, expected: list[str]) -> None:
    items = read({"train": split(2, id=ids)}, mult).items
    assert items.ids.tolist() == expected
    assert items.groups.tolist() == [each.rpartition("[")[0] for each in expected]


def test_items_of_a_bare_video_are_numbered_over_all_splits() -> None:
    content = {
        "train": split(3, id=np.array([[b"v"], [b"w"], [b"v"]])),
        "test": split(2, id=np.array([[b"w"], [b"v"]])),
    }
    items = read(content, mult).items
    assert items.ids.tolist() == ["v[0]", "w[0]", "v[1]", "w[1]", "v[2]"]
    assert items.groups.tolist() == ["v", "w", "v", "w", "v"]


def test_lists_of_equal_arrays_are_arrays() -> None:
    content = {"train": split(text=[np.ones((4, 3))] * 3, labels=(1, 2, 3))}
    items = read(content).items
    assert items.sequences["language"].lengths.tolist() == [4, 4, 4]
    assert items.labels.tolist() == [1, 2, 3]


def test_modalities_are_taken_out_of_the_contents() -> None:
    content = {"train": split(), "valid": split(2, "w")}
    read(content)
    assert all(set(each) == {"labels", "id"} for each in content.values())


@pytest.mark.parametrize(("key", "element"), [("audio", np.ones((40, 200))), ("id", "x" * 1000)])
def test_one_value_that_is_named_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, element: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    FILE.write_bytes(bytes(100))
    fails({"train": split(**{key: [element] * 1_000_000})}, "GiB of contents")


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_signalling_nan_is_one_like_any(kind: str) -> None:
    labels = signalling(kind, 3)
    labels[1] = 1
    audio = signalling(kind, 3, 4, 2)
    audio[..., 0] = 1
    items = read({"train": split(audio=audio, labels=labels)}).items
    assert items.ids.tolist() == ["v[1]"]
    assert items.not_finite() == {"audio values not finite, set to the mean": 4}


def test_lengths_cut_what_lies_behind() -> None:
    content = {"train": mmsa_split(audio_lengths=[1, 0, 4])}
    items = read(content, mmsa).items
    assert items.sequences["audio"].lengths.tolist() == [1, 0, 4]
    assert items.ids.tolist() == ["v[0]", "v[1]", "v[2]"]
    assert items.cleaning["items without audio"] == 1


@pytest.mark.parametrize(("steps", "expected"), [(4, [2, 3, 4]), (6, [4, 4, 4])])
def test_text_is_as_long_as_the_attention_mask_where_that_fits(
    steps: int, expected: list[int]
) -> None:
    bert = np.zeros((3, 3, steps))
    for item, tokens in enumerate((2, 3, 4)):
        bert[item, 1, :tokens] = 1
    items = read({"train": mmsa_split(text_bert=bert)}, mmsa).items
    assert items.sequences["language"].lengths.tolist() == expected


def test_text_bert_alone_is_no_language() -> None:
    content = {"train": mmsa_split(text=None, text_bert=np.zeros((3, 3, 4)))}
    fails(content, "text_bert", reader=mmsa, modalities=("language",))
    assert set(read(content, mmsa).items.sequences) == {"audio"}


def test_classes_have_a_key_of_their_own() -> None:
    content = {"train": mmsa_split(classification_labels=None)}
    assert mmsa.recognise(Given([FILE], content))
    fails(content, "classification_labels", reader=mmsa, task=Task.classification)


def test_published_files_are_known() -> None:
    digest = "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9"
    assert PUBLISHED[digest] == "MOSI/aligned_50.pkl"


def test_video_in_place_of_vision() -> None:
    moved = {"video": np.ones((3, 4, 5)), "video_lengths": [1, 2, 4]}
    vision = read({"train": mmsa_split() | moved}, mmsa).items.sequences["vision"]
    assert (vision.lengths.tolist(), vision.width) == ([1, 2, 4], 5)


@pytest.mark.parametrize("kind", [list, lambda parts: np.array(parts, dtype=object)])
def test_items_that_are_not_padded(kind: Any) -> None:
    parts = [np.full((steps, 2), steps, "f4") for steps in (1, 3, 2)]
    audio = read({"train": mmsa_split(audio=kind(parts))}, mmsa).items.sequences["audio"]
    assert [audio[item].tolist() for item in range(3)] == [part.tolist() for part in parts]
    for wrong in ([*parts[:2], np.ones((2, 3))], [*parts[:2], np.ones(2)], [*parts[:2], "x"]):
        fails({"train": mmsa_split(audio=wrong)}, "'audio' holds items of different", reader=mmsa)
    fails(
        {"train": mmsa_split(audio=parts[:2])}, "'audio' has 2 items, and 'id' has 3", reader=mmsa
    )


def test_items_without_ids_are_numbered_and_counted() -> None:
    content = {"train": split(id=None), "test": split(2, id=None)}
    assert multibench.recognise(Given([FILE], content))
    items = read(content).items
    assert items.ids.tolist() == [f"train-{n}[0]" for n in range(3)] + ["test-0[0]", "test-1[0]"]
    assert len(set(items.groups.tolist())) == 5
    assert items.cleaning == {"items without an id, numbered, each a group of its own": 5}


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array([-1, 1, -1])[:, None, None], [0, 1, 0], ("-1", "1")),
        (np.array(["sad", "glad", "sad"])[:, None], [1, 0, 1], ("glad", "sad")),
    ],
)
def test_classes_of_any_kind(labels: Any, numbers: list[int], names: tuple[str, ...]) -> None:
    items = read({"train": split(labels=labels)}, task=Task.classification).items
    assert (items.labels.tolist(), items.label_names) == (numbers, names)


def test_a_web_page_in_place_of_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\n<!DOCTYPE html><html>")
    refusal(lambda: load(tmp_path / "a.pkl"), "a.pkl is a web page", "download it again")


def test_tensors_in_a_pickle_say_how_to_make_arrays(tmp_path: Path) -> None:
    with (tmp_path / "a.pkl").open("wb") as file:
        pickle.dump(torch.ones(2), file)
    refusal(lambda: load(tmp_path / "a.pkl"), "torch._utils", "save tensor.numpy()")
