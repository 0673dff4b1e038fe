"""CMU-MultimodalSDK: computational sequences, one HDF5 file a modality and one with the labels.

``name / data / segment -> features (steps, width), intervals (steps, 2)``. The labels' segments are
the items; a modality has the same segments, or whole videos, of which the steps are taken whose
middle lies in the label's interval.
Source: https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK.

Notation: N items, T steps of one segment, D width.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import FloatArray, MultimodalDataset, Sequences
from common.data.formats import layouts
from common.data.formats.registry import FORMATS, Format, Given
from common.data.formats.utterances import check_settings, cleaned, labels_of, modalities_of
from common.data.source import (
    EMOTIONS,
    ReadSettings,
    Source,
    check_unique,
    checked_labels,
    no_labels,
)
from common.errors import UserError

SUFFIX = ".csd"
_MAGIC = b"\x89HDF\r\n\x1a\n"

#: Features (T, D) and intervals (T, 2) by segment.
Segments = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]

#: Words in the name of a file or of its sequence, by the modality that they tell.
_WORDS = {
    "language": ("glove", "word", "text", "bert"),
    "audio": ("covarep", "opensmile", "audio", "acoustic"),
    "vision": ("facet", "openface", "visi", "visual"),
}


def _recognise(given: Given) -> str | None:
    if given.path.is_dir():
        count = len(list(given.path.glob(f"*{SUFFIX}")))
        return f"a folder of {count} {SUFFIX} files" if count else None
    with given.path.open("rb") as file:
        return "an HDF5 file" if file.read(len(_MAGIC)) == _MAGIC else None


def _read(given: Given, settings: ReadSettings) -> Source:
    """Read several files, or the folder that holds them."""
    check_settings(given.path, settings)
    files = [
        _named(file)
        for path in given.paths
        for file in (sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path])
    ]
    named = [file for file in files if "label" in file.name.lower()]
    labels = named or [file for file in files if "label" in file.path.stem.lower()]
    if len(labels) != 1 and not (settings.predicting and not labels):
        raise UserError(
            f"{given.path}: {len(labels)} of {len(files)} files hold labels; expected one, with "
            "'label' in its name"
        )
    modalities = _by_modality([file for file in files if file not in labels], settings, given.path)
    if not labels:
        return _items(given.path, _own_segments(modalities.values()), modalities, settings)
    return _items(labels[0].path, _segments(labels[0]), modalities, settings)


@dataclass(frozen=True)
class _File:
    """One computational sequence, and what it is called in its file."""

    path: Path
    name: str
    names: tuple[str, ...]  # of its segments

    def modality(self) -> str:
        # The sequence's own name says more than the file's.
        for text in (self.name.lower(), self.path.stem.lower()):
            for modality, words in _WORDS.items():
                if any(word in text for word in words):
                    return modality
        plain = re.sub(r"[^A-Za-z0-9_]", "_", self.name)
        return plain if plain.isidentifier() else f"_{plain}"

    def segments(self, wanted: Callable[[str], bool] = lambda _: True) -> tuple[Segments, int]:
        """Read the segments that are wanted; also count those that are not."""
        with _opened(self.path) as file:
            data = _group(_group(file, self.name, self.path), "data", self.path)
            names, unpacked, segments = list(filter(wanted, data)), 0, {}
            for name in names:
                parts = [_dataset(data, name, key, self.path) for key in ("features", "intervals")]
                unpacked += sum(int(part.size) * max(part.dtype.itemsize, 4) for part in parts)
                layouts.check_unpacked(self.path, unpacked)
                segments[name] = _steps_of(parts, name, self.path)
            return segments, len(data) - len(names)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with layouts.reading(path, " as HDF5", "h5py"):
        import h5py

        with h5py.File(path, "r") as file:
            yield file


def _named(path: Path) -> _File:
    with _opened(path) as file:
        roots = list(file)
        if len(roots) != 1:
            raise UserError(f"{path} holds {len(roots)} sequences, expected one")
        names = tuple(_group(_group(file, roots[0], path), "data", path))
    if not names:
        raise UserError(f"{path} holds no segment")
    longest = max(names, key=len)
    if len(longest) > layouts.MAX_ID:
        raise UserError(
            f"{path}: segment {longest[:20]!r}… has {len(longest)} characters, expected "
            f"{layouts.MAX_ID} at most"
        )
    return _File(path, roots[0], names)


def _group(parent: Any, name: str, path: Path) -> Any:
    import h5py

    if _leads_out(parent, name) or parent.get(name, getclass=True) is not h5py.Group:
        raise UserError(f"{path}: {name!r} is not a group in this file; expected NAME/data/SEGMENT")
    return parent[name]


def _leads_out(parent: Any, name: str) -> bool:
    """Tell a link; asked first, since to ask for anything else opens the file it leads to."""
    import h5py

    return not isinstance(parent.get(name, getlink=True), h5py.HardLink)


def _dataset(data: Any, segment: str, key: str, path: Path) -> Any:
    """Return the features or intervals of a segment, not yet read."""
    import h5py

    group = _group(data, segment, path)
    if _leads_out(group, key) or group.get(key, getclass=True) is not h5py.Dataset:
        raise UserError(f"{path}: segment {segment!r} has no {key} of its own")
    dataset = group[key]
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: {key} of segment {segment!r} are in another file")
    if dataset.dtype.kind not in "fiu" or dataset.shape is None or dataset.ndim != 2:
        raise UserError(
            f"{path}: {key} of segment {segment!r} are {dataset.dtype} of shape {dataset.shape}, "
            "expected numbers (steps, width)"
        )
    layouts.check_unpacked(path, prod(dataset.chunks or ()) * dataset.dtype.itemsize)
    return dataset


def _steps_of(parts: list[Any], segment: str, path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    features, intervals = parts
    if intervals.shape != (len(features), 2):
        raise UserError(
            f"{path}: segment {segment!r} has {len(features)} steps, and intervals of shape "
            f"{intervals.shape}"
        )
    kept = np.float16 if features.dtype == np.float16 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        return features[()].astype(kept), intervals[()].astype(np.float64)


def _by_modality(files: Sequence[_File], settings: ReadSettings, path: Path) -> dict[str, _File]:
    there: dict[str, _File] = {}
    for file in files:
        other = there.setdefault(file.modality(), file)
        if other is not file:
            raise UserError(
                f"{other.path} and {file.path} both hold {file.modality()}; give one of them"
            )
    return {name: there[name] for name in modalities_of(path, there, settings)}


@dataclass(frozen=True)
class _Segment:
    """An item: one label with its interval."""

    id: str
    video: str
    label: NDArray[Any]
    interval: NDArray[Any]


def _segments(labels: _File) -> list[_Segment]:
    """Return the items that labels make; those of a whole video are numbered."""
    found = []
    for entry, (values, intervals) in labels.segments()[0].items():
        video = _video(entry)
        for row, (label, interval) in enumerate(zip(values, intervals, strict=True)):
            name = entry if video != entry and len(values) == 1 else f"{entry}[{row}]"
            found.append(_Segment(name, video, label, interval))
    return found


def _own_segments(files: Iterable[_File]) -> list[_Segment]:
    """Return the items that modalities make where there are no labels: each segment is one."""
    names = {name for file in files for name in file.names}
    # Within a video, [2] comes before [10].
    ordered = sorted(names, key=lambda name: (_video(name), len(name), name))
    return [_Segment(name, _video(name), np.empty(0), np.array([-inf, inf])) for name in ordered]


def _items(
    path: Path,
    segments: Sequence[_Segment],
    modalities: Mapping[str, _File],
    settings: ReadSettings,
) -> Source:
    if settings.predicting:
        labels = no_labels(len(segments))
    else:
        labels = checked_labels(_labels(path, segments, settings), settings, path)
    ids = check_unique(np.array([segment.id for segment in segments], dtype=np.str_), path)
    counts, sequences = {}, {}
    for name, file in modalities.items():
        key = f"segments of {name} without a label, left out"
        sequences[name], counts[key] = _sequences(name, file, segments, settings)
    if "language" in sequences:
        sequences["language"] = _spoken(sequences["language"])
    items = MultimodalDataset(
        ids,
        np.array([segment.video for segment in segments], dtype=np.str_),
        labels,
        sequences,
        label_names=EMOTIONS if settings.emotions else (),
    )
    return cleaned(path, items, layouts.no_sides(len(items)), settings, counts)


def _video(segment: str) -> str:
    """Return the video of a segment "video[3]"."""
    return segment[:-1].rpartition("[")[0] if segment.endswith("]") and "[" in segment else segment


def _spoken(language: Sequences) -> Sequences:
    """Have items whose language is all zero lack it."""
    spoken = [bool((language[item] != 0).any()) for item in range(len(language))]
    return replace(language, lengths=np.where(spoken, language.lengths, 0))


def _labels(
    path: Path, segments: Sequence[_Segment], settings: ReadSettings
) -> NDArray[np.float64]:
    """Return (N,), or (N, 6) emotions."""
    widths = {len(segment.label) for segment in segments}
    if widths not in ({1}, {1 + len(EMOTIONS)}):
        raise UserError(
            f"{path}: labels are {sorted(widths)} wide; expected 1, or 7 for sentiment and "
            "six emotions"
        )
    stacked = np.array([segment.label for segment in segments], dtype=np.float64)
    return labels_of(str(path), stacked, settings)


def _sequences(
    name: str, file: _File, segments: Sequence[_Segment], settings: ReadSettings
) -> tuple[Sequences, int]:
    """Read one modality of all items; also count its segments that have no label."""
    known = {name for segment in segments for name in (segment.id, segment.video)}
    there, lost = file.segments(known.__contains__)
    if not there:
        raise UserError(f"{file.path}: none of its segments has a label")
    widths = {values.shape[1] for values, _ in there.values()}
    if len(widths) > 1 or 0 in widths:
        raise UserError(f"{file.path}: segments differ in width: {sorted(widths)[:5]}")
    empty = np.empty((0, *widths), dtype=np.float32)
    parts, size = [], 0
    for segment in segments:
        parts.append(_steps(there, segment, empty))
        size += parts[-1].nbytes
        layouts.check_unpacked(file.path, size)  # intervals may overlap, over and over
    values = layouts.float_rows([part for part in parts if len(part)] or [empty])
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return layouts.settled(file.path, name, Sequences.ragged(values, lengths), settings), lost


def _steps(found: Segments, segment: _Segment, empty: FloatArray) -> FloatArray:
    """Return the steps of an item's own segment, or of its interval within its video."""
    if segment.id in found:
        own: FloatArray = found[segment.id][0]
        return own
    if segment.video not in found:
        return empty
    values, times = found[segment.video]
    with np.errstate(invalid="ignore", over="ignore"):
        middle = times.mean(axis=1)
    begin, end = segment.interval
    inside: FloatArray = values[(middle >= begin) & (middle < end)]
    return inside


FORMATS["csd"] = Format(_recognise, _read, several=True)
