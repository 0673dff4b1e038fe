"""Batches of sequences, padded on the right, for torch.

Notation: B items, T longest length in the batch, D feature width, R rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.data.dataset import IntArray, LabelArray, Sequences


class Padded(NamedTuple):
    """Sequences of one modality as tensors."""

    #: (B, T, D) float32, zero after each item's last step.
    values: Tensor
    #: (B,) int64; 0 where an item lacks the modality.
    lengths: Tensor

    def to(self, device: torch.device) -> "Padded":
        """Move to a device."""
        return Padded(self.values.to(device), self.lengths.to(device))


def pad(values: Tensor, starts: Tensor, lengths: Tensor) -> Padded:
    """Gather windows of rows (R, D), float16 or float32, into a padded batch of float32."""
    steps = torch.arange(max(int(lengths.max()), 1), device=values.device)
    valid = steps < lengths[:, None]
    rows = torch.where(valid, starts[:, None] + steps, 0)
    # where, not a product: a NaN in a row of padding must not survive.
    return Padded(torch.where(valid[..., None], values[rows].float(), 0.0), lengths)


class SequenceItems(Dataset[tuple[Padded, Tensor]]):
    """Some items of one modality with their labels, in order, fetched a batch at a time."""

    def __init__(self, sequences: Sequences, labels: LabelArray, items: IntArray) -> None:
        self._values = torch.from_numpy(sequences.values)
        self._starts = torch.from_numpy(sequences.starts[items])
        self._lengths = torch.from_numpy(sequences.lengths[items])
        self._labels = torch.from_numpy(labels[items])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, indices: list[int]) -> tuple[Padded, Tensor]:
        """Return a padded batch and its labels."""
        index = torch.as_tensor(indices)
        return pad(self._values, self._starts[index], self._lengths[index]), self._labels[index]


def batches(
    items: SequenceItems, batch_size: int, *, seed: int | None = None, num_workers: int = 0
) -> Iterator[tuple[Padded, Tensor]]:
    """Iterate over all items once; the last batch may be smaller.

    A seed shuffles the items. Batches are prepared by `num_workers` processes, or by this one.
    """
    loader: DataLoader[tuple[Padded, Tensor]] = DataLoader(
        items,
        batch_size=batch_size,
        shuffle=seed is not None,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        num_workers=num_workers,
        collate_fn=tuple,  # they come collated
    )
    return iter(loader)


def pad_all(sequences: Sequences) -> Padded:
    """Return every item of a modality as one padded batch."""
    return pad(
        torch.from_numpy(np.ascontiguousarray(sequences.values)),
        torch.from_numpy(sequences.starts),
        torch.from_numpy(sequences.lengths),
    )
