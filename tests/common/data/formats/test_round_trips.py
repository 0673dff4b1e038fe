"""Every published format is read back, item by item, as the truth that it was written from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.formats.registry import read_source
from common.data.source import EMOTIONS, ReadSettings, Source
from common.task import Task
from tests.common.data.formats import writers
from tests.common.data.formats.writers import MODALITIES, Utterance, make_utterances

ZERO_TEXT = "items whose language is all zero, dropped"
NO_LABEL = "items without a label, dropped"
REGRESSION = ReadSettings()
MULTILABEL = ReadSettings(task=Task.multilabel, emotions=True)

UTTERANCES = make_utterances(0, missing_audio=4)
ALIGNED = make_utterances(1, aligned=True, missing_audio=4)
ZEROS = make_utterances(2, zero_text=5, missing_audio=4)


def read(paths: Path | Sequence[Path], format: str, settings: ReadSettings = REGRESSION) -> Source:
    """Read a source that is to be recognised, and again by its name."""
    paths = [paths] if isinstance(paths, Path) else list(paths)
    source, name, why = read_source(paths, "auto", settings)
    assert name == format
    assert why and len(why.splitlines()) == 1
    named, name, _ = read_source(paths, format, settings)
    assert name == format
    np.testing.assert_array_equal(named.items.ids, source.items.ids)
    return source


def positions(splits: Sequence[str], videos: Sequence[str]) -> dict[tuple[str, str], list[int]]:
    """Return where the items of each video on each side are, in order."""
    found: dict[tuple[str, str], list[int]] = {}
    for item, key in enumerate(zip(splits, videos, strict=True)):
        found.setdefault((str(key[0]), str(key[1])), []).append(item)
    return found


def sentiment(item: Utterance) -> float:
    return item.sentiment


def as_is(values: np.ndarray) -> np.ndarray:
    return values


def check(
    source: Source,
    truth: Sequence[Utterance],
    *,
    split: bool = True,
    modalities: Sequence[str] = MODALITIES,
    label: Callable[[Utterance], Any] = sentiment,
    frames: Callable[[np.ndarray], np.ndarray] = as_is,
    label_dtype: type = np.float32,
) -> None:
    """Compare what was read with the truth, item by item.

    Parameters
    ----------
    split
        Whether the format says the splits.
    label
        The label of an utterance.
    frames
        What becomes of its frames.
    label_dtype
        Type of the labels.
    """
    items = source.items
    read_at = positions(source.splits, items.groups)
    true_at = positions([t.split if split else "" for t in truth], [t.video for t in truth])
    assert {k: len(v) for k, v in read_at.items()} == {k: len(v) for k, v in true_at.items()}
    assert len(items) == len(truth) == len(set(items.ids.tolist()))
    assert items.ids.dtype.kind == items.groups.dtype.kind == source.splits.dtype.kind == "U"
    order = [item for key in true_at for item in read_at[key]]
    expected = [truth[item] for key in true_at for item in true_at[key]]
    labels = np.array([label(item) for item in expected]).astype(label_dtype)
    np.testing.assert_array_equal(items.labels[order], labels, strict=True)
    assert set(items.sequences) == set(modalities)
    for modality in modalities:
        sequences = items.sequences[modality]
        for index, item in zip(order, expected, strict=True):
            wanted = frames(item.sequences[modality])
            np.testing.assert_array_equal(
                sequences[index], wanted, err_msg=f"{modality} of {item.name}", strict=True
            )


def six(item: Utterance) -> list[bool]:
    return [value > 0 for value in item.emotions]


def check_emotions(source: Source, truth: Sequence[Utterance], *, split: bool = True) -> None:
    """Compare labels that are the six emotions."""
    assert source.items.labels.shape == (len(truth), 6)
    assert source.items.label_names == EMOTIONS
    check(source, truth, split=split, label=six)


def with_text(truth: Sequence[Utterance]) -> list[Utterance]:
    return [item for item in truth if not item.zero_text]


def last(steps: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values[-steps:]


# ---- One variant of each format, for what all of them do ------------------------------

Write = Callable[[Path, list[Utterance]], Path | list[Path]]


def multibench(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_multibench(folder / "data.pkl", items)


def mult(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_mult(folder / "data.pkl", items, aligned=False)


def python2(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_python2(folder / "data.pkl", items)


def mmsa_raw(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_mmsa(folder / "data.pkl", items, bert=False)


def csd(folder: Path, items: list[Utterance]) -> Path:
    writers.write_csd(folder / "csd", items)
    return folder / "csd"


def csd_videos(folder: Path, items: list[Utterance]) -> list[Path]:
    return writers.write_csd(folder / "csd", items, per_video=True)


def npz(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_npz(folder / "data.npz", items)


def table(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_table(folder, items)


def table_by_id(folder: Path, items: list[Utterance]) -> Path:
    return writers.write_table(folder, items, kind="parquet", arrays="safetensors-by-id")


#: Format, how it is written, how its language is widened, and whether it says splits.
FORMATS: dict[str, tuple[str, Write, int, bool]] = {
    "multibench": ("multibench", multibench, 5, True),
    "mult": ("mult", mult, 5, True),
    "python 2": ("mult", python2, 5, True),
    "mmsa": ("mmsa", mmsa_raw, 300, True),
    "csd": ("csd", csd, 5, False),
    "csd of videos": ("csd", csd_videos, 5, False),
    "npz": ("npz", npz, 5, True),
    "table": ("table", table, 5, True),
    "table by id": ("table", table_by_id, 5, True),
}
each_format = pytest.mark.parametrize("variant", FORMATS)


def settings_of(variant: str, **options: Any) -> ReadSettings:
    """Name the groups where the format has none of its own."""
    if FORMATS[variant][0] == "npz":
        options.setdefault("group", "video")
    return ReadSettings(**options)


def read_variant(
    folder: Path, variant: str, utterances: list[Utterance], **options: Any
) -> tuple[Source, list[Utterance]]:
    """Write and read; also return the truth, with the text as wide as the format makes it."""
    format, write, width, _ = FORMATS[variant]
    source = read(write(folder, utterances), format, settings_of(variant, **options))
    return source, writers.widened(utterances, width)


@each_format
def test_items_are_the_truth(tmp_path: Path, variant: str) -> None:
    source, truth = read_variant(tmp_path, variant, UTTERANCES)
    check(source, truth, split=FORMATS[variant][3])
    lengths = source.items.sequences["audio"].lengths
    assert (lengths == 0).sum() == 4
    assert source.items.not_finite()


@each_format
def test_the_last_steps_are_kept(tmp_path: Path, variant: str) -> None:
    source, truth = read_variant(tmp_path, variant, UTTERANCES, max_seq_len=3)
    check(source, truth, split=FORMATS[variant][3], frames=last(3))


@each_format
@pytest.mark.parametrize("modalities", [("audio",), ("vision", "language")])
def test_only_the_modalities_asked_for_are_read(
    tmp_path: Path, variant: str, modalities: tuple[str, ...]
) -> None:
    source, truth = read_variant(tmp_path, variant, UTTERANCES, modalities=modalities)
    check(source, truth, split=FORMATS[variant][3], modalities=modalities)


@each_format
def test_items_without_a_label_are_dropped_and_counted(tmp_path: Path, variant: str) -> None:
    some = [3, 17, 22]
    items = [
        replace(item, sentiment=np.nan) if index in some else item
        for index, item in enumerate(UTTERANCES)
    ]
    source, truth = read_variant(tmp_path, variant, items)
    kept = [item for index, item in enumerate(truth) if index not in some]
    check(source, kept, split=FORMATS[variant][3])
    assert source.items.cleaning[NO_LABEL] == len(some)


@pytest.mark.parametrize("variant", ["multibench", "mult", "python 2", "mmsa", "csd"])
def test_items_whose_text_is_zero_are_dropped_and_counted(tmp_path: Path, variant: str) -> None:
    source, truth = read_variant(tmp_path, variant, ZEROS)
    check(source, with_text(truth), split=FORMATS[variant][3])
    assert source.items.cleaning[ZERO_TEXT] == 5


@pytest.mark.parametrize("variant", FORMATS)
def test_where_all_text_is_there_none_is_counted(tmp_path: Path, variant: str) -> None:
    source, _ = read_variant(tmp_path, variant, UTTERANCES)
    assert ZERO_TEXT not in source.items.cleaning
    assert NO_LABEL not in source.items.cleaning


@each_format
def test_two_readings_are_equal(tmp_path: Path, variant: str) -> None:
    first, _ = read_variant(tmp_path, variant, UTTERANCES)
    second, _ = read_variant(tmp_path, variant, UTTERANCES)
    np.testing.assert_array_equal(first.items.ids, second.items.ids)
    np.testing.assert_array_equal(first.splits, second.splits)


# ---- MultiBench -----------------------------------------------------------------------


@pytest.mark.parametrize("label_shape", ["(N,1)", "(N,1,1)", "(N,7)", "(N,1,7)"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_multibench_labels(tmp_path: Path, pad: writers.Pad, label_shape: str) -> None:
    path = writers.write_multibench(
        tmp_path / "a.pkl", UTTERANCES, pad=pad, label_shape=label_shape
    )
    check(read(path, "multibench"), UTTERANCES)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("object_ids", [False, True])
@pytest.mark.parametrize("byte_ids", [False, True])
def test_multibench_ids(tmp_path: Path, protocol: int, object_ids: bool, byte_ids: bool) -> None:
    path = writers.write_multibench(
        tmp_path / "a.pkl",
        UTTERANCES,
        protocol=protocol,
        object_ids=object_ids,
        byte_ids=byte_ids,
    )
    check(read(path, "multibench"), UTTERANCES)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4"), (">f4", "f4"), (">f8", "f4")]
)
def test_multibench_types(tmp_path: Path, dtype: str, kept: str) -> None:
    path = writers.write_multibench(tmp_path / "a.pkl", UTTERANCES, dtype=dtype)
    source = read(path, "multibench")
    check(source, UTTERANCES, frames=lambda values: values.astype(dtype).astype(kept))


@pytest.mark.parametrize("label_shape", ["(N,7)", "(N,1,7)"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_multibench_emotions(tmp_path: Path, protocol: int, label_shape: str) -> None:
    path = writers.write_multibench(
        tmp_path / "a.pkl", ZEROS, label_shape=label_shape, protocol=protocol
    )
    check_emotions(read(path, "multibench", MULTILABEL), with_text(ZEROS))


@pytest.mark.parametrize("pad", ["left", "right"])
def test_multibench_of_full_length_has_no_padding(tmp_path: Path, pad: writers.Pad) -> None:
    path = writers.write_multibench(tmp_path / "a.pkl", ALIGNED, pad=pad, length=12)
    check(read(path, "multibench"), ALIGNED)


# ---- MulT -----------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("ids", ["S", "U", "object", "text object"])
def test_mult(tmp_path: Path, aligned: bool, pad: writers.Pad, ids: str) -> None:
    truth = ALIGNED if aligned else ZEROS
    path = writers.write_mult(tmp_path / "a.pkl", truth, aligned=aligned, pad=pad, ids=ids)
    check(read(path, "mult"), with_text(truth))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_mult_protocols(tmp_path: Path, protocol: int, dtype: str) -> None:
    path = writers.write_mult(tmp_path / "a.pkl", ALIGNED, protocol=protocol, dtype=dtype)
    check(read(path, "mult"), ALIGNED)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("ids", ["S", "object"])
def test_python_2(tmp_path: Path, aligned: bool, pad: writers.Pad, ids: str) -> None:
    path = writers.write_python2(tmp_path / "a.pkl", ZEROS, aligned=aligned, pad=pad, ids=ids)
    assert max(path.read_bytes()) > 127
    check(read(path, "mult"), with_text(ZEROS))


# ---- MMSA -----------------------------------------------------------------------------


@pytest.mark.parametrize("bert", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_mmsa(tmp_path: Path, bert: bool, aligned: bool, with_lengths: bool) -> None:
    utterances = ALIGNED if aligned else ZEROS
    path = writers.write_mmsa(
        tmp_path / "a.pkl", utterances, bert=bert, aligned=aligned, with_lengths=with_lengths
    )
    truth = writers.widened(with_text(utterances), 768 if bert else 300)
    check(read(path, "mmsa"), truth)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_mmsa_protocols(tmp_path: Path, protocol: int) -> None:
    path = writers.write_mmsa(tmp_path / "a.pkl", UTTERANCES, protocol=protocol)
    check(read(path, "mmsa"), writers.widened(UTTERANCES, 768))


@pytest.mark.parametrize("bert", [True, False])
def test_mmsa_classes(tmp_path: Path, bert: bool) -> None:
    path = writers.write_mmsa(tmp_path / "a.pkl", UTTERANCES, bert=bert)
    source = read(path, "mmsa", ReadSettings(task=Task.classification))
    check(
        source,
        writers.widened(UTTERANCES, 768 if bert else 300),
        label=lambda item: int(np.sign(item.sentiment)) + 1,
        label_dtype=np.int64,
    )


# ---- Computational sequences ----------------------------------------------------------


@pytest.mark.parametrize("per_video", [False, True])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_csd(tmp_path: Path, per_video: bool, whole_folder: bool) -> None:
    paths = writers.write_csd(tmp_path / "a", ZEROS, per_video=per_video)
    source = read(tmp_path / "a" if whole_folder else paths, "csd")
    check(source, with_text(ZEROS), split=False)
    assert source.items.cleaning[ZERO_TEXT] == 5


@pytest.mark.parametrize("per_video", [False, True])
def test_csd_emotions(tmp_path: Path, per_video: bool) -> None:
    writers.write_csd(tmp_path, UTTERANCES, per_video=per_video)
    check_emotions(read(tmp_path, "csd", MULTILABEL), UTTERANCES, split=False)


@pytest.mark.parametrize("first", range(4))
def test_csd_files_are_in_any_order(tmp_path: Path, first: int) -> None:
    paths = writers.write_csd(tmp_path, UTTERANCES)
    check(read([*paths[first:], *paths[:first]], "csd"), UTTERANCES, split=False)


# ---- Tables ---------------------------------------------------------------------------

ARRAYS = ["npy", "npz", "npz-by-id", "safetensors", "safetensors-by-id"]
each_table = pytest.mark.parametrize("kind", ["csv", "parquet"])
each_arrays = pytest.mark.parametrize("arrays", ARRAYS)


@each_table
@each_arrays
def test_table(tmp_path: Path, kind: Any, arrays: writers.TableArrays) -> None:
    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays=arrays)
    source = read(path, "table")
    check(source, UTTERANCES)
    assert set(source.items.ids.tolist()) == {item.name for item in UTTERANCES}


@each_table
@each_arrays
def test_table_with_its_arrays_named(
    tmp_path: Path, kind: Any, arrays: writers.TableArrays
) -> None:
    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays=arrays)
    suffix = arrays.removesuffix("-by-id")
    moved = (tmp_path / f"audio.{suffix}").rename(tmp_path / f"sound.{suffix}")
    settings = ReadSettings(arrays={"hearing": str(moved)}, modalities=("hearing",))
    truth = [replace(item, sequences={"hearing": item.sequences["audio"]}) for item in UTTERANCES]
    check(read(path, "table", settings), truth, modalities=("hearing",))


@each_table
@pytest.mark.parametrize("arrays", ["npy", "npz-by-id"])
def test_table_of_several_labels(tmp_path: Path, kind: Any, arrays: writers.TableArrays) -> None:
    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays=arrays)
    settings = ReadSettings(task=Task.multilabel, labels=EMOTIONS)
    check_emotions(read(path, "table", settings), UTTERANCES)


@each_table
@each_arrays
@pytest.mark.parametrize(("dtype", "kept"), [("f2", "f2"), ("f8", "f4")])
def test_table_types(
    tmp_path: Path, kind: Any, arrays: writers.TableArrays, dtype: str, kept: str
) -> None:
    def cast(values: np.ndarray) -> np.ndarray:
        return values.astype(dtype) if values.dtype.kind == "f" else values

    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays=arrays, transform=cast)
    check(read(path, "table"), UTTERANCES, frames=lambda values: cast(values).astype(kept))


@each_table
def test_table_of_one_modality(tmp_path: Path, kind: Any) -> None:
    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays="npz", modalities=["vision"])
    check(read(path, "table"), UTTERANCES, modalities=["vision"])
