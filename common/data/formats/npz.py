"""Arrays in ``.npz`` files.

A file holds ``label`` (items,) or (items, labels) and per modality one numeric array: (items,
steps, width); or (items, width), one vector an item, made a sequence by the `context` items of the
same group before it; or (rows, width) with ``<modality>_offsets`` (items + 1,) for ragged
sequences. Any array of length `items` can name the groups. Object arrays are never read.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import NpzConfig
from common.data.dataset import IntArray, LabelArray, MultimodalDataset, Sequences, concatenate
from common.errors import UserError
from common.task import Task

Arrays = dict[str, NDArray[np.generic]]


def read_npz(
    paths: Sequence[str | Path], config: NpzConfig, modalities: Sequence[str] | None = None
) -> MultimodalDataset:
    """Read one or more files into one dataset.

    Parameters
    ----------
    paths
        The files; their modalities must agree in width.
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
    files = [_load(Path(path)) for path in paths]
    names = list(modalities or config.modalities or _modalities(files[0]))
    if not names:
        raise UserError(f"{paths[0]}: no modality found; it has {_listing(files[0])}")
    unknown = sorted(set(config.tabular) - set(names))
    if unknown and modalities is None:
        raise UserError(f"dataset.tabular: {unknown[0]!r} is not among {', '.join(names)}")
    sequences = {}
    for name in names:
        parts = [
            _sequences(arrays, name, path, config)
            for arrays, path in zip(files, paths, strict=True)
        ]
        _check_widths(name, parts, paths)
        sequences[name] = concatenate(parts)
    labels = np.concatenate(
        [_labels(arrays, path, config) for arrays, path in zip(files, paths, strict=True)]
    )
    groups = np.concatenate(
        [_groups(arrays, path, config) for arrays, path in zip(files, paths, strict=True)]
    )
    labels = _checked(labels, config, paths[0])
    return _drop_unlabelled(MultimodalDataset(groups, labels, sequences), config.task)


def _load(path: Path) -> Arrays:
    if not path.exists():
        raise UserError(f"dataset file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} is a single array; expected an .npz archive")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as .npz: {reason}") from error


def _modalities(arrays: Arrays) -> list[str]:
    return [
        name
        for name, array in arrays.items()
        if name != "label" and array.ndim >= 2 and array.dtype.kind == "f"
    ]


def _listing(arrays: Arrays) -> str:
    return ", ".join(sorted(arrays)) or "nothing"


def _array(arrays: Arrays, name: str, path: str | Path, setting: str) -> NDArray[np.generic]:
    if name not in arrays:
        raise UserError(f"{path} has no array {name!r} ({setting}); it has {_listing(arrays)}")
    return arrays[name]


def _labels(arrays: Arrays, path: str | Path, config: NpzConfig) -> NDArray[np.float64]:
    labels = _array(arrays, "label", path, "the labels")
    if labels.dtype.kind not in "fiub":
        raise UserError(f"{path}: label has dtype {labels.dtype}, expected numbers")
    wanted = 2 if config.task is Task.multilabel else 1
    labels = labels.reshape(len(labels), -1)
    if wanted == 1 and labels.shape[1] != 1:
        raise UserError(
            f"{path}: label has {labels.shape[1]} columns, but task={config.task} takes one"
        )
    numbers = labels.astype(np.float64)
    return numbers if wanted == 2 else numbers[:, 0]


def _checked(
    labels: NDArray[np.float64], config: NpzConfig, path: str | Path
) -> NDArray[np.float32]:
    """Check the labels that are there; NaN stays."""
    known = labels[~np.isnan(labels)]
    if len(known) == 0:
        raise UserError(f"{path}: every label is NaN")
    if not np.isfinite(known).all():
        raise UserError(f"{path}: label holds an infinity")
    if config.task is Task.classification and ((known < 0) | (known % 1 != 0)).any():
        raise UserError(
            f"{path}: classes must be whole numbers from 0; for numbers use dataset.task=regression"
        )
    if config.task is Task.multilabel:
        labels = np.where(np.isnan(labels), np.nan, labels > 0)
    return labels.astype(np.float32)


def _groups(arrays: Arrays, path: str | Path, config: NpzConfig) -> NDArray[np.str_]:
    items = len(_array(arrays, "label", path, "the labels"))
    if config.group is None:
        # Every item stands for itself.
        return np.array([f"{path}#{item}" for item in range(items)])
    groups = _array(arrays, config.group, path, "dataset.group")
    if groups.shape != (items,):
        raise UserError(
            f"{path}: {config.group} has shape {groups.shape}, expected one per label, ({items},)"
        )
    return groups.astype(np.str_)


def _sequences(arrays: Arrays, name: str, path: str | Path, config: NpzConfig) -> Sequences:
    array = _array(arrays, name, path, "dataset.modalities")
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3):
        raise UserError(
            f"{path}: {name} is {array.dtype} of shape {array.shape}, "
            "expected numbers of 2 or 3 dimensions"
        )
    starts, lengths = _windows(arrays, name, array, path, config)
    items = len(_array(arrays, "label", path, "the labels"))
    if len(starts) != items:
        raise UserError(f"{path}: {name} has {len(starts)} items but label has {items}")
    values = array.reshape(-1, array.shape[-1]).astype(np.float32)
    tabular = name in config.tabular
    if tabular and len(np.unique(lengths[lengths > 0])) > 1:
        raise UserError(
            f"{path}: {name} has from {lengths.min()} to {lengths.max()} steps, but a modality in "
            "dataset.tabular needs the same number in every item"
        )
    return Sequences(values, starts, lengths, tabular).last_steps(config.max_seq_len)


def _windows(
    arrays: Arrays,
    name: str,
    array: NDArray[np.generic],
    path: str | Path,
    config: NpzConfig,
) -> tuple[IntArray, IntArray]:
    if f"{name}_offsets" in arrays:
        offsets = arrays[f"{name}_offsets"].astype(np.int64)
        rising = offsets.ndim == 1 and len(offsets) > 0 and (np.diff(offsets) >= 0).all()
        if not rising or offsets[0] != 0 or offsets[-1] != len(array):
            raise UserError(
                f"{path}: {name}_offsets must rise from 0 to {len(array)}, the rows of {name}"
            )
        return offsets[:-1], np.diff(offsets)
    if array.ndim == 3:
        items, steps = array.shape[:2]
        return np.arange(items) * steps, np.full(items, steps)
    items = np.arange(len(array))
    first = _first_of_group(_groups(arrays, path, config))
    starts = np.maximum(items - config.context, first[: len(items)])
    return starts, items - starts + 1


def _first_of_group(groups: NDArray[np.str_]) -> IntArray:
    """Return (N,): where the run of equal groups that holds each item begins."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.repeat(begins, np.diff(np.r_[begins, len(groups)]))


def _check_widths(name: str, parts: list[Sequences], paths: Sequence[str | Path]) -> None:
    for part, path in zip(parts, paths, strict=True):
        if part.width != parts[0].width:
            raise UserError(
                f"{name} is {parts[0].width} wide in {paths[0]} but {part.width} in {path}"
            )


def _drop_unlabelled(dataset: MultimodalDataset, task: Task) -> MultimodalDataset:
    unlabelled = np.isnan(dataset.labels).reshape(len(dataset), -1).any(axis=1)
    kept = dataset.select(np.flatnonzero(~unlabelled))
    labels: LabelArray = kept.labels
    if task is Task.classification:
        labels = labels.astype(np.int64)
    dropped = int(unlabelled.sum())
    cleaning = {"items without a label, dropped": dropped} if dropped else {}
    return replace(kept, labels=labels, cleaning=cleaning)
