"""What the pickles of CMU-MOSI and CMU-MOSEI have in common: splits of padded arrays.

``{train, valid, test} -> {text, audio, vision, labels, id}``, each an array with an item a row.
Features are (items, steps, width), padded with zeros on the left or on the right. The contents come
from a file that is not trusted, so nothing about them is taken for granted.

Notation: N items of one split, T steps, D width, R rows that are not padding.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import IntArray, MultimodalDataset, Sequences
from common.data.formats.limits import check_unpacked
from common.data.formats.padding import CHUNK, real_spans
from common.data.source import (
    EMOTIONS,
    SIDES,
    ReadSettings,
    Source,
    as_text,
    checked_labels,
    drop_unlabelled,
    modalities_there,
    no_labels,
)
from common.errors import UserError
from common.task import Task

Split = dict[str, Any]

#: What a modality is called in these files, and here.
MODALITIES = {"text": "language", "audio": "audio", "vision": "vision"}

_SCALARS = (str, bytes, int, float, np.generic)

#: A longer id is a mistake: NumPy keeps all of an array in the space of its longest.
MAX_ID = 1000


def splits_of(content: object) -> dict[str, Split]:
    """Return the splits of a pickle's contents by their name in the file."""
    if not isinstance(content, dict):
        return {}
    return {
        name: split
        for name, split in content.items()
        if isinstance(name, str) and name in SIDES and isinstance(split, dict)
    }


def keys_of(content: object) -> set[str]:
    """Return the keys that any split has; one that lacks some of them is refused when read."""
    splits = splits_of(content).values()
    return {key for split in splits for key in split if isinstance(key, str)}


@dataclass
class Pickled:
    """A file's splits, and how they are read.

    Attributes
    ----------
    path
        The file, for errors.
    content
        What it holds; arrays are taken out of it as they are read, to free their memory.
    settings
        How it is read.
    labels_key
        Key of the labels.
    lengths
        Given split, key and (items, steps), the items' lengths, or None to tell them by padding.
    """

    path: Path
    content: object
    settings: ReadSettings
    labels_key: str = "labels"
    lengths: Callable[["Pickled", str, str, tuple[int, int]], IntArray | None] = field(
        default=lambda *_: None
    )

    def __post_init__(self) -> None:
        self.splits = splits_of(self.content)

    def fail(self, split: str, reason: str) -> UserError:
        """Return the error of a split."""
        return UserError(f"{self.path}: split {split!r}: {reason}")

    def read(self) -> Source:
        """Read everything.

        Raises
        ------
        UserError
            If the contents are not what the format says.
        """
        self._check_settings()
        self._check_splits()
        names = self._modalities()
        raw = {split: self._ids(split) for split in self.splits}
        counts = {split: len(ids) for split, ids in raw.items()}
        ids, groups = _named([each for split in raw.values() for each in split])
        labels = np.concatenate([self._labels(split, counts[split]) for split in self.splits])
        sequences = {MODALITIES[key]: self._sequences(key, counts) for key in names}
        splits = np.repeat([SIDES[split] for split in self.splits], list(counts.values()))
        items = MultimodalDataset(
            ids,
            groups,
            self._checked(labels),
            sequences,
            label_names=EMOTIONS if self.settings.emotions else (),
        )
        source = _cleaned(items, splits, self.settings)
        if len(source.items) == 0:
            raise UserError(f"{self.path}: no item has a label and language that is not all zero")
        return source

    def _checked(self, labels: NDArray[np.float64]) -> NDArray[np.float32]:
        if self.settings.predicting:
            return labels.astype(np.float32)
        return checked_labels(labels, self.settings, self.path)

    def _check_splits(self) -> None:
        content = self.content if isinstance(self.content, dict) else {}
        for name, split in content.items():
            if isinstance(name, str) and name in SIDES and not isinstance(split, dict):
                raise self.fail(name, f"it is {type(split).__name__}, expected keys and arrays")

    def _check_settings(self) -> None:
        settings = self.settings
        if settings.context > 0:
            raise UserError(
                f"{settings.prefix}context={settings.context} is for arrays with one vector an item"
            )
        if settings.group is not None:
            raise UserError(
                f"{settings.prefix}group={settings.group}: groups are the videos that ids name"
            )
        if settings.task is Task.multilabel and not settings.emotions:
            raise UserError(
                f"{self.path} has one label an item; {settings.prefix}task=emotion takes the six "
                "emotions, where it has them"
            )

    def _modalities(self) -> list[str]:
        """Return the keys of the modalities to read."""
        found = keys_of(self.content)
        there = {key: name for key, name in MODALITIES.items() if key in found}
        if not there:
            raise UserError(f"{self.path} has no modality; expected {', '.join(MODALITIES)}")
        asked = modalities_there(self.settings, there.values())
        unknown = [name for name in asked if name not in there.values()]
        if unknown:
            raise UserError(
                f"{self.path} has no modality {unknown[0]!r}; it has {', '.join(there.values())}"
            )
        wanted = asked or tuple(there.values())
        keys = {name: key for key, name in there.items()}
        return [keys[name] for name in dict.fromkeys(wanted)]

    def array(self, split: str, key: str) -> NDArray[Any]:
        """Return one array of plain values."""
        if key not in self.splits[split]:
            raise self.fail(split, f"it lacks {key!r}, which the format needs in every split")
        found = _array(self.splits[split][key], self.path)
        if found is None:
            kind = type(self.splits[split][key]).__name__
            raise self.fail(split, f"{key!r} is {kind}, expected an array of numbers or text")
        return found

    def numbers(self, split: str, key: str, count: int) -> NDArray[np.float64]:
        """Return an array of numbers with an item a row."""
        found = self.array(split, key)
        if found.dtype.kind not in "fiub" or found.ndim == 0 or len(found) != count:
            raise self.fail(
                split, f"{key!r} is {found.dtype} of shape {found.shape}, expected {count} numbers"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return found.astype(np.float64)

    def _ids(self, split: str) -> list[tuple[str, ...]]:
        found = self.array(split, "id")
        if found.ndim not in (1, 2) or found.size == 0:
            raise self.fail(split, f"'id' has the shape {found.shape}, expected one for each item")
        rows = found.reshape(len(found), -1).tolist()
        names = [tuple(_repaired(each) for each in row) for row in rows]
        longest = max(sum(map(len, name)) for name in names)
        if longest > MAX_ID:
            raise self.fail(split, f"an 'id' has {longest} characters, expected {MAX_ID} at most")
        return names

    def _labels(self, split: str, count: int) -> NDArray[np.float64]:
        """Return (N,), or (N, 6) emotions."""
        if self.settings.predicting:
            return no_labels(count).astype(np.float64)
        key = self.labels_key
        found = self.numbers(split, key, count)
        flat = found.reshape(count, -1)
        if found.shape[1:] not in ((), (1,), (1, 1), (7,), (1, 7)):
            raise self.fail(
                split,
                f"{key!r} has the shape {found.shape}; expected ({count}, 1), ({count}, 1, 1), or "
                "7 columns: sentiment and six emotions",
            )
        if not self.settings.emotions:
            return flat[:, 0]
        if flat.shape[1] == 1:
            raise self.fail(
                split, f"it has no emotions: {key!r} has one column, expected 7 for task=emotion"
            )
        return flat[:, 1:]

    def _sequences(self, key: str, counts: Mapping[str, int]) -> Sequences:
        """Read one modality, take it out of the contents, and leave the padding behind."""
        blocks = {split: self._features(split, key, counts[split]) for split in self.splits}
        widths = {split: block.shape[2] for split, block in blocks.items()}
        if len(set(widths.values())) > 1:
            raise UserError(
                f"{self.path}: {key!r} differs in width: "
                + ", ".join(f"{width} in {split!r}" for split, width in widths.items())
            )
        half = all(block.dtype == np.float16 for block in blocks.values())
        spans = {split: self._spans(split, key, block) for split, block in blocks.items()}
        lengths = np.concatenate([last - first for first, last in spans.values()])
        values = np.empty(
            (int(lengths.sum()), next(iter(widths.values()))), np.float16 if half else np.float32
        )
        row = 0
        for split in list(blocks):
            for rows in _real_rows(blocks.pop(split), *spans[split]):
                with np.errstate(over="ignore", invalid="ignore"):
                    values[row : row + len(rows)] = rows
                row += len(rows)
            self.splits[split].pop(key, None)  # two names may be of one split
        name = MODALITIES[key]
        tabular = name in self.settings.tabular
        if tabular and len(np.unique(lengths[lengths > 0])) > 1:
            raise UserError(
                f"{self.path}: {name} has from {lengths.min()} to {lengths.max()} steps, but a "
                f"modality in {self.settings.prefix}tabular needs the same number in every item"
            )
        starts = np.cumsum(lengths) - lengths
        return Sequences(values, starts, lengths, tabular).last_steps(self.settings.max_seq_len)

    def _features(self, split: str, key: str, count: int) -> NDArray[Any]:
        found = self.array(split, key)
        if found.dtype.kind not in "fiu" or found.ndim != 3 or 0 in found.shape[1:]:
            raise self.fail(
                split,
                f"{key!r} is {found.dtype} of shape {found.shape}, expected numbers (items, steps, "
                "width)",
            )
        if len(found) != count:
            raise self.fail(split, f"{key!r} has {len(found)} items, and 'id' has {count}")
        return found

    def _spans(self, split: str, key: str, block: NDArray[Any]) -> tuple[IntArray, IntArray]:
        return real_spans(block, self.lengths(self, split, key, (len(block), block.shape[1])))


def _real_rows(block: NDArray[Any], first: IntArray, last: IntArray) -> Iterator[NDArray[Any]]:
    steps = np.arange(block.shape[1])
    for start in range(0, len(block), CHUNK):
        part = slice(start, start + CHUNK)
        yield block[part][(steps >= first[part, None]) & (steps < last[part, None])]


def _array(value: object, path: Path) -> NDArray[Any] | None:
    """Return an array of numbers or text, or None; lists are taken where they are flat."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiubSU":
            return np.asarray(value)
        objects = np.asarray(value).ravel().tolist() if value.dtype.kind == "O" else [None]
        inner = _stacked(objects, path)
        return None if inner is None else inner.reshape(value.shape + inner.shape[1:])
    return _stacked(list(value), path) if isinstance(value, list | tuple) else None


def _stacked(values: list[Any], path: Path) -> NDArray[Any] | None:
    if values and all(isinstance(each, np.ndarray) for each in values):
        shapes = {(each.shape, each.dtype.kind) for each in values}
        if len(shapes) > 1 or values[0].dtype.kind not in "fiubSU":
            return None
        # In the file, all of them may be one that is named many times.
        check_unpacked(path, len(values) * max(each.nbytes for each in values))
        return np.stack(values)
    if not all(isinstance(each, _SCALARS) for each in values):
        return None
    if any(isinstance(each, int) and abs(each) >= 2**63 for each in values):
        return None
    if any(isinstance(each, str | bytes) for each in values):
        return _texts([_repaired(each) for each in values], path)
    try:
        array = np.array(values)
    except (TypeError, ValueError, OverflowError):
        return None  # such as times among numbers
    return array if array.dtype.kind in "fiub" else None


def _texts(values: list[str], path: Path) -> NDArray[Any] | None:
    longest = max(map(len, values))
    check_unpacked(path, 4 * longest * len(values))
    return np.array(values, dtype=np.str_) if longest <= MAX_ID else None


def _repaired(value: object) -> str:
    """Return text; bytes are UTF-8 or Latin-1, and so was text that Python 2 wrote."""
    if isinstance(value, str):
        try:
            return value.encode("latin1").decode()
        except UnicodeError:
            return value
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        return as_text(value) if not isinstance(value, bytes) else value.decode("latin1")


def _named(rows: list[tuple[str, ...]]) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """Return ids "video[segment]" and their videos; items of a bare video are numbered."""
    ids, videos, seen = [], [], Counter[str]()
    for video, *rest in rows:
        if rest:
            segment = ",".join(rest)
        elif "$_$" in video:
            video, _, segment = video.rpartition("$_$")
        elif video.endswith("]") and "[" in video:
            video, _, segment = video[:-1].rpartition("[")
        else:
            segment = str(seen[video])
            seen[video] += 1
        ids.append(f"{video}[{segment}]")
        videos.append(video)
    return np.array(ids, dtype=np.str_), np.array(videos, dtype=np.str_)


def _cleaned(items: MultimodalDataset, splits: NDArray[np.str_], settings: ReadSettings) -> Source:
    """Drop items that occurred before, or have no language; count what is missing."""
    _, first = np.unique(items.ids, return_index=True)
    new = np.zeros(len(items), dtype=bool)
    new[first] = True
    spoken = np.ones(len(items), dtype=bool)
    if "language" in items.sequences and not settings.predicting:
        spoken = items.sequences["language"].lengths > 0
    index = np.flatnonzero(new & spoken)
    kept = items.select(index)
    counts = {
        "items whose id occurred before, dropped": int((~new).sum()),
        "items whose language is all zero, dropped": int((new & ~spoken).sum()),
    }
    for name, sequences in kept.sequences.items():
        counts[f"items without {name}"] = int((sequences.lengths == 0).sum())
    found = {what: count for what, count in counts.items() if count}
    return drop_unlabelled(replace(kept, cleaning=found), splits[index], settings)
