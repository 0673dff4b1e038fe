"""Every way to write features down gives the same sequences, and what is none is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from server.prediction.features import sequences_of

ONE = np.arange(6, dtype=np.float32).reshape(2, 3)
OTHER = np.arange(10, 13, dtype=np.float32).reshape(1, 3)
SQUARE = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
TENSOR = torch.from_numpy(SQUARE)


def rows_of(given: Any) -> list[Any]:
    found = sequences_of("audio", given, 3)
    assert found.values.dtype == np.float32
    assert found.width == 3
    return [found[item].tolist() for item in range(len(found))]


@pytest.mark.parametrize(
    "given",
    [
        [ONE, OTHER],
        (ONE, OTHER),
        [ONE.tolist(), OTHER.tolist()],
        [ONE.tolist(), OTHER],
        [ONE, OTHER.tolist()],
        [torch.from_numpy(ONE), OTHER],
        [list(ONE), OTHER],
        [ONE.astype(np.int8), OTHER.astype(">f8")],
    ],
)
def test_items_of_any_lengths(given: Any) -> None:
    assert rows_of(given) == [[[0, 1, 2], [3, 4, 5]], [[10, 11, 12]]]


@pytest.mark.parametrize(
    "given",
    [
        *(SQUARE, SQUARE.tolist(), list(SQUARE), SQUARE.astype(np.float16), SQUARE.astype(int)),
        *(np.asfortranarray(SQUARE), SQUARE[:, ::-1][:, ::-1]),
        *(TENSOR, TENSOR.bfloat16(), TENSOR.long(), torch.tensor(SQUARE, requires_grad=True)),
        torch.from_numpy(SQUARE.transpose(2, 1, 0).copy()).permute(2, 1, 0),
    ],
)
def test_items_of_one_length(given: Any) -> None:
    assert rows_of(given) == SQUARE.tolist()


@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, torch.from_numpy, list, tuple])
def test_a_single_item(kind: Any) -> None:
    assert rows_of(kind(ONE)) == [ONE.tolist()]
    assert rows_of(kind(np.eye(3, dtype=bool))) == [np.eye(3).tolist()]


@pytest.mark.parametrize("nothing", [None, [], np.empty((0, 3)), torch.empty(0, 3)])
def test_an_item_that_lacks_the_modality(nothing: Any) -> None:
    assert rows_of([ONE, nothing]) == [ONE.tolist(), []]
    assert rows_of([nothing, ONE.tolist()]) == [[], ONE.tolist()]


@pytest.mark.parametrize("given", [[None], [None, None], np.empty((2, 0, 3)), np.empty((0, 4, 3))])
def test_nobody_has_it(given: Any) -> None:
    assert rows_of(given) == [[]] * len(given)


def test_too_large_for_float32_is_infinite() -> None:
    assert rows_of([[1e300, -1e300, 1]]) == [[[np.inf, -np.inf, 1]]]


ITEM = "audio has an item of shape {}; expected (steps, 3), or None"
SHAPE = "audio has the shape {}; expected (steps, width) of one item, (items, steps, width), or a "
DIFFER = "audio is no table of numbers: its rows differ in width"
HOLDS = "audio holds {}; expected numbers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "audio is None; leave out a modality that no item has"),
        (np.ones((2, 4)), ITEM.format("(2, 4)")),
        (np.ones((2, 0)), ITEM.format("(2, 0)")),
        (np.ones((5, 2, 4)), ITEM.format("(2, 4)")),
        ([ONE, np.ones(3)], ITEM.format("(3,)")),
        ([ONE, np.ones((1, 1, 3))], ITEM.format("(1, 1, 3)")),
        (np.ones(3), SHAPE.format("(3,)")),
        (np.ones((1, 1, 1, 3)), SHAPE.format("(1, 1, 1, 3)")),
        (1.5, SHAPE.format("()")),
        ([], SHAPE.format("(0,)")),
        ([[1, 2, 3], [1, 2]], DIFFER),
        ([[[1, 2, 3], [1, 2]], None], DIFFER),
        ([["a", "b", "c"]], HOLDS.format("<U1")),
        ("words", HOLDS.format("<U5")),
        ([[1, 2, None]], HOLDS.format("object")),
        ([[1, 2, 10**30]], HOLDS.format("object")),
        (np.ones((1, 3), complex), HOLDS.format("complex128")),
        (torch.ones(1, 3, dtype=torch.complex64), HOLDS.format("complex64")),
        (np.zeros((1, 3), "M8[s]"), HOLDS.format("datetime64[s]")),
    ],
)
def test_what_is_no_table_of_numbers_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sequences_of("audio", given, 3)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(message)
