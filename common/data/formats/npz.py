"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels), and per modality one numeric array as
`common.data.formats.layouts` has it, with its offsets in ``<modality>_offsets``. Any array of
length `items` can name the groups; `id` and `split`, where they are there, name the items and their
side. Object arrays are never read.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset, Sequences, concatenate, describe_shape
from common.data.formats import layouts
from common.data.formats.layouts import Array, Block
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
    files = [_File(Path(path), name, settings) for path, name in zip(paths, names, strict=True)]
    wanted = modalities_there(settings, files[0].arrays) or files[0].modalities
    if not wanted:
        raise UserError(f"{paths[0]}: no modality found; it has {files[0].listing}")
    parts = [file.read(wanted) for file in files]
    items = [part.items for part in parts]
    _check_widths(paths, items)
    joined = MultimodalDataset(
        _unique(np.concatenate([part.ids for part in items])),
        np.concatenate([part.groups for part in items]),
        np.concatenate([part.labels for part in items]),
        {name: concatenate([part.sequences[name] for part in items]) for name in wanted},
    )
    return drop_unlabelled(joined, np.concatenate([part.splits for part in parts]), settings)


def _check_widths(paths: Sequence[str | Path], parts: Sequence[MultimodalDataset]) -> None:
    shapes = [
        [("label", part.labels.shape[1:])]
        + [(name, each.statistics_shape) for name, each in part.sequences.items()]
        for part in parts
    ]
    for path, other in zip(paths, shapes, strict=True):
        for (name, expected), (_, shape) in zip(shapes[0], other, strict=True):
            if shape != expected:
                raise UserError(
                    f"{name} is {describe_shape(expected)} in {paths[0]} but "
                    f"{describe_shape(shape)} in {path}"
                )


def _unique(ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Add a number to the ids of items that share theirs with another."""
    _, membership, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if (counts == 1).all():
        return ids
    shared = counts[membership] > 1
    return np.array(
        [f"{name}#{item}" if shared[item] else name for item, name in enumerate(ids.tolist())]
    )


class _File:
    """One file; its items without an `id` or a group are called after it, and numbered."""

    def __init__(self, path: Path, name: str, settings: ReadSettings) -> None:
        if not path.exists():
            raise UserError(f"dataset file {path} does not exist")
        if path.is_dir():
            raise UserError(f"dataset file {path} is a directory; expected an .npz file")
        self.path, self.name, self.settings = path, name, settings
        self.arrays = layouts.load_npz(path)
        self.listing = ", ".join(sorted(self.arrays)) or "nothing"
        self.modalities = tuple(
            name
            for name, array in self.arrays.items()
            if isinstance(array, np.ndarray)
            and name != "label"
            and array.ndim >= 2
            and array.dtype.kind == "f"
        )

    def read(self, modalities: Sequence[str]) -> Source:
        """Read all items; a label is NaN where there is none."""
        settings, prefix = self.settings, self.settings.prefix
        if settings.predicting:
            there = modalities_there(settings, self.arrays) or self.modalities
            counted = next(iter(there), "id")
            labels = no_labels(len(self._block(counted).starts))
        else:
            counted, labels = "label", self._labels()
        count = len(labels)
        ids = groups = np.array([f"{self.name}#{item}" for item in range(count)])
        if "id" in self.arrays:
            ids = self._names("id", "the ids", counted, count)
        if settings.group is not None:
            groups = self._names(settings.group, f"{prefix}group", counted, count)
        splits = layouts.no_sides(count)
        if "split" in self.arrays and not settings.predicting:
            sides = self._names("split", "the sides", counted, count)
            splits = layouts.sides_of(self.path, sides.tolist())
        sequences: dict[str, Sequences] = {}
        for name in modalities:
            block = self._block(name)
            if len(block.starts) != count:
                raise UserError(
                    f"{self.path}: {name} has {len(block.starts)} items but {counted} has {count}; "
                    f"if it is no modality, name those that are in {prefix}modalities"
                )
            sequences[name] = block.sequences(self.path, name, settings, groups)
        return Source(MultimodalDataset(ids, groups, labels, sequences), splits)

    def _array(self, name: str, setting: str) -> Array:
        if name not in self.arrays:
            raise UserError(f"{self.path} has no array {name!r} ({setting}); it has {self.listing}")
        return self.arrays[name]

    def _block(self, name: str) -> Block:
        if self._array(name, f"{self.settings.prefix}modalities").ndim == 0:
            raise UserError(f"{self.path}: {name} is a single value, expected an item a row")
        return Block.of(self.path, self.arrays, name, f"{name}_offsets")

    def _labels(self) -> NDArray[np.float32]:
        """Return (items,) or, for several labels, (items, K); NaN where there is none."""
        labels, task = self._array("label", "the labels"), self.settings.task
        if labels.dtype.kind not in "fiub" or labels.ndim not in (1, 2) or labels.size == 0:
            raise UserError(
                f"{self.path}: label is {labels.dtype} of shape {labels.shape}, expected numbers, "
                "one or a row of them for each item"
            )
        columns = 1 if labels.ndim == 1 else labels.shape[1]
        if task is not Task.multilabel and columns > 1:
            raise UserError(f"{self.path}: label has {columns} columns, but task={task} takes one")
        shape = (len(labels), columns) if task is Task.multilabel else len(labels)
        return checked_labels(labels.reshape(shape).astype(np.float64), self.settings, self.path)

    def _names(self, name: str, setting: str, counted: str, count: int) -> NDArray[np.str_]:
        names = self._array(name, setting)
        if names.shape != (count,):
            raise UserError(
                f"{self.path}: {name} has shape {names.shape}, expected one per item of {counted}, "
                f"({count},)"
            )
        return np.array([as_text(each) for each in names.tolist()], dtype=np.str_)


FORMATS["npz"] = Format(
    _recognise, lambda given, settings: read_npz(given.paths, settings), several=True
)
