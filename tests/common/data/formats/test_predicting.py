"""Every format read to predict: labels are not needed, and no item is lost for what it lacks."""

from collections.abc import Callable
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

Content = dict[str, dict[str, Any]]


def read(path: Path | list[Path], format: str = "auto", **options: Any) -> Source:
    paths = path if isinstance(path, list) else [path]
    return read_source(paths, format, ReadSettings(**{"predicting": True, **options}))[0]


def check_all(
    source: Source,
    truth: list[Utterance] = UTTERANCES,
    *,
    split: bool = False,
    modalities: tuple[str, ...] = MODALITIES,
) -> None:
    """Every item is there, with what it has, and without a label."""
    check(source, truth, split=split, modalities=modalities, label=lambda _: np.nan)
    if "language" in modalities:
        assert (~source.items.sequences["language"].present).sum() == 5
        assert source.items.cleaning.get("items without language", 5) == 5
    assert not any("dropped" in what for what in source.items.cleaning)


CONTENTS: dict[str, Callable[[], Content]] = {
    "multibench": lambda: writers.multibench_content(UTTERANCES),
    "mult": lambda: writers.mult_content(UTTERANCES, aligned=False),
    "mmsa": lambda: writers.mmsa_content(UTTERANCES, bert=False),
}
LABELS = ("labels", "regression_labels", "classification_labels", "annotations")
each_pickle = pytest.mark.parametrize("format", CONTENTS)


def pickled(folder: Path, format: str, change: Callable[[str, Any], Any]) -> Path:
    """Write a pickle of other values by key; what becomes `...` is left out."""
    changed = {
        name: {key: new for key, old in split.items() if (new := change(key, old)) is not ...}
        for name, split in CONTENTS[format]().items()
    }
    return writers.write_pickle(folder / "data.pkl", changed, 4)


def without(*keys: str) -> Callable[[str, Any], Any]:
    return lambda key, old: ... if key in keys else old


def truth_of(format: str) -> list[Utterance]:
    return writers.widened(UTTERANCES, 300) if format == "mmsa" else UTTERANCES


@each_pickle
@pytest.mark.parametrize(
    "make",
    [
        lambda old: ...,
        lambda old: np.full(np.shape(old), np.nan),
        lambda old: ["?"] * len(old),
        lambda old: np.ones((1, 9)),
        lambda old: None,
    ],
    ids=["none", "nan", "text", "another shape", "null"],
)
def test_pickles_without_labels(tmp_path: Path, format: str, make: Callable[[Any], Any]) -> None:
    path = pickled(tmp_path, format, lambda key, old: make(old) if key in LABELS else old)
    check_all(read(path), truth_of(format), split=True)


@each_pickle
def test_pickles_that_lack_labels_and_a_modality(tmp_path: Path, format: str) -> None:
    path = pickled(tmp_path, format, without("vision", *LABELS))
    assert read_source([path], "auto", ReadSettings(predicting=True))[1] == format
    for asked in ((), MODALITIES, ("vision", "language", "audio")):
        source = read(path, modalities=asked)
        check_all(source, truth_of(format), split=True, modalities=("language", "audio"))
    only = read(path, modalities=("audio", "vision"))
    check_all(only, truth_of(format), split=True, modalities=("audio",))
    words = "has no modality 'vision'; it has language, audio"
    refusal(lambda: read(path, modalities=("vision",)), words)
    words = "regression_labels" if format == "mmsa" else "labels"
    words = f"it lacks '{words}', which the format needs"
    refusal(lambda: read(path, predicting=False), words)


def test_words_beside_the_features_tell_formats_apart_only_without_labels(tmp_path: Path) -> None:
    path = pickled(tmp_path, "mmsa", without(*LABELS))
    refusal(lambda: read(path, "multibench"), "is a pickle, but not as ")
    content = CONTENTS["multibench"]()
    for split in content.values():
        split["raw_text"] = ["words"] * len(split["id"])
    path = writers.write_pickle(tmp_path / "data.pkl", content, 4)
    source, format, _ = read_source([path], "auto", ReadSettings())
    assert (format, len(source.items)) == ("multibench", COUNT - 5)


# Computational sequences ------------------------------------------------------------------------


def labels_file(folder: Path) -> Path:
    return folder / writers.CSD_LABELS[0]


def test_sequences_without_labels(tmp_path: Path) -> None:
    paths = writers.write_csd(tmp_path, UTTERANCES)
    labels_file(tmp_path).unlink()
    check_all(read(tmp_path))
    check_all(read(paths[:-1]))
    items = read(tmp_path).items
    assert items.groups.tolist() == [name.rpartition("[")[0] for name in items.ids.tolist()]


def sequence(folder: Path, root: str, *names: str) -> None:
    with h5py.File(folder / f"{root}.csd", "w") as file:
        for name in names:
            file[f"{root}/data/{name}/features"] = np.ones((2, 3))
            file[f"{root}/data/{name}/intervals"] = np.ones((2, 2))


def test_segments_follow_each_other(tmp_path: Path) -> None:
    """Whichever file has them."""
    sequence(tmp_path, "COVAREP", "w[0]", "v[10]")
    sequence(tmp_path, "FACET", "v[2]", "w")
    assert read(tmp_path).items.ids.tolist() == ["v[2]", "v[10]", "w", "w[0]"]


def test_whole_videos_without_labels_are_the_items(tmp_path: Path) -> None:
    writers.write_csd(tmp_path, UTTERANCES, per_video=True)
    labels_file(tmp_path).unlink()
    items = read(tmp_path).items
    videos = writers.by_video(UTTERANCES)
    assert sorted(items.ids.tolist()) == sorted(videos)
    with h5py.File(tmp_path / writers.CSD["audio"][0]) as file:
        for number, video in enumerate(items.ids.tolist()):
            frames = file[f"COVAREP/data/{video}/features"][()]
            np.testing.assert_array_equal(items.sequences["audio"][number], frames)


@pytest.mark.parametrize("per_video", [False, True])
def test_sequences_with_labels_that_are_broken(tmp_path: Path, per_video: bool) -> None:
    """Labels still say which segments are items."""
    writers.write_csd(tmp_path, UTTERANCES, per_video=per_video)
    with h5py.File(labels_file(tmp_path), "r+") as file:
        data = file[f"{writers.CSD_LABELS[1]}/data"]
        for number, segment in enumerate(list(data)):
            rows = len(data[segment]["intervals"])
            del data[segment]["features"]
            data[f"{segment}/features"] = np.full((rows, 3 + number % 2), np.nan)
    check_all(read(tmp_path))


def test_sequences_that_lack_a_modality(tmp_path: Path) -> None:
    writers.write_csd(tmp_path, UTTERANCES)
    (tmp_path / writers.CSD["vision"][0]).unlink()
    for labels in (True, False):
        if not labels:
            labels_file(tmp_path).unlink()
        check_all(read(tmp_path, modalities=MODALITIES), modalities=("language", "audio"))
        words = "has no modality 'vision'; it has"
        refusal(lambda: read(tmp_path, modalities=("vision",)), words)


def test_sequences_of_one_file(tmp_path: Path) -> None:
    writers.write_csd(tmp_path, UTTERANCES)
    items = read(tmp_path / writers.CSD["audio"][0], modalities=MODALITIES).items
    assert list(items.sequences) == ["audio"]
    assert len(items) == len(UTTERANCES) - 4
    refusal(lambda: read(labels_file(tmp_path)), "has no modality")
    sequence(tmp_path, "long", "x" * 1001)
    words = "has 1001 characters, expected 1000 at most"
    refusal(lambda: read(tmp_path / "long.csd"), words)


def npz(folder: Path, **changes: Any) -> Path:
    """Write a file of utterances; None takes an array out."""
    content = {**writers.npz_content(UTTERANCES), **changes}
    path = folder / "data.npz"
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"label": None},
        {"label": np.full(30, np.nan)},
        {"label": np.array(["?"] * 30)},
        {"label": np.ones((7, 3))},
        {"label": np.array([{}] * 30, object)},
        {"label": None, "split": np.array(["later"] * 30)},
        {"label": None, "split": np.ones(2)},
    ],
    ids=["none", "nan", "text", "another shape", "objects", "another split", "a broken split"],
)
def test_arrays_without_labels(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_all(read(npz(tmp_path, **changes), group="video"))


def test_arrays_that_lack_a_modality(tmp_path: Path) -> None:
    path = npz(tmp_path, label=None, vision=None, vision_offsets=None)
    source = read(path, modalities=("vision", "audio", "language"), group="video")
    check_all(source, modalities=("audio", "language"))
    assert list(source.items.sequences) == ["audio", "language"]
    words = "has no array 'vision' (modalities)"
    refusal(lambda: read(path, modalities=("vision",)), words)


def test_arrays_of_vectors_and_their_context(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, audio=np.arange(4.0)[:, None], video=["a", "a", "b", "b"])
    found = read(path, group="video", context=1).items.sequences["audio"]
    assert [found[item].ravel().tolist() for item in range(4)] == [[0], [0, 1], [2], [2, 3]]
    refusal(lambda: read(path, context=1), "context=1 needs group")


OFFSETS, THREE = "'audio_offsets' must rise", {"audio": np.ones((3, 2))}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"audio": np.float32(1)}, "audio is a single value, expected an item a row"),
        ({"audio": np.ones(3)}, "'audio' is float64 of shape (3,)"),
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


def tabled(folder: Path, kind: str, arrays: str, **changes: Any) -> Path:
    """Write a table of utterances; None takes a column out."""
    path = writers.write_table(folder, UTTERANCES, kind=kind, arrays=arrays)
    columns = {**writers.table_columns(UTTERANCES), **changes}
    return writers.write_columns(
        path, {name: column for name, column in columns.items() if column is not None}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"label": None},
        {"label": ["?"] * 30},
        {"label": None, "split": ["later"] * 30},
        {"label": None, "split": [""] * 30, "group": [""] * 30},
    ],
    ids=["none", "text", "another split", "empty"],
)
@pytest.mark.parametrize(("kind", "arrays"), [("csv", "npy"), ("parquet", "npz-by-id")])
def test_tables_without_labels(
    tmp_path: Path, kind: str, arrays: str, changes: dict[str, Any]
) -> None:
    items = read(tabled(tmp_path, kind, arrays, **changes)).items
    assert items.ids.tolist() == [item.name for item in UTTERANCES]
    assert np.isnan(items.labels).all()
    assert items.labels.shape == (30,)
    for name in MODALITIES:
        for number, item in enumerate(UTTERANCES):
            np.testing.assert_array_equal(items.sequences[name][number], item.sequences[name])


def test_tables_that_lack_a_modality(tmp_path: Path) -> None:
    path = tabled(tmp_path, "csv", "npy", label=None)
    (tmp_path / "vision.npy").unlink()
    assert set(read(path, modalities=MODALITIES).items.sequences) == {"language", "audio"}
    refusal(lambda: read(path, modalities=("vision",)), "has no vision")


def test_context_in_a_table_still_needs_its_groups(tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", np.arange(3.0)[:, None])
    path = writers.write_columns(tmp_path / "a.csv", {"id": ["a", "b", "c"]})
    refusal(lambda: read(path, context=1), "context=1 needs groups")
    path = writers.write_columns(tmp_path / "a.csv", {"id": ["a", "b", "c"], "group": [1, 1, 2]})
    found = read(path, context=1).items.sequences["audio"]
    assert [found[item].ravel().tolist() for item in range(3)] == [[0], [0, 1], [2]]


def test_labels_are_read_of_what_there_is(tmp_path: Path) -> None:
    """To evaluate, a source need not have all modalities, but its labels."""
    lenient: dict[str, Any] = {"predicting": False, "lenient": True, "modalities": MODALITIES}
    kept = ("language", "audio")
    truth = [item for item in UTTERANCES if not item.zero_text]
    path = pickled(tmp_path, "multibench", without("vision"))
    check(read(path, **lenient), truth, modalities=kept)
    path = npz(tmp_path, vision=None, vision_offsets=None)
    check(read(path, **lenient, group="video"), UTTERANCES, modalities=kept)
    path = tabled(tmp_path / "t", "csv", "npy")
    (tmp_path / "t" / "vision.npy").unlink()
    check(read(path, **lenient), UTTERANCES, modalities=kept)
    writers.write_csd(tmp_path / "c", UTTERANCES)
    (tmp_path / "c" / writers.CSD["vision"][0]).unlink()
    check(read(tmp_path / "c", **lenient), truth, split=False, modalities=kept)
    path = npz(tmp_path, label=np.array(["?"] * COUNT))
    refusal(lambda: read(path, **lenient), "label is <U1")
