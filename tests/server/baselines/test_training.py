"""Every item once a pass, with the right sequence and label, whatever the clients' tables share."""

from collections import Counter

import numpy as np
import pytest
import torch

from common.data.batching import SequenceItems
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import ClientData
from common.task import Task
from server.baselines.scores import only
from server.baselines.training import (
    MULTIMODAL,
    Batch,
    one_modality_pass,
    padded_inputs,
    paired_pass,
    pooled_items,
)


def site(table: Sequences, chosen: list[int], train: list[int]) -> ClientData:
    """Hold some items of a table; an item's label is its number in the table."""
    items = np.array(chosen)
    return ClientData(
        "audio",
        Task.regression,
        table.select(items),
        items.astype(np.float32),
        items,
        np.array(train),
        np.setdiff1d(np.arange(len(items)), train),
    )


def windows(count: int = 12, *, tabular: bool = False) -> Sequences:
    """Overlapping windows into one table whose rows say their number; tables do not overlap."""
    values = np.arange(2 * (count + 3) * 2, dtype=np.float32).reshape(-1, 2)
    starts = np.arange(count) * (2 if tabular else 1)
    lengths = np.full(count, 2) if tabular else np.arange(count) % 3 + 1
    return Sequences(values, starts, lengths, tabular)


@pytest.mark.parametrize("tabular", [False, True])
def test_pooled_items_are_the_clients_train_items_in_order(tabular: bool) -> None:
    table = windows(tabular=tabular)
    sites = [site(table, [7, 2, 9, 4], [0, 2, 3]), site(table, [1, 11, 0], [1, 2])]
    padded, labels = pooled_items(sites).__getitems__(list(range(5)))
    assert labels.tolist() == [7, 9, 4, 11, 0]
    for row, item in enumerate([7, 9, 4, 11, 0]):
        real = padded.values[row, : padded.lengths[row]]
        np.testing.assert_array_equal(real.numpy(), table[item])


def test_pooled_items_keep_no_rows_that_are_of_no_item() -> None:
    table = windows(count=200)
    pooled = pooled_items([site(table, [3, 100, 150], [0, 2])])
    rows = sum(int(table.lengths[item]) for item in (3, 150))
    assert len(pooled._values) == rows


def numbered(count: int, first: int) -> SequenceItems:
    """Items of one step that holds their number, which is their label too."""
    numbers = np.arange(first, first + count)
    values = numbers[:, None].astype(np.float32)
    sequences = Sequences(values, np.arange(count), np.ones(count, dtype=np.int64))
    return SequenceItems(sequences, numbers.astype(np.float32), np.arange(count))


def content(batch: Batch) -> list[float]:
    for padded in batch.inputs.values():
        assert torch.equal(padded.values[:, 0, 0], batch.labels)
    return batch.labels.tolist()


def test_a_pass_over_items_of_one_modality_has_each_once_and_mixes_modalities() -> None:
    items = {"language": numbered(50, 0), "audio": numbered(23, 100)}
    found = list(one_modality_pass(items, 4, 0, seed=5))
    assert all(batch.inputs.keys() == {batch.title} for batch in found)
    assert Counter(batch.title for batch in found) == {"language": 13, "audio": 6}
    for name, first, count in (("language", 0, 50), ("audio", 100, 23)):
        seen = [each for batch in found if batch.title == name for each in content(batch)]
        assert sorted(seen) == list(range(first, first + count)) and seen != sorted(seen)
    turns = [batch.title for batch in found]
    assert turns not in (sorted(turns), sorted(turns, reverse=True))


def test_the_order_is_the_seeds() -> None:
    items = {"language": numbered(30, 0), "audio": numbered(23, 100)}
    orders = [
        [content(batch) for batch in one_modality_pass(items, 4, 0, seed=seed)]
        for seed in (5, 5, 6)
    ]
    assert orders[0] == orders[1] != orders[2]


def paired(count: int = 23) -> MultimodalDataset:
    """Items whose every modality says their number, as their label does."""
    numbers = np.arange(count)
    sequences = {
        name: Sequences(
            np.full((count, width), numbers[:, None], dtype=np.float32),
            numbers,
            np.ones(count, dtype=np.int64),
        )
        for name, width in {"audio": 2, "vision": 3}.items()
    }
    names = numbers.astype(np.str_)
    return MultimodalDataset(names, names, numbers.astype(np.float32), sequences)


def test_a_pass_over_paired_items_keeps_what_belongs_together() -> None:
    orders = []
    for seed in (1, 1, 2):
        found = list(paired_pass(paired(), 4, seed))
        assert [len(batch.labels) for batch in found] == [4, 4, 4, 4, 4, 3]
        assert all(batch.title == MULTIMODAL for batch in found)
        assert all(list(batch.inputs) == ["audio", "vision"] for batch in found)
        orders.append([each for batch in found for each in content(batch)])
    assert sorted(orders[0]) == list(range(23))
    assert orders[0] == orders[1] != orders[2]


def test_the_modalities_that_are_not_wanted_have_no_step() -> None:
    inputs = padded_inputs(only(paired().sequences, ["vision"]), np.array([3, 4]))
    assert inputs["audio"].lengths.tolist() == [0, 0]
    assert inputs["audio"].values.shape == (2, 1, 2) and not inputs["audio"].values.any()
    assert inputs["vision"].values[:, 0, 0].tolist() == [3, 4]
