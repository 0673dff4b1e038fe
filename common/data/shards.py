"""Shards: one safetensors file for each client, and one for each evaluation side.

A shard holds items of one or more modalities with labels, ids and groups, and says in its header
what they are. It is sealed, see `common.seal`: what was damaged on its way to a site is refused.
Features are mapped into memory, not read.

Notation: N items, R rows of one modality, D feature width, K labels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from common.clients import check_modality_name
from common.data.dataset import FloatArray, IntArray, LabelArray, MultimodalDataset, Sequences
from common.errors import UserError
from common.seal import NotSealedError, SealError, read_sealed, write_sealed
from common.task import Task

#: Of the layout below; a shard of another version is refused.
VERSION = 1

#: Bytes of an id or of a group's name.
MAX_NAME = 4096


@dataclass(frozen=True)
class ShardInfo:
    """What a shard says of itself.

    Attributes
    ----------
    name
        Of the client, as "audio-0", or of the side, "validation" or "test".
    modalities
        In order.
    task
        Kind of label.
    outputs
        Numbers that a model of these data predicts: 1, or the number of classes or labels.
    label_names
        What the labels mean, where that is known.
    tabular
        Modalities whose steps are different quantities.
    """

    name: str
    modalities: tuple[str, ...]
    task: Task
    outputs: int
    label_names: tuple[str, ...] = ()
    tabular: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """A shard that was read and found whole."""

    info: ShardInfo
    items: MultimodalDataset
    seal: str


def write_shard(
    path: Path,
    items: MultimodalDataset,
    info: ShardInfo,
    dtype: np.dtype[Any] | None = None,
) -> str:
    """Write a shard; equal items and info give equal bytes.

    Parameters
    ----------
    path
        Written in place: callers write aside and rename.
    items
        What it holds. Rows that no item uses are left out.
    info
        What it says of itself.
    dtype
        float16 or float32 to store features as; None keeps what they have.

    Returns
    -------
    str
        Its seal.

    Raises
    ------
    UserError
        If a feature is too large for float16, or an id or group too long.
    OSError
        If it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {"labels": items.labels}
    arrays |= _pack_text("ids", items.ids) | _pack_text("groups", items.groups)
    for name, sequences in items.sequences.items():
        rows, starts = _compact(sequences)
        arrays[f"{name}.values"] = _stored(sequences.values[rows], dtype, name)
        arrays[f"{name}.starts"] = starts
        arrays[f"{name}.lengths"] = sequences.lengths
    return write_sealed(path, arrays, {"version": VERSION, **asdict(info)})


def read_shard(path: Path) -> Shard:
    """Check a shard's seal and map it into memory.

    Raises
    ------
    UserError
        If it is not a shard, is damaged, or is of another version.
    """
    with told_as_shard(path):
        header, tensors, seal = read_sealed(path)
    return ShardReader(path, header, tensors).shard(seal)


@contextmanager
def told_as_shard(path: Path) -> Iterator[None]:
    """Say of a sealed file that cannot be read what that means for a shard."""
    if path.is_dir():
        raise UserError(f"shard {path} is a folder; expected a file that utmp-prepare wrote")
    try:
        yield
    except NotSealedError as error:
        raise UserError(
            f"{path} is not a shard, or only a part of one; utmp-prepare writes shards"
        ) from error
    except SealError as error:
        raise UserError(f"shard {path} {error}; copy it again, or prepare it again") from error
    except OSError as error:
        raise UserError(f"shard {path} cannot be read: {error.strerror}") from error


def _stored(values: FloatArray, dtype: np.dtype[Any] | None, name: str) -> NDArray[Any]:
    if dtype is None or values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if (np.isinf(stored) & np.isfinite(values)).any():
        raise UserError(
            f"{name} has values up to {np.abs(values[np.isfinite(values)]).max():.3g}, too large "
            "for float16; use dtype=float32"
        )
    return stored


def _compact(sequences: Sequences) -> tuple[IntArray, IntArray]:
    """Return the rows in use, and where each item begins among them."""
    rows = sequences.rows()
    return rows, np.where(sequences.present, np.searchsorted(rows, sequences.starts), 0)


def _pack_text(name: str, texts: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    encoded = [text.encode() for text in texts.tolist()]
    longest = max(map(len, encoded), default=0)
    if longest > MAX_NAME:
        raise UserError(f"{name} are up to {longest} bytes long; expected {MAX_NAME} at most")
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {
        name: np.frombuffer(b"".join(encoded), dtype=np.uint8),
        f"{name}.ends": ends,
    }


def _unpack_text(content: bytes, ends: IntArray) -> NDArray[np.str_]:
    starts = np.concatenate([[0], ends[:-1]])
    return np.array(
        [
            content[start:end].decode()
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ],
        dtype=np.str_,
    )


@dataclass(frozen=True)
class ShardReader:
    """What a shard holds, not trusted: a seal shows damage, not who wrote it.

    Attributes
    ----------
    path
        The shard, for errors.
    header, tensors
        As they were read: all of it, or some of its items.
    """

    path: Path
    header: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def fail(self, reason: str) -> UserError:
        """Return the error of this shard."""
        return UserError(f"shard {self.path}: {reason}; prepare it again with utmp-prepare")

    def shard(self, seal: str) -> Shard:
        """Check everything."""
        info = self.info()
        labels = self._labels(info)
        if not info.modalities:
            raise self.fail("it holds no modality")
        items = MultimodalDataset(
            self.text("ids", len(labels)),
            self.text("groups", len(labels)),
            labels,
            {
                name: self.sequences(name, len(labels), name in info.tabular)
                for name in info.modalities
            },
            label_names=info.label_names,
        )
        return Shard(info, items, seal)

    def info(self) -> ShardInfo:
        """Return what it says of itself."""
        version = self.header.get("version")
        if version != VERSION:
            raise self.fail(f"it is of version {version}, and this release reads {VERSION}")
        try:
            info = ShardInfo(
                str(self.header["name"]),
                tuple(map(str, self.header["modalities"])),
                Task(self.header["task"]),
                int(self.header["outputs"]),
                tuple(map(str, self.header["label_names"])),
                tuple(map(str, self.header["tabular"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self.fail(f"its header is not understood ({error})") from error
        if info.outputs < 1 or (info.task is Task.regression and info.outputs != 1):
            raise self.fail(f"it declares {info.outputs} outputs and labels for {info.task}")
        for name in info.modalities:
            try:
                check_modality_name(name)
            except UserError as error:
                raise self.fail(str(error)) from error
        return info

    def _array(self, name: str, dtypes: tuple[torch.dtype, ...], dims: int) -> NDArray[Any]:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.fail(f"it lacks {name}")
        if tensor.dtype not in dtypes or tensor.dim() != dims:
            raise self.fail(f"{name} is {tensor.dtype} of {tensor.dim()} dimensions")
        array: NDArray[Any] = tensor.numpy()
        return array

    def _labels(self, info: ShardInfo) -> LabelArray:
        whole = info.task is Task.classification
        dims = 2 if info.task is Task.multilabel else 1
        labels = self._array("labels", (torch.int64 if whole else torch.float32,), dims)
        columns = info.outputs if dims == 2 else 1
        if len(labels) == 0 or labels.shape[1:] not in ((), (columns,)):
            raise self.fail(f"labels have the shape {labels.shape}")
        if not np.isfinite(labels).all():
            raise self.fail("a label is not finite")
        if whole and not (labels.min() >= 0 and labels.max() < info.outputs):
            raise self.fail(f"a class is not among the {info.outputs} that it declares")
        return cast(LabelArray, labels)

    def text(self, name: str, items: int) -> NDArray[np.str_]:
        """Return the names (items,) of ids or groups."""
        content = self._array(name, (torch.uint8,), 1).tobytes()
        ends = self._array(f"{name}.ends", (torch.int64,), 1)
        starts = np.concatenate([[0], ends[:-1]])
        if len(ends) != items or (ends < starts).any() or ends[-1] != len(content):
            raise self.fail(f"{name} are not one for each label")
        if (ends - starts).max() > MAX_NAME:
            raise self.fail(f"{name} are longer than {MAX_NAME} bytes")
        try:
            return _unpack_text(content, ends)
        except UnicodeDecodeError as error:
            raise self.fail(f"{name} are not text") from error

    def sequences(self, name: str, items: int, tabular: bool) -> Sequences:
        """Return the sequences of one modality, of so many items."""
        values = self._array(f"{name}.values", (torch.float32, torch.float16), 2)
        starts = self._array(f"{name}.starts", (torch.int64,), 1)
        lengths = self._array(f"{name}.lengths", (torch.int64,), 1)
        if not len(starts) == len(lengths) == items or values.shape[1] == 0:
            raise self.fail(f"{name} has {len(lengths)} items of width {values.shape[1]}")
        within = (starts >= 0) & (lengths >= 0) & (lengths <= len(values) - starts)
        if not within.all():
            raise self.fail(f"an item of {name} lies outside its rows")
        sequences = Sequences(values, starts, lengths, tabular)
        if sequences.uneven:
            raise self.fail(f"{name} is tabular and has items of different lengths")
        return sequences


def info_of(items: MultimodalDataset, name: str, task: Task, outputs: int) -> ShardInfo:
    """Describe items for their shard."""
    tabular = tuple(key for key, sequences in items.sequences.items() if sequences.tabular)
    return ShardInfo(name, tuple(items.sequences), task, outputs, items.label_names, tabular)
