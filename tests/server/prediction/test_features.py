"""Every way to write features down gives the same sequences, and what is none is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from server.prediction.features import sequences_of

ITEMS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(10, 13, dtype=np.float32).reshape(1, 3),
]
SQUARE = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def rows_of(given: Any, width: int = 3) -> list[Any]:
    found = sequences_of("audio", given, width)
    assert found.values.dtype == np.float32
    assert found.width == width
    return [found[item].tolist() for item in range(len(found))]


@pytest.mark.parametrize(
    "given",
    [
        ITEMS,
        tuple(ITEMS),
        [item.tolist() for item in ITEMS],
        [ITEMS[0].tolist(), ITEMS[1]],
        [ITEMS[0], ITEMS[1].tolist()],
        [torch.from_numpy(ITEMS[0]), ITEMS[1]],
        [list(ITEMS[0]), ITEMS[1]],
        [ITEMS[0].astype(np.int8), ITEMS[1].astype(">f8")],
    ],
)
def test_items_of_any_lengths(given: Any) -> None:
    assert rows_of(given) == [[[0, 1, 2], [3, 4, 5]], [[10, 11, 12]]]


@pytest.mark.parametrize(
    "given",
    [
        SQUARE,
        SQUARE.tolist(),
        list(SQUARE),
        SQUARE.astype(np.float16),
        SQUARE.astype(np.int64),
        np.asfortranarray(SQUARE),
        SQUARE[:, ::-1][:, ::-1],
        torch.from_numpy(SQUARE),
        torch.from_numpy(SQUARE).bfloat16(),
        torch.from_numpy(SQUARE).long(),
        torch.from_numpy(SQUARE).requires_grad_(),
        torch.from_numpy(SQUARE.transpose(2, 1, 0).copy()).permute(2, 1, 0),
    ],
)
def test_items_of_one_length(given: Any) -> None:
    assert rows_of(given) == SQUARE.tolist()


@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, torch.from_numpy, list, tuple])
def test_a_single_item(kind: Any) -> None:
    assert rows_of(kind(ITEMS[0])) == [ITEMS[0].tolist()]


@pytest.mark.parametrize("nothing", [None, [], np.empty((0, 3)), torch.empty(0, 3)])
def test_an_item_that_lacks_the_modality(nothing: Any) -> None:
    assert rows_of([ITEMS[0], nothing]) == [ITEMS[0].tolist(), []]
    assert rows_of([nothing, ITEMS[0].tolist()]) == [[], ITEMS[0].tolist()]


@pytest.mark.parametrize("given", [[None], [None, None], np.empty((2, 0, 3)), np.empty((0, 4, 3))])
def test_nobody_has_it(given: Any) -> None:
    assert rows_of(given) == [[]] * len(given)


def test_truth_counts_as_one() -> None:
    assert rows_of(np.eye(3, dtype=bool)) == [np.eye(3).tolist()]


def test_too_large_for_float32_is_infinite() -> None:
    assert rows_of([[1e300, -1e300, 1]]) == [[[np.inf, -np.inf, 1]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "audio is None; leave out a modality that no item has"),
        (np.ones((2, 4)), "audio has an item of shape (2, 4); expected (steps, 3), or None"),
        (np.ones((2, 0)), "audio has an item of shape (2, 0); expected (steps, 3), or None"),
        (np.ones((5, 2, 4)), "audio has an item of shape (2, 4); expected (steps, 3), or None"),
        ([ITEMS[0], np.ones(3)], "audio has an item of shape (3,); expected (steps, 3), or None"),
        ([ITEMS[0], np.ones((1, 1, 3))], "audio has an item of shape (1, 1, 3); expected (steps, "),
        (
            np.ones(3),
            "audio has the shape (3,); expected (steps, width) of one item, (items, steps, width), "
            "or a list of items",
        ),
        (np.ones((1, 1, 1, 3)), "audio has the shape (1, 1, 1, 3); expected (steps, width) of one"),
        (1.5, "audio has the shape (); expected (steps, width) of one item, "),
        ([], "audio has the shape (0,); expected (steps, width) of one item, "),
        ([[1, 2, 3], [1, 2]], "audio is no table of numbers: its rows differ in width"),
        ([[[1, 2, 3], [1, 2]], None], "audio is no table of numbers: its rows differ in width"),
        ([["a", "b", "c"]], "audio holds <U1; expected numbers"),
        ("words", "audio holds <U5; expected numbers"),
        ([[1, 2, None]], "audio holds object; expected numbers"),
        ([[1, 2, 10**30]], "audio holds object; expected numbers"),
        (np.ones((1, 3), complex), "audio holds complex128; expected numbers"),
        (torch.ones(1, 3, dtype=torch.complex64), "audio holds complex64; expected numbers"),
        (np.zeros((1, 3), "M8[s]"), "audio holds datetime64[s]; expected numbers"),
    ],
)
def test_what_is_no_table_of_numbers_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sequences_of("audio", given, 3)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(message)
