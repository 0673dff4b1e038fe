"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels) and per modality one numeric array: (items,
steps, width); or (items, width), one vector an item, made a sequence by the `context` items of the
same group before it; or (rows, width) with ``<modality>_offsets`` (items + 1,) for ragged
sequences. Any array of length `items` can name the groups; `id` and `split`, where they are there,
name the items and their side. Object arrays are never read.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import (
    FloatArray,
    IntArray,
    MultimodalDataset,
    Sequences,
    concatenate,
    describe_shape,
)
from common.data.formats.limits import check_unpacked
from common.data.source import (
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

Array = NDArray[Any]


def recognise(path: Path) -> str | None:
    """Say why a file is of this format, or None."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [name for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return "a zip archive, damaged"  # which reading it says in full
    return f"a zip archive of {len(arrays)} arrays" if arrays else None


def read_npz(paths: Sequence[str | Path], settings: ReadSettings) -> Source:
    """Read one or more files into one dataset.

    Parameters
    ----------
    paths
        The files; they must agree in the widths of modalities and labels.
    settings
        How; by default every modality of the first file is read.

    Returns
    -------
    Source
        Items whose label is NaN are dropped, and counted in ``cleaning``.

    Raises
    ------
    UserError
        If a file cannot be read, lacks an array, or disagrees with the others.
    """
    if settings.context > 0 and settings.group is None:
        raise UserError(
            f"{settings.prefix}context={settings.context} needs {settings.prefix}group: context is "
            "what came before in the same group"
        )
    files = [
        _File(Path(path), _load(Path(path)), settings, name)
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    wanted = modalities_there(settings, files[0].arrays)
    names = list(wanted or files[0].modalities())
    if not names:
        raise UserError(f"{paths[0]}: no modality found; it has {files[0].listing()}")
    labels = [file.labels() for file in files]
    for file, label in zip(files, labels, strict=True):
        if label.shape[1:] != labels[0].shape[1:]:
            raise UserError(
                f"label is {labels[0].shape[1]} wide in {paths[0]} but {label.shape[1]} in "
                f"{file.path}"
            )
    items = MultimodalDataset(
        _told_apart(np.concatenate([file.ids() for file in files])),
        np.concatenate([file.groups() for file in files]),
        np.concatenate(labels),
        {name: _joined(name, files) for name in names},
    )
    return drop_unlabelled(items, np.concatenate([file.splits() for file in files]), settings)


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Return a name for each file that does not say where it lies."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [f"{name}({number})" for number, name in enumerate(names)]


def _told_apart(ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Add a number to the ids of items that share theirs with another."""
    _, membership, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if (counts == 1).all():
        return ids
    several = counts[membership] > 1
    return np.array(
        [
            f"{name}#{number}" if shared else name
            for number, (name, shared) in enumerate(zip(ids.tolist(), several, strict=True))
        ]
    )


def _joined(name: str, files: Sequence["_File"]) -> Sequences:
    parts = [file.sequences(name) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.statistics_shape != parts[0].statistics_shape:
            first, other = (describe_shape(p.statistics_shape) for p in (parts[0], part))
            raise UserError(f"{name} is {first} in {files[0].path} but {other} in {file.path}")
    return concatenate(parts)


def _load(path: Path) -> dict[str, Array | UserError]:
    """Read all arrays, or why one cannot be read; none is ever unpickled."""
    if not path.exists():
        raise UserError(f"dataset file {path} does not exist")
    if path.is_dir():
        raise UserError(f"dataset file {path} is a directory; expected an .npz file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an .npz file, or only a part of one")
    try:
        # Opened here: np.load leaves a file open whose list of members is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            check_unpacked(path, sum(member.file_size for member in archive.zip.infolist()))
            return {name: _member(archive, name, path) for name in archive.files}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from error


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Array | UserError:
    try:
        array = archive[name]
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        return UserError(f"{path}: array {name!r} cannot be read: {_first_line(error)}")
    return (
        array if isinstance(array, np.ndarray) else UserError(f"{path}: {name!r} is not an array")
    )


def _first_line(error: Exception) -> str:
    if "pickle" in str(error):
        return "it holds Python objects, which are never read; expected numbers or text"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class _File:
    """One file; every method checks what it returns, and names the file in its errors."""

    path: Path
    arrays: Mapping[str, Array | UserError]
    settings: ReadSettings
    name: str

    def option(self, name: str) -> str:
        return f"{self.settings.prefix}{name}"

    def fail(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}")

    def listing(self) -> str:
        return ", ".join(sorted(self.arrays)) or "nothing"

    def modalities(self) -> list[str]:
        return [
            name
            for name, array in self.arrays.items()
            if isinstance(array, np.ndarray)
            and name != "label"
            and array.ndim >= 2
            and array.dtype.kind == "f"
        ]

    def array(self, name: str, setting: str) -> Array:
        if name not in self.arrays:
            raise UserError(
                f"{self.path} has no array {name!r} ({setting}); it has {self.listing()}"
            )
        array = self.arrays[name]
        if isinstance(array, UserError):
            raise array
        return array

    @property
    def items(self) -> int:
        if not self.settings.predicting:
            return len(self.labels())
        array = self.array(self.counted, self.option("modalities"))
        if array.ndim == 0:
            raise self.fail(f"{self.counted} is a single value, expected an item a row")
        if f"{self.counted}_offsets" in self.arrays:
            return len(self._offsets(self.counted, array)) - 1
        return len(array)

    @property
    def counted(self) -> str:
        """The array that says how many items there are: the labels, or the first modality."""
        if not self.settings.predicting:
            return "label"
        there = modalities_there(self.settings, self.arrays) or self.modalities()
        return next(iter(there), "id")

    def labels(self) -> NDArray[np.float32]:
        """Return (items,) or, for several labels, (items, K); NaN where there is none."""
        if self.settings.predicting:
            return no_labels(self.items)
        labels, task = self.array("label", "the labels"), self.settings.task
        if labels.dtype.kind not in "fiub" or labels.ndim not in (1, 2) or labels.size == 0:
            raise self.fail(
                f"label is {labels.dtype} of shape {labels.shape}, expected numbers, one or a row "
                "of them for each item"
            )
        columns = 1 if labels.ndim == 1 else labels.shape[1]
        if task is Task.multilabel:
            labels = labels.reshape(len(labels), columns)
        elif columns == 1:
            labels = labels.reshape(len(labels))
        else:
            raise self.fail(f"label has {columns} columns, but task={task} takes one")
        return checked_labels(labels.astype(np.float64), self.settings, self.path)

    def ids(self) -> NDArray[np.str_]:
        """Return (items,) names; without `id`, the file's name and a number."""
        if "id" in self.arrays:
            return self._names("id", "the ids")
        return np.array([f"{self.name}#{item}" for item in range(self.items)])

    def groups(self) -> NDArray[np.str_]:
        """Return (items,) group names; without a group every item stands for itself."""
        if self.settings.group is None:
            return np.array([f"{self.name}#{item}" for item in range(self.items)])
        return self._names(self.settings.group, self.option("group"))

    def splits(self) -> NDArray[np.str_]:
        """Return (items,) sides; without `split`, none."""
        if self.settings.predicting or "split" not in self.arrays:
            return np.full(self.items, "", dtype="U10")
        found = self._names("split", "the sides")
        unknown = sorted(set(found.tolist()) - set(SIDES))
        if unknown:
            raise self.fail(f"split {unknown[0]!r}: expected one of {', '.join(SIDES)}")
        return np.array([SIDES[name] for name in found.tolist()], dtype="U10")

    def _names(self, name: str, setting: str) -> NDArray[np.str_]:
        names = self.array(name, setting)
        if names.shape != (self.items,):
            raise self.fail(
                f"{name} has shape {names.shape}, expected one per item of {self.counted}, "
                f"({self.items},)"
            )
        return np.array([as_text(each) for each in names.tolist()], dtype=np.str_)

    def sequences(self, name: str) -> Sequences:
        array = self.array(name, self.option("modalities"))
        if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or 0 in array.shape[1:]:
            raise self.fail(
                f"{name} is {array.dtype} of shape {array.shape}, "
                "expected numbers of 2 or 3 dimensions"
            )
        starts, lengths = self._windows(name, array)
        tabular = name in self.settings.tabular
        if tabular and len(np.unique(lengths[lengths > 0])) > 1:
            raise self.fail(
                f"{name} has from {lengths.min()} to {lengths.max()} steps, but a modality in "
                f"{self.option('tabular')} needs the same number in every item"
            )
        kept = np.float16 if array.dtype == np.float16 else np.float32
        values = cast(FloatArray, array.reshape(-1, array.shape[-1]).astype(kept, copy=False))
        return Sequences(values, starts, lengths, tabular).last_steps(self.settings.max_seq_len)

    def _windows(self, name: str, array: Array) -> tuple[IntArray, IntArray]:
        """Return first row and number of rows of each item."""
        if f"{name}_offsets" in self.arrays:
            offsets = self._offsets(name, array)
            starts, lengths = offsets[:-1], np.diff(offsets)
        elif array.ndim == 3:
            starts = np.arange(len(array)) * array.shape[1]
            lengths = np.full(len(array), array.shape[1])
        else:
            starts = np.arange(len(array))
            lengths = np.ones_like(starts)
        if len(starts) != self.items:
            raise self.fail(
                f"{name} has {len(starts)} items but {self.counted} has {self.items}; if it is no "
                f"modality, name those that are in {self.option('modalities')}"
            )
        if array.ndim == 2 and f"{name}_offsets" not in self.arrays:
            first = np.maximum(starts - self.settings.context, first_of_group(self.groups()))
            starts, lengths = first, starts - first + 1
        return starts, lengths

    def _offsets(self, name: str, array: Array) -> IntArray:
        offsets = self.array(f"{name}_offsets", "the offsets")
        whole = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 0
        if (
            not whole
            or array.ndim != 2
            or (np.diff(offsets.astype(np.int64)) < 0).any()
            or offsets[0] != 0
            or offsets[-1] != len(array)
        ):
            raise self.fail(
                f"{name}_offsets must rise from 0 to {len(array)}, the rows of {name}, which must "
                f"have the shape (rows, width) and has {array.shape}"
            )
        return offsets.astype(np.int64)


def first_of_group(groups: NDArray[np.str_]) -> IntArray:
    """Return (N,): where the run of equal groups that holds each item begins."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.repeat(begins, np.diff(np.r_[begins, len(groups)]))
