"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels), and per modality one numeric array as
`common.data.formats.layouts` has it, with its offsets in ``<modality>_offsets``. Any array of
length `items` can name the groups; `id` and `split`, where they are there, name the items and their
side. Object arrays are never read.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset, Sequences, concatenate, describe_shape
from common.data.formats import layouts
from common.data.formats.layouts import Array, Arrays, Block
from common.data.formats.registry import FORMATS, Format, Given
from common.data.source import (
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


def _recognise(given: Given) -> str | None:
    if not (given.path.is_file() and zipfile.is_zipfile(given.path)):
        return None
    try:
        with zipfile.ZipFile(given.path) as archive:
            arrays = [name for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return "a zip archive, damaged"  # which reading it says in full
    return f"a zip archive of {len(arrays)} arrays" if arrays else None


def read_npz(paths: Sequence[str | Path], settings: ReadSettings) -> Source:
    """Read one or more files into one dataset.

    Items whose label is NaN are dropped, and counted in ``cleaning``; without `modalities`, all of
    the first file are read.

    Raises
    ------
    UserError
        If a file cannot be read, lacks an array, or disagrees with the others in a width.
    """
    if settings.context > 0 and settings.group is None:
        raise UserError(
            f"{settings.prefix}context={settings.context} needs {settings.prefix}group: context is "
            "what came before in the same group"
        )
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name}({number})" for number, name in enumerate(names)]
    files = [
        _File(Path(path), _load(Path(path)), settings, name)
        for path, name in zip(paths, names, strict=True)
    ]
    wanted = modalities_there(settings, files[0].arrays) or files[0].modalities()
    if not wanted:
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
        {name: _joined(name, files) for name in wanted},
    )
    return drop_unlabelled(items, np.concatenate([file.splits() for file in files]), settings)


def _load(path: Path) -> Arrays:
    if not path.exists():
        raise UserError(f"dataset file {path} does not exist")
    if path.is_dir():
        raise UserError(f"dataset file {path} is a directory; expected an .npz file")
    return layouts.load_npz(path)


def _told_apart(ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Add a number to the ids of items that share theirs with another."""
    _, membership, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if (counts == 1).all():
        return ids
    shared = counts[membership] > 1
    return np.array(
        [f"{name}#{item}" if shared[item] else name for item, name in enumerate(ids.tolist())]
    )


def _joined(name: str, files: Sequence["_File"]) -> Sequences:
    parts = [file.sequences(name) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.statistics_shape != parts[0].statistics_shape:
            first, other = (describe_shape(p.statistics_shape) for p in (parts[0], part))
            raise UserError(f"{name} is {first} in {files[0].path} but {other} in {file.path}")
    return concatenate(parts)


@dataclass(frozen=True)
class _File:
    """One file; every method checks what it returns, and names the file in its errors."""

    path: Path
    arrays: Arrays
    settings: ReadSettings
    name: str

    def fail(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {reason}")

    def listing(self) -> str:
        return ", ".join(sorted(self.arrays)) or "nothing"

    def modalities(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, array in self.arrays.items()
            if isinstance(array, np.ndarray)
            and name != "label"
            and array.ndim >= 2
            and array.dtype.kind == "f"
        )

    def array(self, name: str, setting: str) -> Array:
        if name not in self.arrays:
            raise UserError(
                f"{self.path} has no array {name!r} ({setting}); it has {self.listing()}"
            )
        return self.arrays[name]

    def block(self, name: str) -> Block:
        if self.array(name, f"{self.settings.prefix}modalities").ndim == 0:
            raise self.fail(f"{name} is a single value, expected an item a row")
        return Block.of(self.path, self.arrays, name, f"{name}_offsets")

    @cached_property
    def items(self) -> int:
        if self.settings.predicting:
            return len(self.block(self.counted).starts)
        return len(self.labels())

    @property
    def counted(self) -> str:
        """The array that says how many items there are: the labels, or the first modality."""
        if not self.settings.predicting:
            return "label"
        return next(iter(modalities_there(self.settings, self.arrays) or self.modalities()), "id")

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
        if task is not Task.multilabel and columns > 1:
            raise self.fail(f"label has {columns} columns, but task={task} takes one")
        shape = (len(labels), columns) if task is Task.multilabel else len(labels)
        return checked_labels(labels.reshape(shape).astype(np.float64), self.settings, self.path)

    def numbered(self) -> NDArray[np.str_]:
        return np.array([f"{self.name}#{item}" for item in range(self.items)])

    def ids(self) -> NDArray[np.str_]:
        """Return (items,) names; without `id`, the file's name and a number."""
        return self.names("id", "the ids") if "id" in self.arrays else self.numbered()

    def groups(self) -> NDArray[np.str_]:
        """Return (items,) group names; without a group every item stands for itself."""
        group = self.settings.group
        return (
            self.numbered() if group is None else self.names(group, f"{self.settings.prefix}group")
        )

    def splits(self) -> NDArray[np.str_]:
        """Return (items,) sides; without `split`, none."""
        if self.settings.predicting or "split" not in self.arrays:
            return layouts.no_sides(self.items)
        return layouts.sides_of(self.path, self.names("split", "the sides").tolist())

    def names(self, name: str, setting: str) -> NDArray[np.str_]:
        names = self.array(name, setting)
        if names.shape != (self.items,):
            raise self.fail(
                f"{name} has shape {names.shape}, expected one per item of {self.counted}, "
                f"({self.items},)"
            )
        return np.array([as_text(each) for each in names.tolist()], dtype=np.str_)

    def sequences(self, name: str) -> Sequences:
        block = self.block(name)
        if len(block.starts) != self.items:
            raise self.fail(
                f"{name} has {len(block.starts)} items but {self.counted} has {self.items}; if it "
                f"is no modality, name those that are in {self.settings.prefix}modalities"
            )
        windows = block.windows(self.settings, self.groups)
        sequences = Sequences(layouts.float_rows([block.values]), *windows)
        return layouts.settled(self.path, name, sequences, self.settings)


FORMATS["npz"] = Format(
    _recognise, lambda given, settings: read_npz(given.paths, settings), several=True
)
