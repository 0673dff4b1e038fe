"""Items, their labels and their sequences in each modality.

Notation: N items, R rows of one modality, D feature width, K labels or classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32] | NDArray[np.float16]
LabelArray = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64]

#: Rows that are examined together, where all at once would take too much memory and time.
CHUNK = 1 << 12


@dataclass(frozen=True)
class Sequences:
    """Ragged sequences of one modality: windows into a table of rows.

    Windows may overlap, so a clip can share the clips before it as context without a copy.
    """

    #: (R, D) float32 or float16, one row per step; may contain NaN or infinities.
    values: FloatArray
    #: (N,) first row of each item.
    starts: IntArray
    #: (N,) number of rows of each item; 0 where the item lacks this modality.
    lengths: IntArray
    #: Whether each step is a quantity of its own, as in a table laid out as a sequence. Then all
    #: lengths that are not 0 are equal, and each step has statistics of its own.
    tabular: bool = False

    @classmethod
    def ragged(cls, values: FloatArray, lengths: IntArray, tabular: bool = False) -> "Sequences":
        """Return sequences whose rows follow one another in `values`."""
        return cls(values, np.cumsum(lengths) - lengths, lengths, tabular)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N,) whether an item has this modality."""
        return self.lengths > 0

    @property
    def uneven(self) -> bool:
        """Whether items that have a tabular modality differ in length, which is a mistake."""
        return self.tabular and len(np.unique(self.lengths[self.present])) > 1

    @property
    def width(self) -> int:
        """Feature width D."""
        return int(self.values.shape[1])

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of what describes a feature: (D,), or (steps, D) where tabular."""
        return (int(self.lengths.max(initial=0)), self.width) if self.tabular else (self.width,)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, item: int) -> FloatArray:
        """Return the rows of one item, (length, D)."""
        return self.values[self.starts[item] : self.starts[item] + self.lengths[item]]

    def select(self, items: IntArray) -> "Sequences":
        """Return the sequences of some items; the rows are shared."""
        return replace(self, starts=self.starts[items], lengths=self.lengths[items])

    def rows(self) -> IntArray:
        """Return the rows that belong to any item, once and in order."""
        used = np.zeros(len(self.values) + 1, dtype=np.int64)
        np.add.at(used, self.starts, 1)
        np.add.at(used, self.starts + self.lengths, -1)
        return np.flatnonzero(np.cumsum(used)[:-1] > 0)

    def narrowed(self) -> "Sequences":
        """Leave unused rows at both ends behind, and most others where there are many."""
        used = self.present
        first = int(self.starts[used].min(initial=len(self.values)))
        last = int((self.starts + self.lengths)[used].max(initial=first))
        if last - first > 4 * self.lengths.sum():
            rows = np.concatenate([self[item] for item in range(len(self))])
            return self.ragged(rows, self.lengths, self.tabular)
        starts = np.where(used, self.starts - first, 0)
        return replace(self, values=self.values[first:last], starts=starts)

    def chunks(self) -> Iterator[FloatArray]:
        """Yield the values of `rows`, `CHUNK` rows at a time; not copied where none is left out."""
        rows = self.rows()
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            whole = chunk[-1] - chunk[0] < len(chunk)
            yield self.values[chunk[0] : chunk[-1] + 1] if whole else self.values[chunk]

    def not_finite(self) -> int:
        """Count the values of items that are NaN or infinite."""
        return sum(int((~np.isfinite(chunk)).sum()) for chunk in self.chunks())

    def known(self) -> "Sequences":
        """Leave out steps that are NaN alone at either end; an item of nothing else is absent.

        Where tabular, a step is left out only with its whole item.
        """
        # Only steps whose first value is NaN can be that alone.
        maybe = np.flatnonzero(np.isnan(self.values[:, 0]))
        real = np.ones(len(self.values), dtype=bool)
        for start in range(0, len(maybe), CHUNK):
            rows = maybe[start : start + CHUNK]
            real[rows] = ~np.isnan(self.values[rows]).all(axis=1)
        if real.all():
            return self
        rows = np.arange(len(real) + 1)
        after = np.minimum.accumulate(np.where(np.r_[real, True], rows, len(real))[::-1])[::-1]
        before = np.maximum.accumulate(np.where(np.r_[True, real], rows, 0))
        ends = self.starts + self.lengths
        first, last = after[self.starts], before[ends]
        there = last > first
        if self.tabular:
            return replace(self, lengths=np.where(there & self.present, self.lengths, 0))
        starts = np.where(there, first, self.starts)
        return replace(self, starts=starts, lengths=np.where(there, last - first, 0))

    def last_steps(self, steps: int | None) -> "Sequences":
        """Keep at most the last `steps` rows of each item; None keeps all."""
        if steps is None:
            return self
        cut = np.maximum(self.lengths - steps, 0)
        return replace(self, starts=self.starts + cut, lengths=self.lengths - cut)


def concatenate(parts: list[Sequences]) -> Sequences:
    """Join sequences of equal width, item after item."""
    if len(parts) == 1:
        return parts[0]
    first_rows = np.cumsum([0] + [len(part.values) for part in parts[:-1]])
    return Sequences(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.starts + row for part, row in zip(parts, first_rows, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
        parts[0].tabular,
    )


def describe_shape(shape: tuple[int, ...]) -> str:
    """Say the shape of a feature's statistics in words: "35 wide", "6 steps, 1 wide"."""
    return ", ".join([*(f"{steps} steps" for steps in shape[:-1]), f"{shape[-1]} wide"])


def cut_steps(
    sequences: Mapping[str, Sequences], steps: int | None
) -> tuple[dict[str, Sequences], dict[str, int]]:
    """Return sequences with at most their last `steps`, None for all; and how many had more."""
    longer = {name: int((own.lengths > (steps or np.inf)).sum()) for name, own in sequences.items()}
    counts = {
        f"items of {name} cut to their last {steps} steps (max_seq_len)": count
        for name, count in longer.items()
        if count
    }
    return {name: own.last_steps(steps) for name, own in sequences.items()}, counts


def longest_of(sequences: Mapping[str, Sequences]) -> int:
    """Return the steps of the longest sequence of some modalities."""
    return max((int(own.lengths.max(initial=0)) for own in sequences.values()), default=0)


class ItemPart(NamedTuple):
    """Ids (N,), and modality to sequences, N each; length 0 where an item lacks it."""

    ids: NDArray[np.str_]
    sequences: Mapping[str, Sequences]


@dataclass(frozen=True)
class MultimodalDataset:
    """Items with labels and any number of modalities."""

    #: (N,) unique name of each item.
    ids: NDArray[np.str_]
    #: (N,) the video, speaker or patient of each item, which must not be on two sides of a split.
    groups: NDArray[np.str_]
    #: (N,) float64 for regression, (N,) int64 for classes, (N, K) float32 of 0/1 for multi-label.
    labels: LabelArray
    #: Modality to its sequences, N each.
    sequences: Mapping[str, Sequences]
    #: What was cleaned, cut or not used while reading, to how many times.
    cleaning: Mapping[str, int] = field(default_factory=dict)
    #: What each class, or each column of multi-label `labels`, is called; () for numbers from 0.
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def longest(self) -> int:
        """Steps of the longest sequence of any modality."""
        return longest_of(self.sequences)

    def select(self, items: IntArray) -> "MultimodalDataset":
        """Return some items; the rows are shared."""
        return replace(
            self,
            ids=self.ids[items],
            groups=self.groups[items],
            labels=self.labels[items],
            sequences={name: seq.select(items) for name, seq in self.sequences.items()},
        )

    def present(self, names: Iterable[str] | None = None) -> NDArray[np.bool_]:
        """Return (N,) whether an item has any of some modalities, or any at all."""
        names = self.sequences if names is None else names
        present: NDArray[np.bool_] = np.any([self.sequences[n].present for n in names], axis=0)
        return present

    def in_modalities(self, names: Sequence[str]) -> "MultimodalDataset":
        """Return the items in some modalities, in the order given."""
        return replace(self, sequences={name: self.sequences[name] for name in names})

    def last_steps(self, steps: int | None) -> "MultimodalDataset":
        """Keep at most the last `steps` steps of every sequence, and count those that had more."""
        cut, counts = cut_steps(self.sequences, steps)
        return replace(self, sequences=cut, cleaning={**self.cleaning, **counts})

    def not_finite(self) -> dict[str, int]:
        """Count the values that are NaN or infinite, by what is done about them."""
        counts = {name: each.not_finite() for name, each in self.sequences.items()}
        return {
            f"{name} values not finite, set to the mean": count
            for name, count in counts.items()
            if count
        }
