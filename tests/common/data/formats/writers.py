"""Small files in the formats that datasets are published in, all from one truth in memory.

Nothing of the product is used here: each writer follows the published structure alone.

Notation: N utterances of a file or split, T steps, D feature width, L tokens.
"""

import csv
import json
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray
from safetensors.numpy import save_file

Array = NDArray[Any]
Split = Literal["train", "validation", "test"]
Pad = Literal["left", "right"]
LabelShape = Literal["(N,1)", "(N,1,1)", "(N,7)", "(N,1,7)"]
IdKind = Literal["S", "U", "object", "text object"]
TableArrays = Literal["npy", "npz", "npz-by-id", "safetensors", "safetensors-by-id"]

MODALITIES = ("language", "audio", "vision")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: What the sides are called in pickles.
PICKLED_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
#: What the modalities are called in pickles.
PICKLED_NAMES = {"language": "text", "audio": "audio", "vision": "vision"}
#: In the order of the label files, after the sentiment.
EMOTIONS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")
WIDTHS = {"language": 5, "audio": 4, "vision": 3}
#: The most steps of each modality where they are not aligned, to which files pad.
STEPS = {"language": 12, "audio": 30, "vision": 25}
#: What the computational sequences are called: modality to file and root.
CSD = {
    "language": ("CMU_MOSEI_TimestampedWordVectors.csd", "glove_vectors"),
    "audio": ("CMU_MOSEI_COVAREP.csd", "COVAREP"),
    "vision": ("CMU_MOSEI_VisualFacet42.csd", "FACET 4.2"),
}
CSD_LABELS = ("CMU_MOSEI_Labels.csd", "All Labels")
_METADATA = ("contact", "creator", "dataset name", "dataset version", "md5", "root name", "uuid")


@dataclass(frozen=True)
class Utterance:
    """One item, as it really is.

    `sequences` are (T, D) float32, without padding, and (0, D) where the item lacks one; those of
    `zero_text` are zeros in the files.
    """

    video: str
    segment: int
    start: float
    end: float
    split: Split
    sentiment: float
    emotions: tuple[float, ...]
    sequences: dict[str, Array] = field(default_factory=dict)
    zero_text: bool = False

    @property
    def name(self) -> str:
        """What multibench files and computational sequences call it."""
        return f"{self.video}[{self.segment}]"


def make_utterances(
    seed: int,
    *,
    count: int = 30,
    videos: int = 8,
    aligned: bool = False,
    widths: Mapping[str, int] = WIDTHS,
    zero_text: int = 0,
    missing_audio: int = 0,
) -> list[Utterance]:
    """Make utterances, in the order of their videos; a video is on one side.

    Some have no text (`zero_text`) or no audio; some audio is NaN or infinite.
    """
    rng = np.random.default_rng(seed)
    without = rng.permutation(count)
    texts, audios = without[:zero_text], without[::-1][:missing_audio]
    made: list[Utterance] = []
    clock = 0.0
    for item in range(count):
        video = item * videos // count
        segment = item - sum(i * videos // count < video for i in range(item))
        clock = 1.5 if segment == 0 else clock + 1.0  # a second of silence between utterances
        end = clock + float(rng.integers(1, 9))
        sequences = _sequences(rng, widths, aligned, item % 3 == 0)
        if item in texts:
            sequences["language"] = sequences["language"][:0]
        if item in audios:
            sequences["audio"] = sequences["audio"][:0]
        made.append(
            Utterance(
                video=f"Vid_{video}-x{rng.integers(1000)}" if segment == 0 else made[-1].video,
                segment=segment,
                start=clock,
                end=end,
                split=SPLITS[(0, 0, 0, 1, 2, 0, 1, 2)[video % 8]],
                # Exact in float32 too, as which some formats hold it.
                sentiment=(0.0, 3.0, -3.0)[item] if item < 3 else rng.integers(-768, 769) / 256,
                emotions=tuple(float(rng.choice([0, 0, 1 / 3, 2 / 3, 3])) for _ in EMOTIONS),
                sequences=sequences,
                zero_text=bool(item in texts),
            )
        )
        clock = end
    return made


def _sequences(
    rng: np.random.Generator, widths: Mapping[str, int], aligned: bool, not_finite: bool
) -> dict[str, Array]:
    steps = {name: int(rng.integers(1, most + 1)) for name, most in STEPS.items()}
    if aligned:
        steps = dict.fromkeys(steps, steps["language"])
    made = {}
    for name in MODALITIES:
        values = rng.normal(size=(steps[name], widths[name])).astype(np.float32)
        if len(values) > 3:
            values[2] = 0  # silence within an utterance is no padding
        made[name] = values
    if not_finite:
        audio = made["audio"]
        audio[-1, 0] = -np.inf
        audio[len(audio) // 2, 1] = np.nan
    return made


def pad(parts: Sequence[Array], steps: int, side: Pad = "right", dtype: DTypeLike = "f4") -> Array:
    """Return sequences (T, D), one at least, as one array (N, steps, D), zeros on one side."""
    padded = np.zeros((len(parts), steps, parts[0].shape[1]), dtype)
    for row, part in zip(padded, parts, strict=True):
        first = 0 if side == "right" else steps - len(part)
        row[first : first + len(part)] = part
    return padded


# ---- Pickles --------------------------------------------------------------------------


def _splits(
    utterances: Sequence[Utterance], content: Callable[[list[Utterance]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        name: content([item for item in utterances if item.split == split])
        for split, name in PICKLED_SPLITS.items()
    }


def _padded(
    items: Sequence[Utterance], steps: Mapping[str, int], side: Pad, dtype: DTypeLike = "f4"
) -> dict[str, Array]:
    return {
        PICKLED_NAMES[name]: pad([item.sequences[name] for item in items], steps[name], side, dtype)
        for name in ("vision", "audio", "language")
    }


def _labels(items: Sequence[Utterance], shape: LabelShape) -> Array:
    wide = shape in ("(N,7)", "(N,1,7)")
    rows = [[item.sentiment, *(item.emotions if wide else ())] for item in items]
    labels = np.array(rows, np.float32).reshape(len(items), 7 if wide else 1)
    return labels if shape in ("(N,1)", "(N,7)") else labels[:, None, :]


def _content(
    utterances: Sequence[Utterance],
    id_of: Callable[[Utterance], str | list[str]],
    steps: Mapping[str, int],
    *,
    ids: IdKind,
    label_shape: LabelShape = "(N,1,1)",
    pad: Pad = "left",
    dtype: DTypeLike = "f4",
) -> dict[str, dict[str, Array]]:
    def content(items: list[Utterance]) -> dict[str, Array]:
        texts: Array = np.array(list(map(id_of, items)), "S" if ids in ("S", "object") else "U")
        return {
            **_padded(items, steps, pad, dtype),
            "labels": _labels(items, label_shape),
            "id": texts.astype(object) if "object" in ids else texts,
        }

    return _splits(utterances, content)


def multibench_content(
    utterances: Sequence[Utterance], *, length: int = 50, ids: IdKind = "U", **options: Any
) -> dict[str, dict[str, Array]]:
    """Return what a MultiBench file holds: split to vision, audio, text, labels and id."""
    steps = dict.fromkeys(MODALITIES, length)
    return _content(utterances, lambda item: item.name, steps, ids=ids, **options)


def mult_content(
    utterances: Sequence[Utterance], *, aligned: bool = True, ids: IdKind = "S", **options: Any
) -> dict[str, dict[str, Array]]:
    """Return what a MulT file holds; its id rows are video, start and end."""

    def row(item: Utterance) -> list[str]:
        return [item.video, f"{item.start:.4f}", f"{item.end:.4f}"]

    steps = dict.fromkeys(MODALITIES, 50) if aligned else STEPS
    return _content(utterances, row, steps, ids=ids, **options)


def mmsa_content(
    utterances: Sequence[Utterance],
    *,
    bert: bool = True,
    aligned: bool = False,
    with_lengths: bool = True,
) -> dict[str, dict[str, Any]]:
    """Return what an MMSA file holds, padded on the right.

    With `bert` the text is made 768 wide, or 300 without: its features, then zeros.
    """

    def content(items: list[Utterance]) -> dict[str, Any]:
        steps = dict.fromkeys(MODALITIES, STEPS["language"]) if aligned else STEPS
        signs = np.array([np.sign(item.sentiment) for item in items], np.float32)
        words = {-1: "Negative", 1: "Positive"}
        part: dict[str, Any] = {
            **_padded(items, steps, "right"),
            "raw_text": np.array([f"words of {item.name}" for item in items]),
            "id": [f"{item.video}$_${item.segment}" for item in items],
            "annotations": [words.get(sign, "Neutral") for sign in signs],
            "classification_labels": signs + 1,
            "regression_labels": np.array([item.sentiment for item in items], np.float32),
        }
        part["text"] = _widen(part["text"], 768 if bert else 300)
        if bert:  # token ids, attention mask and segment ids, (N, 3, L)
            part["text_bert"] = np.zeros((len(items), 3, steps["language"]), np.float32)
            for rows, item in zip(part["text_bert"], items, strict=True):
                tokens = len(item.sequences["language"])
                rows[0, :tokens] = 1000 + np.arange(tokens)
                rows[1, :tokens] = 1
        for name in ("audio", "vision") if with_lengths else ():
            # What is missing is one step of zeros.
            part[f"{name}_lengths"] = [max(len(item.sequences[name]), 1) for item in items]
        return part

    return _splits(utterances, content)


def widened(utterances: Sequence[Utterance], width: int) -> list[Utterance]:
    """Return utterances as `mmsa_content` writes them, with text of another width."""
    return [
        replace(
            item,
            sequences={**item.sequences, "language": _widen(item.sequences["language"], width)},
        )
        for item in utterances
    ]


def _widen(values: Array, width: int) -> Array:
    more = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, more)


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    """Write one pickle."""
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def _write_content(
    content: Callable[..., object],
    path: Path,
    utterances: Sequence[Utterance],
    *,
    protocol: int = 4,
    **options: Any,
) -> Path:
    return write_pickle(path, content(utterances, **options), protocol)


#: Write a pickle to a path; the options are those of its content.
write_multibench = partial(_write_content, multibench_content)
write_mult = partial(_write_content, mult_content)
write_mmsa = partial(_write_content, mmsa_content)


class Python2Pickler(pickle._Pickler):
    """Protocol 2 as Python 2 writes it: text and raw data are byte strings without an encoding."""

    def save_string(self, value: str | bytes) -> None:
        """Write text or bytes."""
        raw = value.encode() if isinstance(value, str) else value
        short = len(raw) < 256
        self.write((b"U%c" % len(raw) if short else b"T" + struct.pack("<i", len(raw))) + raw)
        self.memoize(value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        """Write a name of NumPy 1."""
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


def write_python2(
    path: Path, utterances: Sequence[Utterance], *, ids: IdKind = "S", **options: Any
) -> Path:
    """Write a MulT file as Python 2 does; the options are those of `mult_content`."""
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(mult_content(utterances, ids=ids, **options))
    return path


# ---- Computational sequences ----------------------------------------------------------


def write_csd(
    folder: Path, utterances: Sequence[Utterance], *, per_video: bool = False
) -> list[Path]:
    """Write computational sequences, one file a modality and one of labels.

    With `per_video` an entry is a video, with frames also between its utterances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = by_video(utterances) if per_video else {item.name: [item] for item in utterances}
    paths = []
    for modality, (file, root) in CSD.items():
        frames = {name: _frames(items, modality, per_video) for name, items in entries.items()}
        there = {name: frame for name, frame in frames.items() if len(frame[0])}
        paths.append(write_sequence(folder / file, root, there))
    labels = {
        name: (
            np.array([[item.sentiment, *item.emotions] for item in items], np.float32),
            np.array([[item.start, item.end] for item in items]),
        )
        for name, items in entries.items()
    }
    return [*paths, write_sequence(folder / CSD_LABELS[0], CSD_LABELS[1], labels)]


def write_sequence(path: Path, root: str, entries: Mapping[str, tuple[Any, Any]]) -> Path:
    """Write one computational sequence: features and intervals by segment."""
    with h5py.File(path, "w") as file:
        file.create_group(f"{root}/data")
        for name, (features, intervals) in entries.items():
            file[f"{root}/data/{name}/features"] = features
            file[f"{root}/data/{name}/intervals"] = intervals
        for key in _METADATA:
            text = json.dumps(root if key == "root name" else f"the {key}")
            file.create_dataset(f"{root}/metadata/{key}", data=[text], dtype=h5py.string_dtype())
    return path


def _frames(items: Sequence[Utterance], modality: str, silence: bool) -> tuple[Array, Array]:
    """Frames (T, D) and intervals (T, 2) of some items, if so with one of silence before each.

    Those of an item are clear of its ends. Text that is zero is one frame of zeros.
    """
    frames, intervals = [], []
    for item in items:
        own = item.sequences[modality]
        if modality == "language" and item.zero_text:
            own = np.zeros((1, own.shape[1]), np.float32)
        if silence:
            frames.append(np.full((1, own.shape[1]), 9.0, np.float32))
            intervals.append(np.array([[item.start - 0.8, item.start - 0.2]]))
        edges = np.linspace(item.start + 0.05, item.end - 0.05, len(own) + 1)
        frames.append(own)
        intervals.append(np.stack([edges[:-1], edges[1:]], axis=1))
    return np.concatenate(frames), np.concatenate(intervals)


def by_video(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Group utterances by their video, in order."""
    grouped: dict[str, list[Utterance]] = {}
    for item in utterances:
        grouped.setdefault(item.video, []).append(item)
    return grouped


# ---- Arrays and tables ----------------------------------------------------------------


def ragged(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Return rows (R, D), and where each part begins and ends (N + 1,)."""
    lengths = [len(part) for part in parts]
    return np.concatenate(parts), np.cumsum([0, *lengths])


def npz_content(utterances: Sequence[Utterance]) -> dict[str, Array]:
    """Return what an npz file holds: ragged arrays with offsets, label, id, video and split."""
    content: dict[str, Array] = {}
    for modality in MODALITIES:
        parts = [item.sequences[modality] for item in utterances]
        content[modality], content[f"{modality}_offsets"] = ragged(parts)
    content["label"] = np.array([item.sentiment for item in utterances], np.float32)
    for name, key in {"id": "name", "video": "video", "split": "split"}.items():
        content[name] = np.array([getattr(item, key) for item in utterances])
    return content


def write_npz(path: Path, utterances: Sequence[Utterance]) -> Path:
    """Write one npz file."""
    np.savez(path, **npz_content(utterances))
    return path


def table_columns(utterances: Sequence[Utterance]) -> dict[str, list[Any]]:
    """Return the columns of a table of items; an emotion is 0 or 1."""
    return {
        "id": [item.name for item in utterances],
        "label": [item.sentiment for item in utterances],
        "split": [item.split for item in utterances],
        "group": [item.video for item in utterances],
        **{
            emotion: [int(item.emotions[column] > 0) for item in utterances]
            for column, emotion in enumerate(EMOTIONS)
        },
    }


def table_arrays(
    utterances: Sequence[Utterance], modality: str, arrays: TableArrays
) -> dict[str, Array]:
    """Return what the file of one modality holds; those with ids are not in the table's order."""
    parts = {item.name: item.sequences[modality] for item in utterances}
    if arrays == "npy":
        return {"": pad(list(parts.values()), STEPS[modality])}
    if arrays != "safetensors":  # it has no text: the rows are in the table's order
        parts = dict(reversed(parts.items()))
    if arrays.endswith("-by-id"):
        return parts
    values, offsets = ragged(list(parts.values()))
    ids = {} if arrays == "safetensors" else {"ids": np.array(list(parts))}
    return {"values": values, "offsets": offsets, **ids}


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Write arrays as the path's suffix says."""
    match path.suffix:
        case ".npy":
            np.save(path, arrays[""])
        case ".npz":
            np.savez(path, **arrays)
        case _:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write the columns of a table as the path's suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(columns)), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_table(
    folder: Path,
    utterances: Sequence[Utterance],
    *,
    kind: Literal["csv", "parquet"] = "csv",
    arrays: TableArrays = "npy",
    modalities: Sequence[str] = MODALITIES,
    transform: Callable[[Array], Array] | None = None,
) -> Path:
    """Write a table of items and beside it one file of arrays a modality; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = arrays.removesuffix("-by-id")
    for modality in modalities:
        content = table_arrays(utterances, modality, arrays)
        if transform is not None:
            content = {name: transform(array) for name, array in content.items()}
        write_arrays(folder / f"{modality}.{suffix}", content)
    return write_columns(folder / f"items.{kind}", table_columns(utterances))


#: Write a source of some format into a folder; the options are those of its writer.
WRITERS: dict[str, Callable[..., Path]] = {
    "multibench": lambda f, items, **o: write_multibench(f / "data.pkl", items, **o),
    "mult": lambda f, items, **o: write_mult(f / "data.pkl", items, **o),
    "python 2": lambda f, items, **o: write_python2(f / "data.pkl", items, **o),
    "mmsa": lambda f, items, **o: write_mmsa(f / "data.pkl", items, **o),
    "csd": lambda f, items, **o: write_csd(f / "csd", items, **o)[0].parent,
    "npz": lambda f, items: write_npz(f / "data.npz", items),
    "table": write_table,
}
