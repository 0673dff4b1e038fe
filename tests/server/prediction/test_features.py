"""Every way to write features down gives the same sequences, and what is none is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from data_checks import refusal

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


LACKING = np.empty((0, 3), np.float32)
KINDS = (np.asarray, np.ndarray.tolist, torch.from_numpy, list, tuple)


@pytest.mark.parametrize(
    ("items", "ways"),
    [
        (
            [ONE, OTHER],
            [
                *([ONE, OTHER], (ONE, OTHER), [ONE.tolist(), OTHER.tolist()]),
                *([ONE.tolist(), OTHER], [ONE, OTHER.tolist()], [torch.from_numpy(ONE), OTHER]),
                *([list(ONE), OTHER], [ONE.astype(np.int8), OTHER.astype(">f8")]),
            ],
        ),
        (
            SQUARE,
            [
                *(SQUARE, SQUARE.tolist(), list(SQUARE), SQUARE.astype("f2"), SQUARE.astype(int)),
                *(np.asfortranarray(SQUARE), SQUARE[:, ::-1][:, ::-1]),
                *(TENSOR, TENSOR.bfloat16(), TENSOR.long(), TENSOR.clone().requires_grad_()),
                torch.from_numpy(SQUARE.transpose(2, 1, 0).copy()).permute(2, 1, 0),
            ],
        ),
        ([ONE], [kind(ONE) for kind in KINDS]),
        ([np.eye(3)], [kind(np.eye(3, dtype=bool)) for kind in KINDS]),
        ([ONE, LACKING], [[ONE, none] for none in (None, [], LACKING, torch.empty(0, 3))]),
        ([LACKING, ONE], [[none, ONE.tolist()] for none in (None, [], LACKING)]),
        ([LACKING] * 2, [[None, None], np.empty((2, 0, 3))]),
        ([LACKING], [[None]]),
        ([], [np.empty((0, 4, 3))]),
        ([np.array([[np.inf, -np.inf, 1]])], [[[1e300, -1e300, 1]]]),  # too large for float32
    ],
)
def test_every_way_to_write_items(items: Any, ways: list[Any]) -> None:
    for given in ways:
        assert rows_of(given) == [item.tolist() for item in items]


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
    assert refusal(lambda: sequences_of("audio", given, 3)).startswith(message)
