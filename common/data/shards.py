"""Shards: one safetensors file for each client, and one for each evaluation side.

A shard contains items of one or more modalities with labels, ids and groups, and its header says
what they are. It is sealed, see `common.seal`: a damaged one is refused. A seal does not say who
wrote it, so nothing in it is trusted. Features are mapped into memory, not read.

Notation: N items, R rows of one modality, D feature width, K labels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from common.clients import check_modality_name
from common.data.dataset import FloatArray, ItemPart, LabelArray, MultimodalDataset, Sequences
from common.data.source import Reading
from common.errors import UserError, parsed_as, reason
from common.seal import NotSealedError, SealError, map_arrays, read_sealed, write_sealed
from common.task import Task

if TYPE_CHECKING:
    from torch import Tensor

#: Of the layout below; a shard of another version is refused.
VERSION = 1

#: Bytes of an id or of a group's name.
MAX_NAME = 4096


@dataclass(frozen=True)
class ShardInfo:
    """What a shard's header says."""

    #: Of the client, as "audio-0", or of the side, "validation" or "test".
    name: str
    #: In order.
    modalities: tuple[str, ...]
    task: Task
    #: Numbers that a model of these data predicts: 1, or the number of classes or labels.
    outputs: int
    #: What the labels mean, where that is known.
    label_names: tuple[str, ...] = ()
    #: Modalities whose steps are different quantities.
    tabular: tuple[str, ...] = ()
    #: How the source was read; None in shards of before.
    reading: Reading | None = None


@dataclass(frozen=True)
class Shard:
    """A shard that was read and checked."""

    info: ShardInfo
    items: MultimodalDataset
    seal: str


def info_of(
    items: MultimodalDataset, name: str, task: Task, outputs: int, reading: Reading | None = None
) -> ShardInfo:
    """Describe items for their shard."""
    names = tuple(items.sequences)
    tabular = tuple(key for key, sequences in items.sequences.items() if sequences.tabular)
    return ShardInfo(name, names, task, outputs, items.label_names, tabular, reading)


def write_shard(
    path: Path, items: MultimodalDataset, info: ShardInfo, dtype: np.dtype[Any] | None = None
) -> str:
    """Write a shard in place and return its seal; equal items and info give equal bytes.

    Rows that no item uses are left out. Features are stored as `dtype`, float16 or float32, or as
    they are.

    Raises
    ------
    UserError
        If a feature is too large for float16, or an id or group too long.
    OSError
        If it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {"labels": items.labels}
    arrays |= _pack_text("ids", items.ids) | _pack_text("groups", items.groups)
    for name, seqs in items.sequences.items():
        rows = seqs.rows()
        starts = np.where(seqs.present, np.searchsorted(rows, seqs.starts), 0)
        arrays[f"{name}.values"] = _stored(seqs.values[rows], dtype, name)
        arrays |= {f"{name}.starts": starts, f"{name}.lengths": seqs.lengths}
    return write_sealed(path, arrays, {"version": VERSION, **asdict(info)})


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


def _pack_text(name: str, texts: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    try:
        encoded = [text.encode() for text in texts.tolist()]
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: {error.object!a} is not text that UTF-8 can write") from error
    longest = max(map(len, encoded), default=0)
    if longest > MAX_NAME:
        raise UserError(f"{name} are up to {longest} bytes long; expected {MAX_NAME} at most")
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.ends": ends}


def read_shard(path: Path) -> Shard:
    """Check a shard and map it into memory.

    Raises `UserError` if it is not a shard, is damaged, or is of another version.
    """
    info, arrays, seal = _open(path)
    labels, all_items = arrays.labels(info), slice(0, arrays.count)
    if len(labels) != arrays.count:
        raise arrays.fail(f"it has {len(labels)} labels and {arrays.count} ids")
    ids, sequences = arrays.part(info, all_items)
    groups = arrays.names("groups", all_items)
    items = MultimodalDataset(ids, groups, labels, sequences, label_names=info.label_names)
    return Shard(info, items, seal)


@dataclass(frozen=True)
class ShardStream:
    """A checked shard that is read a few items at a time, in memory that does not grow with it.

    Pages of mapped memory stay once they were used, so the file is mapped anew for every part.
    """

    path: Path
    info: ShardInfo
    #: N.
    count: int

    @classmethod
    def open(cls, path: Path) -> "ShardStream":
        """Check all that `read_shard` checks before it looks at items."""
        info, arrays, _ = _open(path)
        return cls(path, info, arrays.count)

    def part(self, first: int, last: int) -> ItemPart:
        """Return the ids of the items from `first` to before `last`, and their sequences.

        Labels and groups are not looked at. `UserError` if these items are not sound.
        """
        with _shard_errors(self.path):
            arrays = _Arrays(self.path, map_arrays(self.path), self.count)
        ids, sequences = arrays.part(self.info, slice(first, last))
        return ItemPart(ids, {name: seqs.narrowed() for name, seqs in sequences.items()})


@contextmanager
def _shard_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a sealed file into those of a shard."""
    try:
        yield
    except NotSealedError as error:
        raise UserError(f"{path} is not a shard: it {error}; utmp-prepare writes shards") from error
    except SealError as error:
        raise UserError(f"shard {path} {error}; copy it again, or prepare it again") from error
    except FileNotFoundError as error:
        raise UserError(f"shard {path} does not exist") from error
    except OSError as error:
        raise UserError(f"shard {path} cannot be read: {reason(error)}") from error


def _open(path: Path) -> tuple[ShardInfo, "_Arrays", str]:
    """Check a shard's seal and header, and map its arrays."""
    with _shard_errors(path):
        header, tensors, seal = read_sealed(path)
    arrays = _Arrays(path, tensors, 0)
    version = header.get("version")
    if version != VERSION:
        raise arrays.fail(f"it is of version {version}, and this release reads {VERSION}")
    try:
        info = parsed_as(ShardInfo, header)
        for name in info.modalities:
            check_modality_name(name)
    except (ValueError, UserError) as error:
        raise arrays.fail(f"its header is not understood ({error})") from error
    if info.outputs < 1 or (info.task is Task.regression and info.outputs != 1):
        raise arrays.fail(f"it declares {info.outputs} outputs and labels for {info.task}")
    arrays = replace(arrays, count=len(arrays.get("ids.ends", "int64")))
    if arrays.count == 0 or not info.modalities:
        raise arrays.fail("it holds no item, or no modality")
    return info, arrays, seal


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a shard, not trusted: a seal shows damage, not who wrote the file."""

    path: Path
    tensors: Mapping[str, "Tensor"]
    #: N, of every array that has one value for each item.
    count: int

    def fail(self, reason: str) -> UserError:
        return UserError(f"shard {self.path}: {reason}; prepare it again with utmp-prepare")

    def get(self, name: str, *dtypes: str, dims: int = 1) -> NDArray[Any]:
        """Return an array, which must have one of some types and so many dimensions."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.fail(f"it lacks {name}")
        if str(tensor.dtype).removeprefix("torch.") not in dtypes or tensor.dim() != dims:
            raise self.fail(f"{name} is {tensor.dtype} of {tensor.dim()} dimensions")
        array: NDArray[Any] = tensor.numpy()
        return array

    def per_item(self, name: str) -> NDArray[np.int64]:
        """Return an array of one whole number for each item."""
        array = self.get(name, "int64")
        if len(array) != self.count:
            raise self.fail(f"{name} has {len(array)} items, and ids {self.count}")
        return array

    def labels(self, info: ShardInfo) -> LabelArray:
        classes, several = info.task is Task.classification, info.task is Task.multilabel
        kinds = {
            Task.regression: ("float64", "float32"),  # float32 in older shards
            Task.classification: ("int64",),
            Task.multilabel: ("float32",),
        }[info.task]
        labels = self.get("labels", *kinds, dims=2 if several else 1)
        if several and labels.shape[1] != info.outputs:
            raise self.fail(f"labels have the shape {labels.shape}")
        if not (np.abs(labels) <= np.finfo(np.float32).max).all():
            raise self.fail("a label is not finite, or too large for one")
        if classes and not ((labels >= 0) & (labels < info.outputs)).all():
            raise self.fail(f"a class is not among the {info.outputs} that it declares")
        numbers = info.task is Task.regression
        return cast(LabelArray, labels.astype(np.float64, copy=False) if numbers else labels)

    def names(self, name: str, part: slice) -> NDArray[np.str_]:
        """Return the ids or groups of some items."""
        content, ends = self.get(name, "uint8"), self.per_item(f"{name}.ends")
        before = ends[part.start - 1] if part.start else 0
        bounds = np.concatenate([[before], ends[part]])
        sizes = np.diff(bounds)
        inside = bounds.min() >= 0 and bounds.max() <= len(content)
        complete = part.stop < self.count or bounds[-1] == len(content)
        if not (inside and complete and ((sizes >= 0) & (sizes <= MAX_NAME)).all()):
            raise self.fail(f"{name} are not one of at most {MAX_NAME} bytes for each item")
        text = content[bounds[0] : bounds[-1]].tobytes()
        try:
            spans = pairwise((bounds - bounds[0]).tolist())
            return np.array([text[begin:end].decode() for begin, end in spans], dtype=np.str_)
        except UnicodeDecodeError as error:
            raise self.fail(f"{name} are not text") from error

    def sequences(self, name: str, part: slice, tabular: bool) -> Sequences:
        """Return the sequences of some items."""
        values = self.get(f"{name}.values", "float32", "float16", dims=2)
        starts = self.per_item(f"{name}.starts")[part]
        lengths = self.per_item(f"{name}.lengths")[part]
        if values.shape[1] == 0:
            raise self.fail(f"{name} has no features")
        if not ((starts >= 0) & (lengths >= 0) & (lengths <= len(values) - starts)).all():
            raise self.fail(f"an item of {name} lies outside its rows")
        sequences = Sequences(values, starts, lengths, tabular)
        if sequences.uneven:
            raise self.fail(f"{name} is tabular and has items of different lengths")
        return sequences

    def part(self, info: ShardInfo, part: slice) -> ItemPart:
        """Return the ids and the sequences of some items."""
        ids = self.names("ids", part)
        names = info.modalities
        sequences = {name: self.sequences(name, part, name in info.tabular) for name in names}
        return ItemPart(ids, sequences)
