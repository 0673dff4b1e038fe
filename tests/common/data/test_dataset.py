"""Sequences as windows into rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.dataset import MultimodalDataset, Sequences, concatenate


@st.composite
def sequences(draw: st.DrawFn) -> Sequences:
    """Any windows, overlapping and empty ones included; each row holds its own number."""
    rows = draw(st.integers(0, 12))
    starts = draw(st.lists(st.integers(0, rows), max_size=8))
    lengths = [draw(st.integers(0, rows - start)) for start in starts]
    return Sequences(
        np.arange(rows, dtype=np.float32)[:, None],
        np.array(starts, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
    )


def as_lists(seqs: Sequences) -> list[list[float]]:
    return [seqs[item][:, 0].tolist() for item in range(len(seqs))]


@given(sequences(), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_windows_against_naive_loops(seqs: Sequences, steps: int) -> None:
    windows = zip(seqs.starts, seqs.lengths, strict=True)
    assert as_lists(seqs) == [list(range(start, start + length)) for start, length in windows]
    assert seqs.rows().tolist() == sorted(set().union(*as_lists(seqs)))
    assert as_lists(seqs.last_steps(steps)) == [rows[-steps:] for rows in as_lists(seqs)]
    assert as_lists(seqs.last_steps(None)) == as_lists(seqs)
    assert as_lists(seqs.narrowed()) == as_lists(seqs)
    assert len(seqs.narrowed().values) <= max(4 * seqs.lengths.sum(), 0)


@given(sequences(), st.data())
@settings(max_examples=40, deadline=None)
def test_select_takes_items_in_the_order_asked(seqs: Sequences, data: st.DataObject) -> None:
    chosen = data.draw(
        st.lists(st.integers(0, max(len(seqs) - 1, 0)), max_size=6 * bool(len(seqs)))
    )
    selected = seqs.select(np.array(chosen, dtype=np.int64))
    assert as_lists(selected) == [as_lists(seqs)[item] for item in chosen]
    assert selected.values is seqs.values


@given(st.lists(sequences(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_concatenate_puts_item_after_item(parts: list[Sequences]) -> None:
    joined = concatenate(parts)
    assert as_lists(joined) == [rows for part in parts for rows in as_lists(part)]
    assert len(joined.values) == sum(len(part.values) for part in parts)


def test_concatenate_refuses_widths_that_differ() -> None:
    one = np.array([0])
    parts = [Sequences(np.zeros((1, width), np.float32), one, one + 1) for width in (2, 3)]
    with pytest.raises(ValueError, match="dimensions"):
        concatenate(parts)


def test_statistics_are_of_features_or_of_steps_and_features() -> None:
    values, starts, sizes = np.zeros((6, 2), np.float32), np.array([0, 3, 3]), np.array([3, 0, 3])
    times = Sequences(values, starts, sizes)
    table = Sequences(values, starts, sizes, tabular=True)
    assert times.statistics_shape == (2,)
    assert table.statistics_shape == (3, 2)
    assert table.select(np.array([2, 0])).statistics_shape == (3, 2)
    assert table.last_steps(2).statistics_shape == (2, 2)
    assert concatenate([table, table]).statistics_shape == (3, 2)
    assert concatenate([times, times]).statistics_shape == (2,)


def test_a_dataset_selects_labels_groups_and_every_modality_alike() -> None:
    values = np.arange(8, dtype=np.float32)[:, None]
    dataset = MultimodalDataset(
        ids=np.array(["1", "2", "3", "4"]),
        groups=np.array(["p", "p", "q", "r"]),
        labels=np.arange(4.0),
        sequences={
            "audio": Sequences(values, np.array([0, 1, 2, 3]), np.array([1, 1, 1, 1])),
            "vision": Sequences(values, np.array([0, 2, 4, 6]), np.array([2, 0, 2, 2])),
        },
        cleaning={"items dropped": 3},
    )
    some = dataset.select(np.array([3, 1]))
    assert len(some) == 2
    assert some.ids.tolist() == ["4", "2"]
    assert some.groups.tolist() == ["r", "p"]
    assert some.labels.tolist() == [3, 1]
    assert as_lists(some.sequences["audio"]) == [[3], [1]]
    assert as_lists(some.sequences["vision"]) == [[6, 7], []]
    assert some.cleaning == dataset.cleaning
