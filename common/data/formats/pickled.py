"""What the pickles of CMU-MOSI and CMU-MOSEI have in common: splits of padded arrays.

``{train, valid, test} -> {text, audio, vision, labels, id}``, each an array with an item a row.
Features are (N, T, D), padded with zeros on the left or on the right. The contents come from a file
that is not trusted, so nothing about them is taken for granted.

Notation: N items of one split, T steps, D width.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import IntArray, MultimodalDataset, Sequences
from common.data.formats import layouts
from common.data.formats.layouts import Array
from common.data.formats.registry import Given
from common.data.formats.utterances import check_settings, cleaned, labels_of, modalities_of
from common.data.source import EMOTIONS, SIDES, ReadSettings, Source, checked_labels, no_labels
from common.errors import UserError

Split = dict[str, Any]

#: What a modality is called in these files, and here.
MODALITIES = {"text": "language", "audio": "audio", "vision": "vision"}

_SCALARS = (str, bytes, int, float, np.generic)


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


class Pickled:
    """A file's splits, and how they are read."""

    def __init__(self, given: Given, settings: ReadSettings) -> None:
        self.path, self.content, self.settings = given.path, given.content, settings
        self.splits = splits_of(self.content)

    @property
    def labels_key(self) -> str:
        """Key of the labels."""
        return "labels"

    def lengths(self, split: str, key: str, shape: tuple[int, int]) -> IntArray | None:
        """Return the lengths of (N, T) steps of a modality, or None to tell them by padding."""
        return None

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
        check_settings(self.path, self.settings)
        for name, split in self.content.items() if isinstance(self.content, dict) else ():
            if isinstance(name, str) and name in SIDES and not isinstance(split, dict):
                raise self.fail(name, f"it is {type(split).__name__}, expected keys and arrays")
        there = {name: key for key, name in MODALITIES.items() if key in keys_of(self.content)}
        modalities = modalities_of(self.path, there, self.settings)
        raw = {split: self._ids(split) for split in self.splits}
        counts = {split: len(ids) for split, ids in raw.items()}
        ids, groups = _named([row for rows in raw.values() for row in rows])
        labels = self._labels(counts)
        items = MultimodalDataset(
            ids,
            groups,
            labels,
            {name: self._sequences(there[name], name, counts) for name in modalities},
            label_names=EMOTIONS if self.settings.emotions else (),
        )
        splits = np.repeat([SIDES[split] for split in self.splits], list(counts.values()))
        new = np.sort(np.unique(ids, return_index=True)[1])
        again = {"items whose id occurred before, dropped": len(ids) - len(new)}
        return cleaned(self.path, items.select(new), splits[new], self.settings, again)

    def array(self, split: str, key: str) -> Array:
        """Return one array of plain values."""
        if key not in self.splits[split]:
            raise self.fail(split, f"it lacks {key!r}, which the format needs in every split")
        value = self.splits[split][key]
        array = None
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiubSU":
            return value
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            inner = self._stacked(value.ravel().tolist())
            array = None if inner is None else inner.reshape(value.shape + inner.shape[1:])
        elif isinstance(value, list | tuple):
            array = self._stacked(list(value))
        if array is None:
            kind = type(value).__name__
            raise self.fail(split, f"{key!r} is {kind}, expected an array of numbers or text")
        return array

    def _stacked(self, values: list[Any]) -> Array | None:
        """Return values, or arrays of one shape, as one array; None for anything else."""
        if values and all(isinstance(value, np.ndarray) for value in values):
            shapes = {(value.shape, value.dtype.kind) for value in values}
            if len(shapes) > 1 or values[0].dtype.kind not in "fiubSU":
                return None
            # In the file, all of them may be one that is named many times.
            layouts.check_unpacked(self.path, len(values) * max(value.nbytes for value in values))
            return np.stack(values)
        if not all(isinstance(value, _SCALARS) for value in values):
            return None
        if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
            return None
        if any(isinstance(value, str | bytes) for value in values):
            values = [_repaired(value) for value in values]
            longest = max(map(len, values))
            layouts.check_unpacked(self.path, 4 * longest * len(values))
            return np.array(values, dtype=np.str_) if longest <= layouts.MAX_ID else None
        try:
            array = np.array(values)
        except (TypeError, ValueError, OverflowError):
            return None  # such as times among numbers
        return array if array.dtype.kind in "fiub" else None

    def numbers(self, split: str, key: str, count: int) -> NDArray[np.float64]:
        """Return an array of numbers with an item a row."""
        array = self.array(split, key)
        if array.dtype.kind not in "fiub" or array.ndim == 0 or len(array) != count:
            raise self.fail(
                split, f"{key!r} is {array.dtype} of shape {array.shape}, expected {count} numbers"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float64)

    def _ids(self, split: str) -> list[tuple[str, ...]]:
        array = self.array(split, "id")
        if array.ndim not in (1, 2) or array.size == 0:
            raise self.fail(split, f"'id' has the shape {array.shape}, expected one for each item")
        rows = array.reshape(len(array), -1).tolist()
        names = [tuple(_repaired(part) for part in row) for row in rows]
        longest = max(sum(map(len, name)) for name in names)
        if longest > layouts.MAX_ID:
            raise self.fail(
                split, f"an 'id' has {longest} characters, expected {layouts.MAX_ID} at most"
            )
        return names

    def _labels(self, counts: Mapping[str, int]) -> NDArray[np.float32]:
        """Return (items,), or (items, 6) emotions, of all splits."""
        if self.settings.predicting:
            return no_labels(sum(counts.values()))
        key, labels = self.labels_key, []
        for split, count in counts.items():
            numbers = self.numbers(split, key, count)
            if numbers.shape[1:] not in ((), (1,), (1, 1), (7,), (1, 7)):
                raise self.fail(
                    split,
                    f"{key!r} has the shape {numbers.shape}; expected ({count}, 1), "
                    f"({count}, 1, 1), or 7 columns: sentiment and six emotions",
                )
            where = f"{self.path}: split {split!r}"
            labels.append(labels_of(where, numbers.reshape(count, -1), self.settings))
        return checked_labels(np.concatenate(labels), self.settings, self.path)

    def _sequences(self, key: str, name: str, counts: Mapping[str, int]) -> Sequences:
        """Read one modality, take it out of the contents, and leave the padding behind."""
        blocks = {split: self._features(split, key, count) for split, count in counts.items()}
        widths = {split: block.shape[2] for split, block in blocks.items()}
        if len(set(widths.values())) > 1:
            raise UserError(
                f"{self.path}: {key!r} differs in width: "
                + ", ".join(f"{width} in {split!r}" for split, width in widths.items())
            )
        half = all(block.dtype == np.float16 for block in blocks.values())
        spans = {
            split: layouts.real_spans(block, self.lengths(split, key, (len(block), block.shape[1])))
            for split, block in blocks.items()
        }
        lengths = np.concatenate([last - first for first, last in spans.values()])
        width = next(iter(widths.values()))
        values = np.empty((int(lengths.sum()), width), np.float16 if half else np.float32)
        row = 0
        for split in counts:
            for rows in _real_rows(blocks.pop(split), *spans[split]):
                with np.errstate(over="ignore", invalid="ignore"):
                    values[row : row + len(rows)] = rows
                row += len(rows)
            self.splits[split].pop(key, None)  # two names may be of one split
        return layouts.settled(self.path, name, Sequences.ragged(values, lengths), self.settings)

    def _features(self, split: str, key: str, count: int) -> Array:
        array = self.array(split, key)
        if array.dtype.kind not in "fiu" or array.ndim != 3 or 0 in array.shape[1:]:
            raise self.fail(
                split,
                f"{key!r} is {array.dtype} of shape {array.shape}, expected numbers (items, steps, "
                "width)",
            )
        if len(array) != count:
            raise self.fail(split, f"{key!r} has {len(array)} items, and 'id' has {count}")
        return array


def _real_rows(block: Array, first: IntArray, last: IntArray) -> Iterator[Array]:
    steps = np.arange(block.shape[1])
    for start in range(0, len(block), layouts.CHUNK):
        part = slice(start, start + layouts.CHUNK)
        yield block[part][(steps >= first[part, None]) & (steps < last[part, None])]


def _repaired(value: object) -> str:
    """Return text; bytes are UTF-8 or Latin-1, and so was text that Python 2 wrote."""
    try:
        if isinstance(value, str):
            return value.encode("latin1").decode()
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeError:
        return value.decode("latin1") if isinstance(value, bytes) else str(value)


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
