"""What the reader of computational sequences refuses, and how it finds an item's steps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_checks import refusal

from common.data.formats.registry import FORMATS, Given, read_source
from common.data.source import ReadSettings, Source
from common.task import Task
from tests.common.data.formats.writers import write_sequence

Entry = tuple[Any, Any]
Entries = Mapping[str, Entry]

LABELS: Entries = {
    "v[0]": ([[1.0]], [[0.0, 2.0]]),
    "v[1]": ([[2.0]], [[2.0, 4.0]]),
    "w[0]": ([[3.0]], [[0.0, 1.0]]),
}
WORDS: Entries = {name: (np.ones((2, 3)), np.zeros((2, 2))) for name in LABELS}


def write(folder: Path, name: str, root: str, entries: Entries) -> Path:
    return write_sequence(folder / f"{name}.csd", root, entries)


def make(folder: Path, labels: Entries = LABELS, **sequences: Entries) -> Path:
    """Write labels, and sequences by their root's name; glove vectors where there are none."""
    write(folder, "Opinion_Labels", "Opinion", labels)
    for root, entries in (sequences or {"glove": WORDS}).items():
        write(folder, root, root, entries)
    return folder


def read(*paths: Path, **options: Any) -> Source:
    return read_source(paths, "csd", ReadSettings(**options))[0]


def fails(*paths: Path, words: list[str], **options: Any) -> None:
    refusal(lambda: read(*paths, **options), *words)


def test_recognise(tmp_path: Path) -> None:
    assert FORMATS["csd"].recognise(Given([tmp_path])) is None
    make(tmp_path)
    assert FORMATS["csd"].recognise(Given([tmp_path])) == "a folder of 2 .csd files"
    assert FORMATS["csd"].recognise(Given([tmp_path / "glove.csd"])) == "an HDF5 file"
    (tmp_path / "a.csv").write_text("id,label\n")
    assert FORMATS["csd"].recognise(Given([tmp_path / "a.csv"])) is None


ROOTS = {"glove_vectors": "language", "BERT": "language", "COVAREP": "audio"}
ROOTS |= {"OpenSMILE-1": "audio", "FACET 4.2": "vision", "OpenFace_2": "vision"}
ROOTS |= {"Visual features": "vision", "heart rate": "heart_rate", "my² é": "my___", "3d": "_3d"}


@pytest.mark.parametrize(("root", "modality"), ROOTS.items())
def test_the_name_tells_the_modality(tmp_path: Path, root: str, modality: str) -> None:
    make(tmp_path, **{"glove" if modality != "language" else "heart": WORDS})
    write(tmp_path, "other", root, WORDS)
    assert modality in read(tmp_path).items.sequences


def test_segments_by_id_videos_by_interval(tmp_path: Path) -> None:
    times = [[0.0, 1.9], [1.0, 3.0], [1.9, 2.3], [3.0, 4.9], [4.0, 5.0]]  # middles 0.95, 2, …
    frames = np.arange(5.0)[:, None]
    items = read(make(tmp_path, glove=WORDS, COVAREP={"v": (frames, times)})).items
    audio = items.sequences["audio"]
    assert items.ids.tolist() == ["v[0]", "v[1]", "w[0]"]
    assert items.groups.tolist() == ["v", "v", "w"]
    assert [audio[item].ravel().tolist() for item in range(3)] == [[0], [1, 2, 3], []]
    assert items.cleaning == {"items without audio": 1}
    labels: Entries = {"v": ([[1.0], [2.0]], [[0.0, 1.0], [1.0, 2.0]])}
    words: Entries = {"v": ([[5.0], [6.0]], [[0.2, 0.4], [1.2, 1.4]])}
    (tmp_path / "COVAREP.csd").unlink()
    items = read(make(tmp_path, labels, glove=words)).items  # labels of a whole video
    assert items.ids.tolist() == ["v[0]", "v[1]"]
    assert items.sequences["language"].values.tolist() == [[5], [6]]


def test_intervals_without_end_and_signalling_nan_are_read_in_silence(tmp_path: Path) -> None:
    times = [[-np.inf, np.inf], [1e308, 1.7e308], [np.nan, 1], [0, 1]]
    items = read(make(tmp_path, COVAREP={"v": (np.ones((4, 1)), times)})).items
    assert items.sequences["audio"].lengths.tolist() == [1, 0, 0]
    nan = np.full((1, 2), 0x7FF4000000000000, "u8").view("f8")
    nan[0, 1] = 1
    make(tmp_path, COVAREP={"v[0]": (nan, [[0.0, 1.0]])})
    assert read(tmp_path).items.not_finite()


def test_segments_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    more = {**WORDS, "x[0]": WORDS["v[0]"], "x[1]": WORDS["v[0]"]}
    source = read(make(tmp_path, glove=more))
    assert source.items.cleaning == {"segments of language without a label, left out": 2}
    assert source.splits.tolist() == [""] * 3


def test_a_file_that_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    broken: Entries = {"v[0]": (np.ones(3), np.ones(3))}
    make(tmp_path, glove=WORDS, COVAREP=broken)
    assert set(read(tmp_path, modalities=("language",)).items.sequences) == {"language"}
    fails(tmp_path, words=["COVAREP.csd", "'v[0]'"])


# ---- Refused --------------------------------------------------------------------------

STEPS, TWO, NO_STEPS = np.ones((2, 3)), np.zeros((2, 2)), np.zeros((2, 3))


def labelled(values: Any) -> Entries:
    return {name: (values, interval) for name, (_, interval) in LABELS.items()}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((np.ones(2), TWO), ["features", "(2,)"]),
        ((["a", "b"], TWO), ["features", "object"]),
        ((STEPS, np.zeros((3, 2))), ["2 steps", "(3, 2)"]),
        ((STEPS, np.zeros((2, 1))), ["2 steps", "(2, 1)"]),
        ((h5py.Empty("f4"), TWO), ["features"]),
        ((h5py.SoftLink("/glove/data/v[1]/features"), TWO), ["no features of its"]),
        ((h5py.ExternalLink("other.h5", "/"), TWO), ["no features of its own"]),
        ((STEPS, h5py.ExternalLink("other.h5", "/")), ["no intervals of its own"]),
    ],
)
def test_a_wrong_segment_is_named(tmp_path: Path, entry: Entry, words: list[str]) -> None:
    make(tmp_path, glove={**WORDS, "v[0]": entry})
    fails(tmp_path, words=["glove.csd", "'v[0]'", *words])


@pytest.mark.parametrize(
    ("labels", "sequences", "words"),
    [
        (LABELS, {"glove": WORDS, "bert": WORDS}, ["bert.csd", "glove.csd", "language"]),
        (LABELS, {"glove": {}}, ["glove.csd", "no segment"]),
        (LABELS, {"glove": {**WORDS, "v[0]": (np.ones((2, 9)), TWO)}}, ["glove.csd", "[3, 9]"]),
        (LABELS, {"glove": {"x[0]": (STEPS, TWO)}}, ["glove.csd", "none of its segments has a"]),
        (
            {"v": ([[1.0], [2.0]], [[0.0, 1.0], [1.0, 2.0]]), "v[0]": LABELS["v[0]"]},
            {},
            ["Opinion_Labels.csd", "two items", "'v[0]'"],
        ),
        (labelled([[1.0, 2.0]]), {}, ["Opinion_Labels.csd", "[2]", "expected 1, or 7"]),
        (labelled([[np.nan]]), {}, ["Opinion_Labels.csd", "every label is missing"]),
        (
            LABELS,
            {"glove": dict.fromkeys(LABELS, (NO_STEPS, TWO))},
            ["Opinion_Labels.csd", "no item has a label and language"],
        ),
    ],
)
def test_wrong_sequences_are_named(
    tmp_path: Path, labels: Entries, sequences: dict[str, Entries], words: list[str]
) -> None:
    fails(make(tmp_path, labels, **sequences), words=words)


def test_the_same_steps_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.data.formats.layouts.FREE", 1 << 20)
    labels: Entries = {"v": (np.ones((300, 1)), np.tile([[0, 1e9]], (300, 1)))}
    covarep: Entries = {"v": (np.ones((5000, 3), "f4"), np.ones((5000, 2)))}
    fails(make(tmp_path, labels, covarep=covarep), words=["covarep.csd", "GiB of contents"])


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2, 3))
    group.create_virtual_dataset("features", layout)


def features(*shape: int, **options: Any) -> Callable[[h5py.Group], object]:
    return lambda group: group.create_dataset("features", shape, "f4", **options)


WIDE = {"chunks": (600, 1 << 20), "maxshape": (None, None), "compression": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (virtual, "in another file"),
        (features(2, 3, external=[("raw", 0, 24)]), "in another file"),
        (features(1 << 40, 3, chunks=(1024, 3)), "GiB"),
        (features(2, 3, **WIDE), "GiB of contents"),
        (
            lambda group: group.parent.__setitem__("x", h5py.ExternalLink("other.h5", "/")),
            "'x' is not a group in this file",
        ),
        (lambda group: group.file.create_group("more"), "2 sequences"),
    ],
)
def test_wrong_storage_is_named(
    tmp_path: Path, change: Callable[[h5py.Group], object], words: str
) -> None:
    make(tmp_path, {**LABELS, "x": ([[1.0]], [[0.0, 1.0]])})
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "glove.csd", "r+") as file:
        group = file["glove/data/v[0]"]
        del group["features"]
        change(group)
        if "features" not in group:
            group["features"] = STEPS
    fails(tmp_path, words=["glove.csd", words])


def test_the_name_of_a_sequence_tells_labels_before_that_of_a_file(tmp_path: Path) -> None:
    make(tmp_path)
    write(tmp_path, "labelled_audio", "covarep", WORDS)
    write(tmp_path, "Opinion_Labels", "All Labels", LABELS)
    assert set(read(tmp_path).items.sequences) == {"language", "audio"}


def test_damaged_files_and_wrong_numbers_of_them(tmp_path: Path) -> None:
    make(tmp_path)
    for raw in (b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500)):
        (tmp_path / "glove.csd").write_bytes(raw)
        fails(tmp_path, words=["glove.csd", "cannot be read as HDF5"])
    make(tmp_path)
    fails(tmp_path / "Opinion_Labels.csd", words=["no modality"])
    write(tmp_path, "more_labels", "More", LABELS)
    fails(tmp_path, words=["2 of", "expected one", "'label'"])
    for path in tmp_path.glob("*abels.csd"):
        path.unlink()
    fails(tmp_path, words=["0 of", "expected one", "'label'"])


def test_labels_of_a_sentiment_alone_are_no_emotions(tmp_path: Path) -> None:
    emotions: dict[str, Any] = {"task": Task.multilabel, "emotions": True}
    fails(make(tmp_path), words=["has no emotions"], **emotions)


@pytest.mark.parametrize("place", ["glove", "glove/data", "glove/data/v[0]"])
def test_the_file_that_a_link_leads_to_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    make(tmp_path)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", "other", "glove", WORDS)
    with h5py.File(tmp_path / "glove.csd", "r+") as file:
        del file[place]
        file[place] = h5py.ExternalLink(str(other), place)
    opened: list[Any] = []
    real = h5py.Group.get

    def get(group: Any, name: str, *rest: Any, **options: Any) -> Any:
        link = real(group, name, getlink=True)
        if isinstance(link, h5py.ExternalLink) and not options.get("getlink"):
            opened.append(link.filename)
        return real(group, name, *rest, **options)

    monkeypatch.setattr(h5py.Group, "get", get)
    fails(tmp_path, words=["glove.csd", "not a group in this file"])
    assert not opened


def test_words_go_into_the_intervals_of_their_videos_labels(tmp_path: Path) -> None:
    """After word alignment the segment v[1] is the second word, and no label's."""
    labels = {"v": ([[1.0], [2.0]], [[0.0, 2.0], [2.0, 4.0]])}
    words = {f"v[{word}]": ([[word + 1.0]], [[word, word + 1.0]]) for word in (3, 1, 0, 2)}
    items = read(make(tmp_path, labels, glove={**words, "w[0]": ([[9.0]], [[0.0, 1.0]])})).items
    assert items.ids.tolist() == ["v[0]", "v[1]"]
    language = items.sequences["language"]
    assert [language[item].ravel().tolist() for item in range(2)] == [[1, 2], [3, 4]]
    assert items.cleaning == {"segments of language without a label, left out": 1}


def test_labels_in_other_units_of_time_are_refused(tmp_path: Path) -> None:
    labels = {"v": ([[1.0], [2.0]], [[1000.0, 2000.0], [2000.0, 4000.0]])}
    make(tmp_path, labels, COVAREP={"v": ([[1.0], [2.0]], [[0.0, 1.0], [1.0, 2.0]])})
    fails(tmp_path, words=["COVAREP.csd", "no item has a step in its label's interval"])


def test_what_a_mac_leaves_behind_is_ignored_and_counted(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "._glove.csd").write_bytes(b"\0\5\26\7")
    assert read(tmp_path).items.cleaning["files such as ._glove.csd, ignored"] == 1
