"""Every published format is read back, item by item, as the truth that it was written from."""

import itertools
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

ZERO_TEXT = "items whose language is missing or all zero, dropped"
NO_LABEL = "items without a label, dropped"

UTTERANCES = make_utterances(0, missing_audio=4)
ALIGNED = make_utterances(1, aligned=True, missing_audio=4)
ZEROS = make_utterances(2, zero_text=5, missing_audio=4)


def positions(splits: Sequence[str], videos: Sequence[str]) -> dict[tuple[str, str], list[int]]:
    """Return where the items of each video on each side are, in order."""
    places: dict[tuple[str, str], list[int]] = {}
    for item, key in enumerate(zip(splits, videos, strict=True)):
        places.setdefault((str(key[0]), str(key[1])), []).append(item)
    return places


def check(
    source: Source,
    truth: Sequence[Utterance],
    *,
    split: bool = True,
    modalities: Sequence[str] = MODALITIES,
    label: Callable[[Utterance], Any] = lambda item: item.sentiment,
    frames: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    label_dtype: type = np.float64,
) -> None:
    """Compare what was read with the truth, item by item; `split` if the format says the sides."""
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
        for index, item in zip(order, expected, strict=True):
            np.testing.assert_array_equal(
                items.sequences[modality][index],
                frames(item.sequences[modality]),
                err_msg=f"{modality} of {item.name}",
                strict=True,
            )


def read(
    folder: Path, format: str, items: list[Utterance], options: dict[str, Any], **reading: Any
) -> tuple[Source, list[Utterance]]:
    """Write and read a source that is to be recognised, and again by its name.

    Returns the truth as well: with text as wide as the format makes it, and without items that it
    drops.
    """
    written = {name: value for name, value in options.items() if name != "first"}
    paths = [writers.WRITERS[format](folder, items, **written)]
    if (first := options.get("first")) is not None:  # its files by name, beginning with one of them
        files = sorted(paths[0].iterdir())
        paths = [*files[first:], *files[:first]]
    if format == "npz":  # the others have groups of their own
        reading.setdefault("group", "video")
    settings = ReadSettings(**reading)
    source, name, why = read_source(paths, "auto", settings)
    assert name == {"python 2": "mult"}.get(format, format)
    assert why and len(why.splitlines()) == 1
    again = read_source(paths, name, settings)[0]
    np.testing.assert_array_equal(again.items.ids, source.items.ids)
    np.testing.assert_array_equal(again.splits, source.splits)
    if format == "mmsa":
        items = writers.widened(items, 768 if options.get("bert", True) else 300)
    drops = format not in ("npz", "table") and not settings.predicting
    return source, [item for item in items if not (drops and item.zero_text)]


Variant = tuple[str, dict[str, Any]]
VARIANTS: dict[str, Variant] = {
    "multibench": ("multibench", {}),
    "mult": ("mult", {"aligned": False}),
    "python 2": ("python 2", {}),
    "mmsa": ("mmsa", {"bert": False}),
    "csd": ("csd", {}),
    "csd of videos": ("csd", {"per_video": True, "first": 0}),
    "npz": ("npz", {}),
    "table": ("table", {}),
    "table by id": ("table", {"kind": "parquet", "arrays": "safetensors-by-id"}),
}
each_variant = pytest.mark.parametrize(("format", "options"), VARIANTS.values(), ids=list(VARIANTS))


@each_variant
def test_items_are_the_truth(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    source, truth = read(tmp_path, format, UTTERANCES, options)
    check(source, truth, split=format != "csd")
    assert (source.items.sequences["audio"].lengths == 0).sum() == 4
    assert source.items.not_finite()
    lost = {w: n for w, n in source.items.cleaning.items() if "not used" not in w}
    assert lost == {"items without audio": 4}


@each_variant
@pytest.mark.parametrize("modalities", [("audio",), ("vision", "language")])
def test_only_what_is_asked_for_is_read(
    tmp_path: Path, format: str, options: dict[str, Any], modalities: tuple[str, ...]
) -> None:
    asked: dict[str, Any] = {"modalities": modalities}
    source, truth = read(tmp_path, format, UTTERANCES, options, max_seq_len=3, **asked)
    check(source, truth, split=format != "csd", frames=lambda values: values[-3:], **asked)


@each_variant
def test_items_without_a_label_or_text_are_dropped_and_counted(
    tmp_path: Path, format: str, options: dict[str, Any]
) -> None:
    (tmp_path / "zeros").mkdir()
    items = list(UTTERANCES)
    for index in (3, 17, 22):
        items[index] = replace(items[index], sentiment=np.nan)
    source, truth = read(tmp_path, format, items, options)
    kept = [item for item in truth if not np.isnan(item.sentiment)]
    check(source, kept, split=format != "csd")
    assert source.items.cleaning[NO_LABEL] == 3
    source, truth = read(tmp_path / "zeros", format, ZEROS, options)
    check(source, truth, split=format != "csd")
    assert source.items.cleaning.get(ZERO_TEXT, 0) == len(ZEROS) - len(truth)


Case = tuple[str, list[Utterance], dict[str, Any]]


def ways(format: str, utterances: list[Utterance], **options: Sequence[Any]) -> list[Case]:
    """All combinations of some options."""
    combined = itertools.product(*options.values())
    return [(format, utterances, dict(zip(options, each, strict=True))) for each in combined]


IDS = ("S", "U", "object", "text object")
PADS, PROTOCOLS, BOTH = ("left", "right"), (2, 3, 4, 5), (False, True)
ARRAYS = ("npy", "npz", "npz-by-id", "safetensors", "safetensors-by-id")
KINDS = ("csv", "parquet")
SHAPES = ("(N,1)", "(N,1,1)", "(N,7)", "(N,1,7)")
CASES = [
    *ways("multibench", UTTERANCES, pad=PADS, label_shape=SHAPES),
    *ways("multibench", UTTERANCES, protocol=PROTOCOLS, ids=IDS),
    *ways("multibench", UTTERANCES, dtype=("f2", "f4", "f8", ">f4", ">f8")),
    *ways("multibench", ALIGNED, pad=PADS, length=(12,)),  # no padding
    *ways("mult", ALIGNED, pad=PADS, ids=IDS),
    *ways("mult", ZEROS, aligned=(False,), pad=PADS, ids=IDS),
    *ways("mult", ALIGNED, protocol=PROTOCOLS, dtype=("f4", "f8")),
    *ways("python 2", ZEROS, aligned=BOTH, pad=PADS, ids=("S", "object")),
    *ways("mmsa", ALIGNED, aligned=(True,), bert=BOTH, with_lengths=BOTH),
    *ways("mmsa", ZEROS, bert=BOTH, with_lengths=BOTH),
    *ways("mmsa", UTTERANCES, protocol=PROTOCOLS),
    *ways("csd", ZEROS, per_video=BOTH, first=(None, 0, 1, 2, 3)),
    *ways("table", UTTERANCES, kind=KINDS, arrays=ARRAYS, dtype=("f2", "f4", "f8")),
]


@pytest.mark.parametrize(("format", "utterances", "options"), CASES)
def test_all_ways_of_writing_are_read(
    tmp_path: Path, format: str, utterances: list[Utterance], options: dict[str, Any]
) -> None:
    written = dict(options)
    dtype = np.dtype(written.pop("dtype", "f4"))
    if format == "table":
        written["transform"] = lambda a: a.astype(dtype) if a.dtype.kind == "f" else a
    elif "dtype" in options:
        written["dtype"] = dtype
    source, truth = read(tmp_path, format, utterances, written)
    kept = "f2" if dtype == "f2" else "f4"
    check(source, truth, split=format != "csd", frames=lambda v: v.astype(dtype).astype(kept))


MULTILABEL = {"task": Task.multilabel, "emotions": True}
COLUMNS = {"task": Task.multilabel, "labels": EMOTIONS}


@pytest.mark.parametrize(
    ("format", "options", "reading"),
    [
        ("multibench", {"label_shape": "(N,7)", "protocol": 2}, MULTILABEL),
        ("multibench", {"label_shape": "(N,1,7)", "protocol": 5}, MULTILABEL),
        *(("csd", {"per_video": per_video}, MULTILABEL) for per_video in BOTH),
        *(("table", {"kind": kind}, COLUMNS) for kind in KINDS),
    ],
)
def test_emotions(
    tmp_path: Path, format: str, options: dict[str, Any], reading: dict[str, Any]
) -> None:
    source, truth = read(tmp_path, format, ZEROS, options, **reading)
    assert source.items.label_names == EMOTIONS
    check(
        source,
        truth,
        split=format != "csd",
        label=lambda e: [n > 0 for n in e.emotions],
        label_dtype=np.float32,
    )


@pytest.mark.parametrize("bert", BOTH)
def test_mmsa_classes(tmp_path: Path, bert: bool) -> None:
    source, truth = read(tmp_path, "mmsa", UTTERANCES, {"bert": bert}, task=Task.classification)
    check(source, truth, label=lambda item: int(np.sign(item.sentiment)) + 1, label_dtype=np.int64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arrays", ARRAYS)
def test_table_with_its_arrays_named(tmp_path: Path, kind: Any, arrays: Any) -> None:
    path = writers.write_table(tmp_path, UTTERANCES, kind=kind, arrays=arrays)
    suffix = arrays.removesuffix("-by-id")
    moved = (tmp_path / f"audio.{suffix}").rename(tmp_path / f"sound.{suffix}")
    settings = ReadSettings(arrays={"hearing": str(moved)}, modalities=("hearing",))
    truth = [replace(item, sequences={"hearing": item.sequences["audio"]}) for item in UTTERANCES]
    source = read_source([path], "table", settings)[0]
    check(source, truth, modalities=("hearing",))
    assert set(source.items.ids.tolist()) == {item.name for item in UTTERANCES}


@pytest.mark.parametrize("kind", KINDS)
def test_table_of_one_modality(tmp_path: Path, kind: Any) -> None:
    options = {"kind": kind, "arrays": "npz", "modalities": ["vision"]}
    source, truth = read(tmp_path, "table", UTTERANCES, options)
    check(source, truth, modalities=["vision"])
