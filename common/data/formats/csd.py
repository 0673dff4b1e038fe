"""CMU-MultimodalSDK: computational sequences, one HDF5 file a modality and one with the labels.

``name / data / segment -> features (steps, width), intervals (steps, 2)``. The labels' segments are
the items; a modality has the same segments, or whole videos, of which the steps are taken whose
middle lies in the label's interval. Where a video has several labels, so they are of its segments,
such as the words that others were aligned to.
Source: https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK.

Notation: N items, T steps of one segment, D width.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.data.dataset import MultimodalDataset, Sequences
from common.data.formats import layouts
from common.data.formats.layouts import Array
from common.data.formats.registry import FORMATS, Format, Given
from common.data.formats.utterances import cleaned, labels_of, modalities_of
from common.data.labels import Labels, no_labels
from common.data.source import EMOTIONS, ReadSettings, Source, check_unique
from common.errors import UserError

SUFFIX = ".csd"
_MAGIC = b"\x89HDF\r\n\x1a\n"

#: Features (T, D) and intervals (T, 2) by segment.
Segments = Mapping[str, tuple[Array, Array]]

#: Words in the name of a file or of its sequence, by the modality that they tell.
_WORDS = {
    "language": ("glove", "word", "text", "bert"),
    "audio": ("covarep", "opensmile", "audio", "acoustic"),
    "vision": ("facet", "openface", "visi", "visual"),
}


def _recognise(given: Given) -> str | None:
    if given.path.is_dir():
        count = len(layouts.files_in(given.path, SUFFIX))
        return f"a folder of {count} {SUFFIX} files" if count else None
    with given.path.open("rb") as file:
        return "an HDF5 file" if file.read(len(_MAGIC)) == _MAGIC else None


def _read(given: Given, settings: ReadSettings) -> Source:
    """Read several files, or the folder that holds them."""
    files = [
        _File(file)
        for path in given.paths
        for file in (layouts.files_in(path, SUFFIX) if path.is_dir() else [path])
    ]
    named = [file for file in files if "label" in file.name.lower()]
    labels = named or [file for file in files if "label" in file.path.stem.lower()]
    if len(labels) != 1 and not (settings.predicting and not labels):
        raise UserError(
            f"{given.path}: {len(labels)} of {len(files)} files hold labels; expected one, with "
            "'label' in its name"
        )
    there: dict[str, _File] = {}
    for file in (file for file in files if file not in labels):
        other = there.setdefault(file.modality(), file)
        if other is not file:
            raise UserError(
                f"{other.path} and {file.path} both hold {file.modality()}; give one of them"
            )
    modalities = {name: there[name] for name in modalities_of(given.path, there, settings)}
    settings.unused("file", [there[name].path.name for name in there if name not in modalities])
    settings.unused(
        "array", [f"{key} of {file.path.name}" for file in files for key in file.others]
    )
    if not labels:
        return _items(given.path, _own_segments(modalities.values()), modalities, settings)
    return _items(labels[0].path, _labelled_segments(labels[0]), modalities, settings)


class _File:
    """One computational sequence, what it is called in its file, and the names of its segments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            roots = list(file)
            if len(roots) != 1:
                raise UserError(
                    f"{path} holds {len(roots)} sequences, expected one: NAME/data/SEGMENT, as "
                    "CMU-MultimodalSDK writes HDF5"
                )
            self.name: str = roots[0]
            sequence = self._group(file, self.name)
            self.names = tuple(self._group(sequence, "data"))
            self.others = sorted({*sequence} - {"data", "metadata"})
        if not self.names:
            raise UserError(f"{path} holds no segment")
        longest = max(self.names, key=len)
        if len(longest) > layouts.MAX_ID:
            raise UserError(
                f"{path}: segment {longest[:20]!r}… has {len(longest)} characters, expected "
                f"{layouts.MAX_ID} at most"
            )

    def modality(self) -> str:
        # The sequence's own name says more than the file's.
        for text in (self.name.lower(), self.path.stem.lower()):
            for modality, words in _WORDS.items():
                if any(word in text for word in words):
                    return modality
        plain = re.sub(r"[^A-Za-z0-9_]", "_", self.name)
        return plain if plain.isidentifier() else f"_{plain}"

    def segments(self, wanted: Container[str] | None = None) -> Segments:
        """Read the segments that are wanted, or all."""
        segments, unpacked = {}, 0
        with self._opened() as file:
            data = self._group(self._group(file, self.name), "data")
            for name in data if wanted is None else filter(wanted.__contains__, data):
                group = self._group(data, name)
                parts = [self._dataset(group, name, key) for key in ("features", "intervals")]
                unpacked += sum(int(part.size) * max(part.dtype.itemsize, 4) for part in parts)
                layouts.check_unpacked(self.path, unpacked)
                features, intervals = parts
                if intervals.shape != (len(features), 2):
                    raise UserError(
                        f"{self.path}: segment {name!r} has {len(features)} steps, and intervals "
                        f"of shape {intervals.shape}"
                    )
                kept = np.float16 if features.dtype == np.float16 else np.float32
                with np.errstate(over="ignore", invalid="ignore"):
                    segments[name] = features[()].astype(kept), intervals[()].astype(np.float64)
        return segments

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with layouts.reading(self.path, " as HDF5", "h5py"):
            import h5py

            with h5py.File(self.path, "r") as file:
                yield file

    def _group(self, parent: Any, name: str) -> Any:
        import h5py

        if _leads_out(parent, name) or parent.get(name, getclass=True) is not h5py.Group:
            raise UserError(
                f"{self.path}: {name!r} is not a group in this file; expected NAME/data/SEGMENT"
            )
        return parent[name]

    def _dataset(self, group: Any, segment: str, key: str) -> Any:
        """Return the features or intervals of a segment, not yet read."""
        import h5py

        if _leads_out(group, key) or group.get(key, getclass=True) is not h5py.Dataset:
            raise UserError(f"{self.path}: segment {segment!r} has no {key} of its own")
        dataset = group[key]
        if dataset.external or dataset.is_virtual:
            raise UserError(f"{self.path}: {key} of segment {segment!r} are in another file")
        if dataset.dtype.kind not in "fiu" or dataset.shape is None or dataset.ndim != 2:
            raise UserError(
                f"{self.path}: {key} of segment {segment!r} are {dataset.dtype} of shape "
                f"{dataset.shape}, expected numbers (steps, width)"
            )
        layouts.check_unpacked(self.path, prod(dataset.chunks or ()) * dataset.dtype.itemsize)
        return dataset


def _leads_out(parent: Any, name: str) -> bool:
    """Tell a link; asked first, since to ask for anything else opens the file it leads to."""
    import h5py

    return not isinstance(parent.get(name, getlink=True), h5py.HardLink)


class _Segment(NamedTuple):
    """An item: one label with its interval."""

    id: str
    video: str
    label: Array = np.empty(0)
    interval: tuple[float, float] = (-inf, inf)
    #: Whether the id is made up here, of a video with several labels, and no name in the files.
    numbered: bool = False


def _labelled_segments(labels: _File) -> list[_Segment]:
    """Return the items that labels make; those of a whole video are numbered."""
    segments = []
    for entry, (values, intervals) in labels.segments().items():
        video = _video(entry)
        whole = video == entry or len(values) > 1
        for row, (label, interval) in enumerate(zip(values, intervals, strict=True)):
            name = f"{entry}[{row}]" if whole else entry
            segments.append(_Segment(name, video, label, tuple(interval), whole))
    return segments


def _own_segments(files: Iterable[_File]) -> list[_Segment]:
    """Return the items that modalities make where there are no labels: each segment is one."""
    names = {name for file in files for name in file.names}
    # Within a video, [2] comes before [10].
    ordered = sorted(names, key=lambda name: (_video(name), len(name), name))
    return [_Segment(name, _video(name)) for name in ordered]


def _video(segment: str) -> str:
    """Return the video of a segment "video[3]"."""
    return segment[:-1].rpartition("[")[0] if segment.endswith("]") and "[" in segment else segment


def _items(
    path: Path,
    segments: Sequence[_Segment],
    modalities: Mapping[str, _File],
    settings: ReadSettings,
) -> Source:
    ids = check_unique(np.array([segment.id for segment in segments], dtype=np.str_), path)
    if settings.predicting:
        labels = Labels(no_labels(len(segments)))
    else:
        widths = {len(segment.label) for segment in segments}
        if widths not in ({1}, {1 + len(EMOTIONS)}):
            raise UserError(
                f"{path}: labels are {sorted(widths)} wide; expected 1, or 7 for sentiment and "
                "six emotions"
            )
        columns = np.array([segment.label for segment in segments], dtype=np.float64)
        labels = labels_of(path, columns, ids, settings)
    videos = np.array([segment.video for segment in segments], dtype=np.str_)
    known = {*ids.tolist(), *videos.tolist()}
    numbered = {segment.video for segment in segments if segment.numbered}
    layouts.note_litter(path, settings)
    sequences = {}
    for name, file in modalities.items():
        # Of a video with several labels all segments are parts, such as its words.
        wanted = {each for each in file.names if each in known or _video(each) in numbered}
        lost = len(file.names) - len(wanted)
        settings.note(f"segments of {name} without a label, left out", lost)
        there = _joined(file.segments(wanted), numbered)
        sequences[name] = _sequences(name, file, there, segments, settings)
    if "language" in sequences:  # items whose language is all zero lack it
        language = sequences["language"]
        spoken = [bool((language[item] != 0).any()) for item in range(len(language))]
        sequences["language"] = replace(language, lengths=np.where(spoken, language.lengths, 0))
    items = MultimodalDataset(ids, videos, labels.values, sequences, label_names=labels.names)
    return cleaned(path, items, layouts.no_sides(len(items)), settings)


def _sequences(
    name: str, file: _File, there: Segments, segments: Sequence[_Segment], settings: ReadSettings
) -> Sequences:
    """Return one modality of all items."""
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
    if size == 0 and not {segment.id for segment in segments} & there.keys():
        raise UserError(
            f"{file.path}: no item has a step in its label's interval; expected the times of both "
            "in seconds from the start of the video"
        )
    values = layouts.float_rows([part for part in parts if len(part)] or [empty])
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return layouts.settled(file.path, name, Sequences.ragged(values, lengths), settings)


def _joined(segments: Segments, videos: Container[str]) -> Segments:
    """Join the segments of each of some videos, which is what its labels' intervals are of."""
    joined: dict[str, list[tuple[Array, Array]]] = {}
    for name, segment in segments.items():
        video = _video(name)
        joined.setdefault(video if video in videos else name, []).append(segment)
    whole = {}
    for name, parts in joined.items():
        parts.sort(key=lambda part: part[1][:1, 0].tolist())
        features, intervals = zip(*parts, strict=True)
        if len({values.shape[1] for values in features}) > 1:
            return segments  # which is refused as it is
        whole[name] = np.concatenate(features), np.concatenate(intervals)
    return whole


def _steps(there: Segments, segment: _Segment, empty: Array) -> Array:
    """Return the steps of an item's own segment, or of its interval within its video."""
    if segment.id in there:
        return there[segment.id][0]
    if segment.video not in there:
        return empty
    values, times = there[segment.video]
    with np.errstate(invalid="ignore", over="ignore"):
        middle = times.mean(axis=1)
    begin, end = segment.interval
    inside: Array = values[(middle >= begin) & (middle < end)]
    return inside


FORMATS["csd"] = Format(_recognise, _read, several=True)
