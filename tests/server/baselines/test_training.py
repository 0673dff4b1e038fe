"""Every item once a pass, with the right sequence and label, whatever the clients' tables share."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from common.data.batching import SequenceItems
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import ClientData
from common.task import Task
from server.baselines.training import (
    MULTIMODAL,
    Batch,
    one_modality_pass,
    paired_pass,
    pooled_items,
)


def site(table: Sequences, chosen: list[int], train: list[int]) -> ClientData:
    """Hold some items of a table; an item's label is its number in the table."""
    items, rest = np.array(chosen), np.setdiff1d(np.arange(len(chosen)), train)
    labels, own = items.astype(np.float32), table.select(items)
    return ClientData("audio", Task.regression, own, labels, np.array(train), rest)


@pytest.mark.parametrize("tabular", [False, True])
def test_pooled_items_are_the_clients_train_items_in_order(tabular: bool) -> None:
    """Windows of one table overlap, but not where it is tabular; rows say their number."""
    values = np.arange(400, dtype=np.float32).reshape(-1, 2)
    starts = np.arange(100) * (2 if tabular else 1)
    lengths = np.full(100, 2) if tabular else np.arange(100) % 3 + 1
    table = Sequences(values, starts, lengths, tabular)
    items = [7, 9, 4, 11, 0]
    pooled = pooled_items([site(table, [7, 2, 9, 4], [0, 2, 3]), site(table, [1, 11, 0], [1, 2])])
    padded, labels = pooled.__getitems__(list(range(5)))
    assert labels.tolist() == items
    for row, item in enumerate(items):
        real = padded.values[row, : padded.lengths[row]]
        np.testing.assert_array_equal(real.numpy(), table[item])
    # No row of other items is kept.
    assert len(pooled._values) == sum(int(table.lengths[item]) for item in items)


def numbered(count: int, first: int = 0, width: int = 1) -> Sequences:
    """Items of one step that holds their number."""
    values = np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], width, axis=1)
    return Sequences(values, np.arange(count), np.ones(count, dtype=np.int64))


def content(batch: Batch) -> list[float]:
    for padded in batch.inputs.values():
        assert torch.equal(padded.values[:, 0, 0], batch.labels)
    return batch.labels.tolist()


def one_modality(seed: int) -> Iterable[Batch]:
    sequences = {"language": numbered(50), "audio": numbered(23, 100)}
    items = {
        name: SequenceItems(own, own.values[:, 0], np.arange(len(own)))
        for name, own in sequences.items()
    }
    return one_modality_pass(items, 4, 0, seed)


def every_modality(seed: int) -> Iterable[Batch]:
    """Pass over items whose every modality says their number, as their label does."""
    numbers = np.arange(23, dtype=np.float32)
    sequences = {"audio": numbered(23, 0, 2), "vision": numbered(23, 0, 3)}
    names = numbers.astype(np.str_)
    return paired_pass(MultimodalDataset(names, names, numbers, sequences), 4, seed)


@pytest.mark.parametrize("one_pass", [one_modality, every_modality])
def test_the_order_is_the_seeds(one_pass: Callable[[int], Iterable[Batch]]) -> None:
    orders = [[content(batch) for batch in one_pass(seed)] for seed in (5, 5, 6)]
    assert orders[0] == orders[1] != orders[2]


def test_a_pass_over_items_of_one_modality_has_each_once_and_mixes_modalities() -> None:
    passed = list(one_modality(5))
    assert all(list(batch.inputs) == [batch.title] for batch in passed)
    turns = [batch.title for batch in passed]
    assert Counter(turns) == {"language": 13, "audio": 6}
    assert turns not in (sorted(turns), sorted(turns, reverse=True))
    for name, first, count in (("language", 0, 50), ("audio", 100, 23)):
        seen = [number for batch in passed if batch.title == name for number in content(batch)]
        assert sorted(seen) == list(range(first, first + count)) and seen != sorted(seen)


def test_a_pass_over_paired_items_keeps_what_belongs_together() -> None:
    passed = list(every_modality(1))
    assert [len(batch.labels) for batch in passed] == [4, 4, 4, 4, 4, 3]
    assert all(batch.title == MULTIMODAL for batch in passed)
    assert all(list(batch.inputs) == ["audio", "vision"] for batch in passed)
    assert sorted(number for batch in passed for number in content(batch)) == list(range(23))
