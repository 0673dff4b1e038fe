"""A shard, a few items at a time, in memory that does not grow with it.

`common.data.shards.read_shard` maps a shard into memory, whose pages stay there once they were
touched. Here the file is opened anew for every part of it.

Notation: N items, R rows of one modality, D feature width.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.data.dataset import Sequences
from common.data.shards import MAX_NAME, ShardInfo, ShardReader, told_as_shard
from common.seal import check_seal

#: Rows between those of one part of a shard that are read with them, for each that is used.
_SLACK = 4


@dataclass(frozen=True)
class ShardStream:
    """A shard that is whole, and is read a part at a time.

    Attributes
    ----------
    path
        The shard.
    info
        What it says of itself.
    count
        N.
    """

    path: Path
    info: ShardInfo
    count: int
    _header: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ShardStream":
        """Check a shard's seal.

        Raises
        ------
        UserError
            If it is not a shard, is damaged, or is of another version.
        """
        with told_as_shard(path):
            header, _ = check_seal(path)
        reader = ShardReader(path, header, {})
        info = reader.info()
        with _opened(path, reader) as file:
            count = _items_in(file, reader, info.modalities)
        if count == 0 or not info.modalities:
            raise reader.fail("it holds no item, or no modality")
        return cls(path, info, count, header)

    def part(self, first: int, last: int) -> tuple[NDArray[np.str_], dict[str, Sequences]]:
        """Return the ids of the items from `first` to before `last`, and their sequences.

        Raises
        ------
        UserError
            If what is there is not what a shard holds.
        """
        reader = ShardReader(self.path, self._header, {})
        with _opened(self.path, reader) as file:
            parts = _Part(file, reader, first, last)
            tensors = parts.ids()
            for name in self.info.modalities:
                tensors |= parts.modality(name)
        reader = ShardReader(self.path, self._header, tensors)
        sequences = {
            name: reader.sequences(name, last - first, name in self.info.tabular)
            for name in self.info.modalities
        }
        return reader.text("ids", last - first), sequences


@contextmanager
def _opened(path: Path, reader: ShardReader) -> Iterator[Any]:
    """Open a shard's tensors; what is wrong with them is a `UserError`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        raise reader.fail(str(error).splitlines()[0]) from error


def _items_in(file: Any, reader: ShardReader, modalities: Sequence[str]) -> int:
    """Return N, after a look at what there is of each array."""
    values, there = [f"{name}.values" for name in modalities], set(file.keys())
    parts = {name: [f"{name}.starts", f"{name}.lengths"] for name in modalities}
    for name in ("ids", "ids.ends", *values, *itertools.chain(*parts.values())):
        if name not in there:
            raise reader.fail(f"it lacks {name}")
    items = _count(file, reader, "ids.ends")
    for name, each in parts.items():
        starts, lengths = (_count(file, reader, part) for part in each)
        if not starts == lengths == items:
            raise reader.fail(f"{name} has {starts} and {lengths} items, and ids {items}")
    return items


def _count(file: Any, reader: ShardReader, name: str) -> int:
    """Return how many whole numbers an array holds, without reading them."""
    found = file.get_slice(name)
    if found.get_dtype() != "I64" or len(found.get_shape()) != 1:
        raise reader.fail(f"{name} is {found.get_dtype()} of {len(found.get_shape())} dimensions")
    count: int = found.get_shape()[0]
    return count


@dataclass(frozen=True)
class _Part:
    """Some items of an open shard: tensors as if they were all that it holds."""

    file: Any
    reader: ShardReader
    first: int
    last: int

    def ids(self) -> dict[str, Tensor]:
        before = max(self.first - 1, 0)
        ends = self._rows("ids.ends", before, self.last)
        begin = int(ends[0]) if self.first else 0
        ends = ends[self.first - before :]
        # A shard may declare anything; a part of it takes no more than its names may.
        most = begin + MAX_NAME * (self.last - self.first)
        if not 0 <= begin <= int(ends[-1]) <= most:
            raise self.reader.fail("ids are not one for each item")
        return {"ids": self._rows("ids", begin, int(ends[-1])), "ids.ends": ends - begin}

    def modality(self, name: str) -> dict[str, Tensor]:
        starts = self._rows(f"{name}.starts", self.first, self.last)
        lengths = self._rows(f"{name}.lengths", self.first, self.last)
        rows = self.file.get_slice(f"{name}.values").get_shape()[0]
        used = lengths > 0
        if not ((starts >= 0) & (lengths >= 0) & (lengths <= rows - starts)).all():
            raise self.reader.fail(f"an item of {name} lies outside its rows")
        begin = int(starts[used].min()) if used.any() else 0
        end = int((starts + lengths)[used].max()) if used.any() else 0
        if end - begin > _SLACK * int(lengths.sum()):
            values, starts = self._gathered(name, starts, lengths)
        else:
            values, starts = self._rows(f"{name}.values", begin, end), starts - begin
        return {
            f"{name}.values": values,
            f"{name}.starts": torch.where(used, starts, 0),
            f"{name}.lengths": lengths,
        }

    def _gathered(self, name: str, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read rows item by item, where they lie far apart."""
        spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        values = torch.cat([self._rows(f"{name}.values", *span) for span in spans])
        return values, lengths.cumsum(0) - lengths

    def _rows(self, name: str, begin: int, end: int) -> Tensor:
        rows: Tensor = self.file.get_slice(name)[begin:end]
        return rows
