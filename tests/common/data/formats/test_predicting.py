"""Every format read to predict: labels are not needed, and no item is lost for what it lacks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_checks import refusal

from common.data.formats.registry import read_source
from common.data.source import ReadSettings, Source
from tests.common.data.formats import writers
from tests.common.data.formats.test_round_trips import check
from tests.common.data.formats.writers import MODALITIES, Utterance, make_utterances

UTTERANCES = make_utterances(3, zero_text=5, missing_audio=4)
COUNT = len(UTTERANCES)
LABELS = ("label", "labels", "regression_labels", "classification_labels", "annotations")

#: Key and value to another value, or `...` to leave it out.
Change = Callable[[str, Any], Any]
CONTENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "multibench": lambda: writers.multibench_content(UTTERANCES),
    "mult": lambda: writers.mult_content(UTTERANCES, aligned=False),
    "mmsa": lambda: writers.mmsa_content(UTTERANCES, bert=False),
    "npz": lambda: writers.npz_content(UTTERANCES),
    "csv": lambda: writers.table_columns(UTTERANCES),
    "parquet": lambda: writers.table_columns(UTTERANCES),
}
PICKLES, TABLES = ("multibench", "mult", "mmsa"), ("csv", "parquet")


def without(*keys: str) -> Change:
    return lambda key, old: ... if key in keys else old


def changed(content: dict[str, Any], change: Change) -> dict[str, Any]:
    return {key: new for key, old in content.items() if (new := change(key, old)) is not ...}


def write(
    folder: Path, format: str, change: Change = lambda _, old: old, lost: Sequence[str] = ()
) -> list[Path]:
    """Write a source with other values, and without some modalities."""
    folder.mkdir(exist_ok=True)
    if format == "csd":
        files = dict(
            zip((*MODALITIES, "label"), writers.write_csd(folder, UTTERANCES), strict=True)
        )
        return [file for name, file in files.items() if name not in lost and change(name, 0) == 0]
    content = CONTENTS[format]()
    if format in PICKLES:
        keys = [writers.PICKLED_NAMES[name] for name in lost]
        splits = {
            name: changed(changed(split, without(*keys)), change) for name, split in content.items()
        }
        return [writers.write_pickle(folder / "data.pkl", splits, 4)]
    content = changed(content, change)
    if format == "npz":
        keys = [*lost, *(f"{name}_offsets" for name in lost)]
        np.savez(folder / "data.npz", **changed(content, without(*keys)))
        return [folder / "data.npz"]
    arrays: Any = {"csv": "npy", "parquet": "npz-by-id"}[format]
    kept = [name for name in MODALITIES if name not in lost]
    table = writers.write_table(folder, UTTERANCES, kind=format, arrays=arrays, modalities=kept)
    return [writers.write_columns(table, content)]


def read(paths: Path | list[Path], format: str = "auto", **options: Any) -> Source:
    listed = paths if isinstance(paths, list) else [paths]
    return read_source(listed, format, ReadSettings(**{"predicting": True, **options}))[0]


def check_all(source: Source, format: str, modalities: Sequence[str] = MODALITIES) -> None:
    """Every item is there, with what it has, and without a label."""
    truth: list[Utterance] = UTTERANCES
    if format == "mmsa":
        truth = writers.widened(truth, 300)
    elif format in TABLES:  # groups are not read
        truth = [replace(item, video=item.name) for item in truth]
    check(source, truth, split=format in PICKLES, modalities=modalities, label=lambda _: np.nan)
    if "language" in modalities:
        assert (~source.items.sequences["language"].present).sum() == 5
        assert source.items.cleaning.get("items without language", 5) == 5
    assert not any("dropped" in what for what in source.items.cleaning)


def group_of(format: str) -> dict[str, str]:
    return {"group": "video"} if format == "npz" else {}


INSTEAD: dict[str, Callable[[Any], Any]] = {
    "none": lambda old: ...,
    "nan": lambda old: np.full(np.shape(old), np.nan),
    "text": lambda old: ["?"] * len(old),
    "another shape": lambda old: np.ones((1, 9)),
    "null": lambda old: None,
}


@pytest.mark.parametrize(
    ("format", "instead"),
    [
        (format, instead)
        for format in CONTENTS
        for instead in INSTEAD
        if not (format in TABLES and instead in ("another shape", "null"))
    ],
)
def test_labels_are_not_needed(tmp_path: Path, format: str, instead: str) -> None:
    make = INSTEAD[instead]
    paths = write(tmp_path, format, lambda key, old: make(old) if key in LABELS else old)
    check_all(read(paths, **group_of(format)), format)


@pytest.mark.parametrize(
    ("format", "columns"),
    [
        ("npz", {"split": np.array(["later"] * COUNT)}),
        ("npz", {"split": np.ones(2)}),
        *((kind, {"split": ["later"] * COUNT}) for kind in TABLES),
        *((kind, {"split": [""] * COUNT, "group": [""] * COUNT}) for kind in TABLES),
    ],
)
def test_sides_and_groups_are_not_read(
    tmp_path: Path, format: str, columns: dict[str, Any]
) -> None:
    paths = write(tmp_path, format, lambda key, old: columns.get(key, old))
    check_all(read(paths, **group_of(format)), format)


LACKS = dict.fromkeys((*PICKLES, "csd"), "has no modality 'vision'; it has")
LACKS |= {"npz": "has no array 'vision' (modalities)", "csv": "has no vision", "parquet": "has no"}


@pytest.mark.parametrize("format", LACKS)
def test_modalities_that_are_not_there_are_left_out(tmp_path: Path, format: str) -> None:
    paths, group = write(tmp_path, format, without(*LABELS), ["vision"]), group_of(format)
    assert read_source(paths, "auto", ReadSettings(predicting=True, **group))[1] in (
        format,
        "table",
    )
    for asked in ((), MODALITIES, ("vision", "language", "audio")):
        check_all(read(paths, modalities=asked, **group), format, ("language", "audio"))
    if format != "csd":  # which has no item without a segment
        check_all(read(paths, modalities=("audio", "vision"), **group), format, ("audio",))
    refusal(lambda: read(paths, modalities=("vision",), **group), LACKS[format])
    refusal(lambda: read(paths, predicting=False, **group), "label")


@pytest.mark.parametrize("format", LACKS)
def test_labels_are_read_of_what_there_is(tmp_path: Path, format: str) -> None:
    """To evaluate, a source need not have all modalities, but its labels."""
    lenient: dict[str, Any] = {"predicting": False, "lenient": True, "modalities": MODALITIES}
    source = read(write(tmp_path, format, lost=["vision"]), **lenient, **group_of(format))
    truth = writers.widened(UTTERANCES, 300) if format == "mmsa" else UTTERANCES
    drops = format in (*PICKLES, "csd")
    kept = [item for item in truth if not (drops and item.zero_text)]
    check(
        source,
        kept,
        split=format != "csd",
        modalities=("language", "audio"),
    )


def test_words_beside_the_features_tell_formats_apart_only_without_labels(tmp_path: Path) -> None:
    paths = write(tmp_path, "mmsa", without(*LABELS))
    refusal(lambda: read(paths, "multibench"), "is a pickle, but not as ")
    content = CONTENTS["multibench"]()
    for split in content.values():
        split["raw_text"] = ["words"] * len(split["id"])
    path = writers.write_pickle(tmp_path / "data.pkl", content, 4)
    source, format, _ = read_source([path], "auto", ReadSettings())
    assert (format, len(source.items)) == ("multibench", COUNT - 5)


# Computational sequences ------------------------------------------------------------------------


def sequence(folder: Path, root: str, *names: str) -> Path:
    entries = dict.fromkeys(names, (np.ones((2, 3)), np.ones((2, 2))))
    return writers.write_sequence(folder / f"{root}.csd", root, entries)


def test_segments_follow_each_other(tmp_path: Path) -> None:
    """Whichever file has them."""
    sequence(tmp_path, "COVAREP", "w[0]", "v[10]")
    sequence(tmp_path, "FACET", "v[2]", "w")
    items = read(tmp_path).items
    assert items.ids.tolist() == ["v[2]", "v[10]", "w", "w[0]"]
    assert items.groups.tolist() == ["v", "v", "w", "w"]


def test_whole_videos_without_labels_are_the_items(tmp_path: Path) -> None:
    writers.write_csd(tmp_path, UTTERANCES, per_video=True)[-1].unlink()
    items = read(tmp_path).items
    assert sorted(items.ids.tolist()) == sorted(writers.by_video(UTTERANCES))
    with h5py.File(tmp_path / writers.CSD["audio"][0]) as file:
        for number, video in enumerate(items.ids.tolist()):
            frames = file[f"COVAREP/data/{video}/features"][()]
            np.testing.assert_array_equal(items.sequences["audio"][number], frames)


@pytest.mark.parametrize("per_video", [False, True])
def test_sequences_with_labels_that_are_broken(tmp_path: Path, per_video: bool) -> None:
    """Labels still say which segments are items."""
    labels = writers.write_csd(tmp_path, UTTERANCES, per_video=per_video)[-1]
    with h5py.File(labels, "r+") as file:
        data = file[f"{writers.CSD_LABELS[1]}/data"]
        for number, segment in enumerate(list(data)):
            rows = len(data[segment]["intervals"])
            del data[segment]["features"]
            data[f"{segment}/features"] = np.full((rows, 3 + number % 2), np.nan)
    check_all(read(tmp_path), "csd")


def test_sequences_of_one_file(tmp_path: Path) -> None:
    *paths, labels = writers.write_csd(tmp_path, UTTERANCES)
    items = read(paths[1], modalities=MODALITIES).items
    assert list(items.sequences) == ["audio"]
    assert len(items) == COUNT - 4
    refusal(lambda: read(labels), "has no modality")
    path = sequence(tmp_path, "long", "x" * 1001)
    refusal(lambda: read(path), "has 1001 characters, expected 1000 at most")


# Arrays and tables ------------------------------------------------------------------------------


def test_context_needs_its_groups(tmp_path: Path) -> None:
    audio = np.arange(4.0)[:, None]
    np.savez(tmp_path / "a.npz", audio=audio, video=list("aabb"))
    refusal(lambda: read(tmp_path / "a.npz", context=1), "context=1 needs group")
    np.save(tmp_path / "audio.npy", audio)
    table = writers.write_columns(tmp_path / "b.csv", {"id": list("abcd")})
    refusal(lambda: read(table, context=1), "context=1 needs groups")
    writers.write_columns(table, {"id": list("abcd"), "group": [1, 1, 2, 2]})
    for path, group in ((tmp_path / "a.npz", "video"), (table, None)):
        sequences = read(path, context=1, group=group, modalities=("audio",)).items.sequences
        rows = [sequences["audio"][item].ravel().tolist() for item in range(4)]
        assert rows == [[0], [0, 1], [2], [2, 3]]


OFFSETS, THREE = "'audio_offsets' must rise", {"audio": np.ones((3, 2))}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"audio": np.float32(1)}, "audio is a single value, expected an item a row"),
        ({"audio": np.ones((3, 1, 1, 1))}, "'audio' is float64 of shape (3, 1, 1, 1)"),
        ({"audio": np.array(["a"])}, "'audio' is <U1 of shape (1,)"),
        (THREE | {"audio_offsets": np.empty(0, int)}, OFFSETS),
        (THREE | {"audio_offsets": np.int64(3)}, OFFSETS),
        (THREE | {"audio_offsets": np.array([0, 2])}, OFFSETS),
        ({"audio": np.float32(1), "audio_offsets": np.array([0, 2])}, "audio is a single value"),
        (THREE | {"vision": np.ones((4, 2))}, "vision has 4 items but audio has 3; if it is no mo"),
        (THREE | {"id": np.array(["a"])}, "id has shape (1,), expected one per item of audio"),
    ],
)
def test_arrays_that_are_broken(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refusal(lambda: read(tmp_path / "a.npz", modalities=("audio", "vision")), words)


def test_a_second_file_without_any_modality(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", audio=np.ones((3, 2)))
    np.savez(tmp_path / "b.npz", note=np.arange(3))
    refusal(lambda: read([tmp_path / "a.npz", tmp_path / "b.npz"]), "b.npz has no array")
