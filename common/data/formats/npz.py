"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels), and per modality one numeric array as
`common.data.formats.layouts` has it, with its offsets in ``<modality>_offsets``. Any array of
length `items` can name the groups; `id` and `split`, where they are there, name the items and their
side. Without settings, all arrays of numbers of two or more dimensions are modalities. Object
arrays are never read.
"""

import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import list_hint
from common.data.dataset import (
    MultimodalDataset,
    Sequences,
    concatenate,
    describe_shape,
)
from common.data.formats import layouts
from common.data.formats.layouts import Array, Block
from common.data.formats.registry import FORMATS, Format, Given
from common.data.labels import Labels, no_labels, read_labels
from common.data.source import (
    ReadSettings,
    Source,
    as_text,
    finished,
    modalities_there,
)
from common.errors import UserError
from common.task import Task

#: How a zip archive begins, whole or not.
_MAGIC = b"PK\x03\x04"


def _recognise(given: Given) -> str | None:
    if not given.path.is_file():
        return None
    with given.path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
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
    labels = _labels(files, settings)
    joined = MultimodalDataset(
        _unique(np.concatenate([part.ids for part in items])),
        np.concatenate([part.groups for part in items]),
        labels.values,
        {name: concatenate([part.sequences[name] for part in items]) for name in wanted},
        label_names=labels.names,
    )
    return finished(joined, np.concatenate([part.splits for part in parts]), settings)


def _labels(files: Sequence["_File"], settings: ReadSettings) -> Labels:
    """Read the labels of all files together, so that a class has the same number in all."""
    if settings.predicting:
        return Labels(no_labels(sum(file.count for file in files)))
    arrays = [file.labels() for file in files]
    shapes = [array.shape[1:] for array in arrays]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"label is {describe_shape(shapes[0])} in {files[0].path} but "
                f"{describe_shape(shape)} in {file.path}"
            )
    places = [f"item {item} of {file.path}" for file in files for item in range(file.count)]
    columns = [
        [cell for array in arrays for cell in array[:, k].tolist()] for k in range(*shapes[0])
    ]
    names = ["label"] * len(columns)
    path = files[0].path if len(files) == 1 else files[0].path.parent
    return read_labels(path, columns, names, settings, places.__getitem__)


def _check_widths(paths: Sequence[str | Path], parts: Sequence[MultimodalDataset]) -> None:
    shapes = [
        [(name, each.statistics_shape) for name, each in part.sequences.items()] for part in parts
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
            raise UserError(f"dataset file {path} does not exist{list_hint(path)}")
        if path.is_dir():
            raise UserError(f"dataset file {path} is a directory; expected an .npz file")
        self.path, self.name, self.settings = path, name, settings
        self.arrays = layouts.load_npz(path)
        self.listing = ", ".join(sorted(self.arrays)) or "nothing"
        self.modalities = tuple(
            name
            for name, array in self.arrays.items()
            if isinstance(array, np.ndarray)
            and name.lower() not in {*layouts.NO_MODALITY, settings.group}
            and array.ndim >= 2
            and array.dtype.kind in "fiub"
        )

    @cached_property
    def counted(self) -> str:
        """The array that says how many items there are."""
        if not self.settings.predicting:
            return "label"
        return next(iter(modalities_there(self.settings, self.arrays) or self.modalities), "id")

    @cached_property
    def count(self) -> int:
        """Number of items."""
        counted = self.counted
        return len(self.labels() if counted == "label" else self._block(counted).starts)

    def read(self, modalities: Sequence[str]) -> Source:
        """Read all items, without their labels."""
        settings, prefix = self.settings, self.settings.prefix
        counted, count = self.counted, self.count
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
        self._note_unused(modalities)
        return Source(MultimodalDataset(ids, groups, no_labels(count), sequences), splits)

    def _note_unused(self, modalities: Sequence[str]) -> None:
        settings, offsets = self.settings, [f"{name}_offsets" for name in modalities]
        used = {"id", "label", "split", settings.group, *modalities, *offsets}
        unused = [name for name in self.arrays if name not in used]
        settings.unused("array", unused)
        for name in unused if settings.group is None else []:
            if isinstance(self.arrays.get(name), np.ndarray) and self.arrays[name].ndim == 1:
                settings.offer_group(name, self.arrays[name].tolist())

    def _array(self, name: str, setting: str) -> Array:
        if name not in self.arrays:
            raise UserError(f"{self.path} has no array {name!r} ({setting}); it has {self.listing}")
        return self.arrays[name]

    def _block(self, name: str) -> Block:
        if self._array(name, f"{self.settings.prefix}modalities").ndim == 0:
            raise UserError(f"{self.path}: {name} is a single value, expected an item a row")
        return Block.of(self.path, self.arrays, name, f"{name}_offsets")

    def labels(self) -> Array:
        """Return (items, K) labels, as the file has them."""
        labels, task = self._array("label", "the labels"), self.settings.task
        if labels.dtype.kind not in "fiubSU" or labels.ndim not in (1, 2) or labels.size == 0:
            raise UserError(
                f"{self.path}: label is {labels.dtype} of shape {labels.shape}, expected numbers "
                "or classes, one or a row of them for each item"
            )
        labels = labels.reshape(len(labels), -1)
        if task is not Task.multilabel and labels.shape[1] > 1:
            raise UserError(
                f"{self.path}: label has {labels.shape[1]} columns, but task={task} takes one"
            )
        return labels

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
