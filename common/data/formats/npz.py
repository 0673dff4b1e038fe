"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels) and per modality one numeric array: (items,
steps, width); or (items, width), one vector an item, made a sequence by the `context` items of the
same group before it; or (rows, width) with ``<modality>_offsets`` (items + 1,) for ragged
sequences. Any array of length `items` can name the groups. Object arrays are never read.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import NpzConfig
from common.data.dataset import (
    IntArray,
    LabelArray,
    MultimodalDataset,
    Sequences,
    concatenate,
    describe_shape,
)
from common.errors import UserError
from common.task import Task

Array = NDArray[Any]

#: More than this many classes are a mistake, such as labels that are ids.
MAX_CLASSES = 10_000


def read_npz(
    paths: Sequence[str | Path], config: NpzConfig, modalities: Sequence[str] | None = None
) -> MultimodalDataset:
    """Read one or more files into one dataset.

    Parameters
    ----------
    paths
        The files; they must agree in the widths of modalities and labels.
    config
        Task, group, context and maximal sequence length.
    modalities
        Which to read; by default ``config.modalities``, or every modality of the first file.

    Returns
    -------
    MultimodalDataset
        Items whose label is NaN are dropped, and counted in ``cleaning``.

    Raises
    ------
    UserError
        If a file cannot be read, lacks an array, or disagrees with the others.
    """
    if config.context > 0 and config.group is None:
        raise UserError(
            f"dataset.context={config.context} needs dataset.group: context is what came before in "
            "the same group"
        )
    files = [_File(Path(path), _load(Path(path)), config) for path in paths]
    names = list(modalities or config.modalities or files[0].modalities())
    if not names:
        raise UserError(f"{paths[0]}: no modality found; it has {files[0].listing()}")
    unknown = sorted(set(config.tabular) - set(names))
    if unknown and modalities is None:
        raise UserError(f"dataset.tabular: {unknown[0]!r} is not among {', '.join(names)}")
    labels = [file.labels() for file in files]
    for file, label in zip(files, labels, strict=True):
        if label.shape[1:] != labels[0].shape[1:]:
            raise UserError(
                f"label is {labels[0].shape[1]} wide in {paths[0]} but {label.shape[1]} in "
                f"{file.path}"
            )
    dataset = MultimodalDataset(
        np.concatenate([file.groups() for file in files]),
        np.concatenate(labels),
        {name: _joined(name, files) for name in names},
    )
    return _drop_unlabelled(dataset, config.task)


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
            return {name: _member(archive, name, path) for name in archive.files}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from error


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Array | UserError:
    try:
        array = archive[name]
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        return UserError(f"{path}: array {name!r} cannot be read: {_first_line(error)}")
    return (
        array if isinstance(array, np.ndarray) else UserError(f"{path}: {name!r} is not an array")
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class _File:
    """One file; every method checks what it returns, and names the file in its errors."""

    path: Path
    arrays: Mapping[str, Array | UserError]
    config: NpzConfig

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
        return len(self.labels())

    def labels(self) -> NDArray[np.float32]:
        """Return (items,) or, for several labels, (items, K); NaN where there is none."""
        labels, task = self.array("label", "the labels"), self.config.task
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
        return self._checked(labels.astype(np.float64))

    def _checked(self, labels: NDArray[np.float64]) -> NDArray[np.float32]:
        known = labels[~np.isnan(labels)]
        if len(known) == 0:
            raise self.fail("every label is NaN")
        if not (np.abs(known) <= np.finfo(np.float32).max).all():
            raise self.fail("label holds an infinity, or a number too large for one")
        task = self.config.task
        if task is Task.classification and ((known < 0) | (known % 1 != 0)).any():
            raise self.fail(
                "classes must be whole numbers from 0; for numbers use dataset.task=regression"
            )
        if task is Task.classification and known.max() >= MAX_CLASSES:
            raise self.fail(f"class {known.max():.0f}: expected fewer than {MAX_CLASSES} classes")
        if task is Task.multilabel:
            labels = np.where(np.isnan(labels), np.nan, labels > 0)
        return labels.astype(np.float32)

    def groups(self) -> NDArray[np.str_]:
        """Return (items,) group names; without a group every item stands for itself."""
        if self.config.group is None:
            return np.array([f"{self.path.resolve()}#{item}" for item in range(self.items)])
        groups = self.array(self.config.group, "dataset.group")
        if groups.shape != (self.items,):
            raise self.fail(
                f"{self.config.group} has shape {groups.shape}, expected one per label, "
                f"({self.items},)"
            )
        return groups.astype(np.str_)

    def sequences(self, name: str) -> Sequences:
        array = self.array(name, "dataset.modalities")
        if array.dtype.kind not in "fiu" or array.ndim not in (2, 3):
            raise self.fail(
                f"{name} is {array.dtype} of shape {array.shape}, "
                "expected numbers of 2 or 3 dimensions"
            )
        starts, lengths = self._windows(name, array)
        tabular = name in self.config.tabular
        if tabular and len(np.unique(lengths[lengths > 0])) > 1:
            raise self.fail(
                f"{name} has from {lengths.min()} to {lengths.max()} steps, but a modality in "
                "dataset.tabular needs the same number in every item"
            )
        values = array.reshape(-1, array.shape[-1]).astype(np.float32)
        return Sequences(values, starts, lengths, tabular).last_steps(self.config.max_seq_len)

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
                f"{name} has {len(starts)} items but label has {self.items}; if it is no modality, "
                "name those that are in dataset.modalities"
            )
        if array.ndim == 2 and f"{name}_offsets" not in self.arrays:
            first = np.maximum(starts - self.config.context, _first_of_group(self.groups()))
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


def _first_of_group(groups: NDArray[np.str_]) -> IntArray:
    """Return (N,): where the run of equal groups that holds each item begins."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.repeat(begins, np.diff(np.r_[begins, len(groups)]))


def _drop_unlabelled(dataset: MultimodalDataset, task: Task) -> MultimodalDataset:
    unlabelled = np.isnan(dataset.labels).reshape(len(dataset), -1).any(axis=1)
    kept = dataset.select(np.flatnonzero(~unlabelled))
    labels: LabelArray = kept.labels
    if task is Task.classification:
        labels = labels.astype(np.int64)
    dropped = int(unlabelled.sum())
    cleaning = {"items without a label, dropped": dropped} if dropped else {}
    return replace(kept, labels=labels, cleaning=cleaning)
