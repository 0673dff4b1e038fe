"""The pickles of CMU-MOSI and CMU-MOSEI: MultiBench, MulT and MMSA.

``{train, valid, test} -> {text, audio, vision, labels, id}``, each an array with an item a row.
Features are (N, T, D), padded with zeros on the left or on the right. Labels have one column, or in
CMU-MOSEI seven: the sentiment and six emotions. The contents come from a file that is not trusted,
so nothing about them is taken for granted.

- MultiBench, ``mosi_raw.pkl`` and ``mosei_raw.pkl``: ids are ``video[segment]``.
  Source: https://github.com/pliang279/MultiBench.
- MulT, ``mosi_data.pkl``, ``mosei_senti_data.pkl`` and their ``_noalign`` kin: an id is a row of
  byte strings, video, start and end; without alignment each modality has its own number of steps.
  Source: https://github.com/yaohungt/Multimodal-Transformer.
- MMSA, ``aligned_50.pkl`` and ``unaligned_50.pkl``: ids are ``video$_$clip``; audio and vision come
  with lengths where they are not aligned; the length of BERT features is that of the attention mask
  in ``text_bert`` (N, 3, T), beside token and segment ids. Source: https://github.com/thuiar/MMSA.

Notation: N items of one split, T steps, D width.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import IntArray, MultimodalDataset, Sequences
from common.data.formats import layouts
from common.data.formats.layouts import Array
from common.data.formats.registry import FORMATS, Format, Given
from common.data.formats.utterances import cleaned, labels_of, modalities_of
from common.data.labels import Labels, no_labels
from common.data.source import SIDES, ReadSettings, Source
from common.errors import UserError
from common.task import Task

#: What a modality is called in these files, and here.
MODALITIES = {"text": "language", "audio": "audio", "video": "vision", "vision": "vision"}

#: SHA-256 of a file that MMSA published to its name; from its README.
PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "MOSI/unaligned_50.pkl",
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "MOSI/aligned_50.pkl",
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI/unaligned_50.pkl",
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "MOSEI/aligned_50.pkl",
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": "SIMS/unaligned_39.pkl",
}

_SCALARS = (str, bytes, int, float, np.generic)


def _splits(content: object) -> dict[str, Any]:
    """Return the values of a pickle that are named like splits, by their name in the file."""
    if not isinstance(content, dict):
        return {}
    return {key: part for key, part in content.items() if isinstance(key, str) and key in SIDES}


def _dicts(content: object) -> dict[str, dict[str, Any]]:
    return {name: split for name, split in _splits(content).items() if isinstance(split, dict)}


def _others(content: object) -> list[str]:
    """Return the keys of a pickle that are not named like splits."""
    keys = content if isinstance(content, dict) else ()
    return [str(key) for key in keys if not (isinstance(key, str) and key in SIDES)]


def _keys(content: object) -> set[str]:
    """Return the keys that any split has; one that lacks some of them is refused when read."""
    return {key for split in _dicts(content).values() for key in split if isinstance(key, str)}


def _recognise_mmsa(given: Given) -> str | None:
    keys = _keys(given.content)
    own = keys & {"regression_labels", "classification_labels"}
    if "labels" not in keys:
        own |= keys & {"raw_text", "text_bert"}  # what has no labels at all is told by these
    if not (own and keys & {"id", *MODALITIES}):
        return None
    names = ", ".join(_dicts(given.content))
    return f"a pickle of splits {names} with {' and '.join(sorted(own))}"


def _recognise_mult(given: Given) -> str | None:
    keys, splits = _keys(given.content), _dicts(given.content)
    if not ("id" in keys and keys & set(MODALITIES)):
        return None
    if not all(_rows_of_bytes(split["id"]) for split in splits.values() if "id" in split):
        return None
    return f"a pickle of splits {', '.join(splits)} whose ids are rows of byte strings"


def _rows_of_bytes(ids: object) -> bool:
    """Tell rows (video, start, end), or bare names of videos, from "video[segment]"."""
    if isinstance(ids, np.ndarray):
        if ids.ndim == 2:
            return True
        ids = ids.ravel()[:1].tolist()
    first = ids[0] if isinstance(ids, list | tuple) and ids else None
    bare = isinstance(first, bytes) and not first.endswith(b"]")
    return bare or isinstance(first, np.ndarray)


def _recognise_multibench(given: Given) -> str | None:
    keys = _keys(given.content)
    if not (keys & {"id", "labels"} and keys & set(MODALITIES)):
        return None
    if "labels" not in keys and _recognise_mmsa(given):
        return None
    ids = "with ids of text" if "id" in keys else "without ids"
    return f"a pickle of splits {', '.join(_dicts(given.content))} {ids}"


class _Split:
    """One split of a file; every method checks what it returns."""

    def __init__(self, path: Path, name: str, content: object, settings: ReadSettings) -> None:
        self.path, self.name, self.settings = path, name, settings
        self.where = f"{path}: split {name!r}"
        self.numbered = False  # whether no split has ids
        if not isinstance(content, dict):
            raise self.fail(f"it is {type(content).__name__}, expected keys and arrays")
        self.content = content

    def fail(self, reason: str) -> UserError:
        return UserError(f"{self.where}: {reason}")

    @property
    def labels_key(self) -> str:
        return "labels"

    def lengths(self, key: str, steps: int) -> IntArray | None:
        """Return the lengths (N,) of a modality, or None to tell them by padding."""
        return None

    def array(self, key: str) -> Array:
        """Return one array of plain values."""
        if key not in self.content:
            raise self.fail(f"it lacks {key!r}, which the format needs in every split")
        value = self.content[key]
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
            raise self.fail(f"{key!r} is {kind}, expected an array of numbers or text")
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

    def numbers(self, key: str) -> NDArray[np.float64]:
        """Return an array of numbers with an item a row."""
        array, count = self.array(key), len(self.ids)
        if array.dtype.kind not in "fiub" or array.ndim == 0 or len(array) != count:
            raise self.fail(
                f"{key!r} is {array.dtype} of shape {array.shape}, expected {count} numbers"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float64)

    @cached_property
    def ids(self) -> list[tuple[str, ...]]:
        """Videos and their segments; without any, each item counts as a video of its own."""
        if self.numbered:
            keys = (self.labels_key, *MODALITIES)
            counted = next((key for key in keys if key in self.content), self.labels_key)
            value = self.content.get(counted)
            count = len(value) if isinstance(value, list) else len(self.array(counted))
            return [(f"{self.name}-{item}",) for item in range(count)]
        array = self.array("id")
        if array.ndim not in (1, 2) or array.size == 0:
            raise self.fail(f"'id' has the shape {array.shape}, expected one for each item")
        rows = array.reshape(len(array), -1).tolist()
        names = [tuple(_repaired(part) for part in row) for row in rows]
        longest = max(sum(map(len, name)) for name in names)
        if longest > layouts.MAX_ID:
            raise self.fail(f"an 'id' has {longest} characters, expected {layouts.MAX_ID} at most")
        return names

    def labels(self) -> Array:
        """Return (N, 1), or (N, 7): sentiment and six emotions."""
        key, count = self.labels_key, len(self.ids)
        labels = self.array(key)
        if labels.ndim == 0 or len(labels) != count:
            raise self.fail(
                f"{key!r} is {labels.dtype} of shape {labels.shape}, expected {count} numbers or "
                "classes"
            )
        if labels.shape[1:] not in ((), (1,), (1, 1), (7,), (1, 7)):
            raise self.fail(
                f"{key!r} has the shape {labels.shape}; expected ({count}, 1), ({count}, 1, 1), "
                "or 7 columns: sentiment and six emotions"
            )
        return labels.reshape(count, -1)

    def features(self, key: str) -> Array | list[Array]:
        """Return (N, T, D), or N arrays (T, D) of lengths of their own."""
        value, count = self.content.get(key), len(self.ids)
        parts = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
        if isinstance(parts, list) and len({getattr(part, "shape", ()) for part in parts}) > 1:
            return self._items(key, parts)
        array = self.array(key)
        if array.dtype.kind not in "fiu" or array.ndim != 3 or 0 in array.shape[1:]:
            raise self.fail(
                f"{key!r} is {array.dtype} of shape {array.shape}, expected numbers (items, steps, "
                "width)"
            )
        if len(array) != count:
            raise self.fail(f"{key!r} has {len(array)} items, and 'id' has {count}")
        return array

    def _items(self, key: str, parts: list[Any]) -> list[Array]:
        """Check a list that has an array for each item."""
        plain = all(isinstance(part, np.ndarray) and part.dtype.kind in "fiub" for part in parts)
        widths = {part.shape[1] for part in parts if part.ndim == 2} if plain else set()
        if len(widths) != 1 or 0 in widths or any(part.ndim != 2 for part in parts):
            raise self.fail(
                f"{key!r} holds items of different shapes, expected numbers (steps, width) of one "
                "width"
            )
        if len(parts) != len(self.ids):
            raise self.fail(f"{key!r} has {len(parts)} items, and 'id' has {len(self.ids)}")
        return parts


class _MmsaSplit(_Split):
    @property
    def labels_key(self) -> str:
        whole = self.settings.task is Task.classification
        return "classification_labels" if whole else "regression_labels"

    def lengths(self, key: str, steps: int) -> IntArray | None:
        if f"{key}_lengths" in self.content:
            lengths = self.numbers(f"{key}_lengths")
            whole = (lengths >= 0) & (lengths <= steps) & (np.trunc(lengths) == lengths)
            if lengths.ndim != 1 or not whole.all():
                raise self.fail(f"'{key}_lengths' are not whole numbers from 0 to {steps}")
            return lengths.astype(np.int64)
        if key == "text" and "text_bert" in self.content:
            mask = self.numbers("text_bert")
            if mask.shape[1:] == (3, steps):
                return cast(IntArray, (mask[:, 1] > 0).sum(axis=1))
        return None


def _read_mmsa(given: Given, settings: ReadSettings) -> Source:
    keys = _keys(given.content)
    if "text" not in keys and "text_bert" in keys and "language" in settings.modalities:
        raise UserError(
            f"{given.path}: text_bert holds numbers of tokens; expected features in text"
        )
    return _read(given, settings, _MmsaSplit)


def _read(given: Given, settings: ReadSettings, kind: type[_Split] = _Split) -> Source:
    path = given.path
    splits = [kind(path, *item, settings) for item in _splits(given.content).items()]
    keys = _keys(given.content)
    there = {name: key for key, name in MODALITIES.items() if key in keys}
    for each in splits:
        each.numbered = "id" not in keys
    modalities = modalities_of(path, there, settings)
    features = {there[name] for name in modalities}
    lengths = {"text_bert", *(f"{key}_lengths" for key in features)}
    used = {"id", splits[0].labels_key, *features, *lengths}
    settings.unused("key", [*_others(given.content), *sorted(_keys(given.content) - used)])
    ids, groups = _named([row for split in splits for row in split.ids])
    if settings.predicting:
        labels = Labels(no_labels(len(ids)))
    else:
        columns = [each.labels()[:, : None if settings.emotions else 1] for each in splits]
        few = min(columns, key=lambda each: each.shape[1]).shape[1]
        stacked = np.concatenate([each[:, :few] for each in columns])
        labels = labels_of(path, stacked, ids, settings)
    nameless = sum(len(each.ids) for each in splits if each.numbered)
    sequences = {name: _sequences(splits, there[name], name) for name in modalities}
    items = MultimodalDataset(ids, groups, labels.values, sequences, label_names=labels.names)
    sides = np.repeat([SIDES[split.name] for split in splits], [len(each.ids) for each in splits])
    new = np.sort(np.unique(ids, return_index=True)[1])
    settings.note("items whose id occurred before, dropped", len(ids) - len(new))
    settings.note("items without an id, numbered, each a group of its own", nameless)
    return cleaned(path, items.select(new), sides[new], settings)


def _sequences(splits: Sequence[_Split], key: str, name: str) -> Sequences:
    """Read one modality, take it out of the contents, and leave the padding behind."""
    path, settings = splits[0].path, splits[0].settings
    blocks = [split.features(key) for split in splits]
    widths = [block[0].shape[-1] for block in blocks]
    if len(set(widths)) > 1:
        listed = [f"{width} in {split.name!r}" for split, width in zip(splits, widths, strict=True)]
        raise UserError(f"{path}: {key!r} differs in width: {', '.join(listed)}")
    spans = [_spans(split, key, block) for split, block in zip(splits, blocks, strict=True)]
    half = all(part.dtype == np.float16 for block in blocks for part in block[:1])
    lengths = np.concatenate([last - first for first, last in spans])
    values = np.empty((int(lengths.sum()), widths[0]), np.float16 if half else np.float32)
    row = 0
    for split, span in zip(splits, spans, strict=True):
        block = blocks.pop(0)  # freed once it is copied
        split.content.pop(key, None)  # two names may be of one split
        for part, first, last in zip(block, *span, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                values[row : row + last - first] = part[first:last]
            row += last - first
    return layouts.settled(path, name, Sequences.ragged(values, lengths), settings)


def _spans(split: _Split, key: str, block: Array | list[Array]) -> tuple[IntArray, IntArray]:
    """Return where each item begins and ends; a list has each in its own length."""
    if isinstance(block, np.ndarray):
        return layouts.real_spans(block, split.lengths(key, block.shape[1]))
    each = [layouts.real_spans(part[None]) for part in block]
    first, last = np.concatenate(each, axis=1)
    return first, last


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


FORMATS["mmsa"] = Format(_recognise_mmsa, _read_mmsa, pickled=True)
FORMATS["mult"] = Format(_recognise_mult, _read, pickled=True)
FORMATS["multibench"] = Format(_recognise_multibench, _read, pickled=True, last=True)
