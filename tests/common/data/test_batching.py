"""Padding and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.batching import Padded, SequenceItems, batches, pad, pad_all
from common.data.dataset import Sequences

WIDTH = 2


def some_sequences(lengths: list[int]) -> Sequences:
    """Items one after the other; each value is unique."""
    rows = sum(lengths)
    values = np.arange(1, rows * WIDTH + 1, dtype=np.float32).reshape(rows, WIDTH)
    return Sequences.ragged(values, np.array(lengths))


def check_padding(padded: Padded, sequences: list[np.ndarray]) -> None:
    """Compare with naive loops."""
    assert padded.values.dtype is torch.float32
    assert padded.lengths.tolist() == [len(rows) for rows in sequences]
    assert padded.values.shape == (len(sequences), max(1, *map(len, sequences)), WIDTH)
    for values, rows in zip(padded.values.numpy(), sequences, strict=True):
        assert np.array_equal(values[: len(rows)], rows)
        assert (values[len(rows) :] == 0).all()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_padding_equals_naive_loops(windows: list[tuple[int, int]]) -> None:
    """Whether windows overlap, leave rows out, or are empty."""
    starts, sizes = np.array(windows).T
    values = np.arange(1, 18 * WIDTH + 1, dtype=np.float32).reshape(18, WIDTH)
    seqs = Sequences(values, starts, sizes)
    check_padding(pad_all(seqs), [seqs[item] for item in range(len(seqs))])


def test_what_is_not_finite_stays_with_its_item() -> None:
    # Row 0 is what padding points to, so it is the one that must not leak.
    values = np.array([[np.nan, np.inf], [-np.inf, np.nan], [1, 2], [3, 4]], dtype=np.float32)
    padded = pad(torch.from_numpy(values), torch.tensor([0, 2, 3]), torch.tensor([2, 2, 1]))
    assert not padded.values[0].isfinite().any()
    assert padded.values[1:].tolist() == [[[1, 2], [3, 4]], [[3, 4], [0, 0]]]


def make_items(number: int = 11) -> SequenceItems:
    """Items whose label is their number."""
    seqs = some_sequences([1 + item % 4 for item in range(number)])
    return SequenceItems(seqs, np.arange(number, dtype=np.float32), np.arange(number))


def labels_of(items: SequenceItems, size: int, **options: int) -> list[list[float]]:
    return [labels.tolist() for _, labels in batches(items, size, **options)]


@given(st.integers(1, 13), st.integers(1, 15), st.none() | st.integers(0, 2**63 - 1))
@settings(max_examples=40, deadline=None)
def test_batches_cover_all_items_once(number: int, size: int, seed: int | None) -> None:
    found = [labels.tolist() for _, labels in batches(make_items(number), size, seed=seed)]
    assert sorted(label for batch in found for label in batch) == list(range(number))
    assert [len(batch) for batch in found[:-1]] == [size] * (-(-number // size) - 1)


def test_the_seed_alone_decides_the_order() -> None:
    items = make_items()
    assert labels_of(make_items(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    torch.manual_seed(0)
    first = labels_of(items, 4, seed=1)
    torch.rand(3)
    assert labels_of(items, 4, seed=1) == first
    assert labels_of(items, 4, seed=2) != first
    assert labels_of(items, 4) != first


@pytest.mark.parametrize("labels", [np.arange(5), np.eye(5, dtype=np.float32)])
def test_each_label_comes_with_its_own_sequence(labels: np.ndarray) -> None:
    seqs = some_sequences([3, 1, 4, 2, 5])
    chosen = np.array([4, 0, 3])
    items = SequenceItems(seqs, labels, chosen)
    assert len(items) == 3
    seen = []
    for padded, batch in batches(items, 2, seed=3):
        assert batch.numpy().dtype == labels.dtype
        numbers = [int(label) if labels.ndim == 1 else int(label.argmax()) for label in batch]
        check_padding(padded, [seqs[number] for number in numbers])
        seen += numbers
    assert sorted(seen) == sorted(chosen)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_prepare_the_same_batches() -> None:
    items = make_items()
    here, there = (list(batches(items, 4, seed=9, num_workers=number)) for number in (0, 2))
    assert len(here) == len(there) == 3
    for (one, labels), (two, same) in zip(here, there, strict=True):
        assert torch.equal(labels, same)
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.lengths, two.lengths)
