"""Features as arrays, tensors or lists, converted to the sequences that the model takes.

Notation: N items, T steps, D feature width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from common.data.dataset import Sequences
from common.errors import UserError

#: One modality: an item (T, D); items (N, T, D); or a list of items, None where one lacks it.
Features = ArrayLike | Tensor | Sequence[ArrayLike | Tensor | None]


def sequences_of(name: str, given: Features, width: int) -> Sequences:
    """Return N sequences of a modality; raise `UserError` if they are not numbers of width D."""
    items = [_item(name, item, width) for item in _items(name, given)]
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    values = np.concatenate([np.empty((0, width), dtype=np.float32), *items])
    return Sequences.ragged(values, lengths).known()


def _items(name: str, given: Features) -> list[Any]:
    if given is None:
        raise UserError(f"{name} is None; leave out a modality that no item has")
    if isinstance(given, list | tuple) and any(map(_is_item, given)):
        return list(given)
    array = _array(name, given)
    if array.ndim not in (2, 3):
        raise UserError(
            f"{name} has the shape {array.shape}; expected (steps, width) of one item, (items, "
            "steps, width), or a list of items"
        )
    return [array] if array.ndim == 2 else list(array)


def _is_item(given: Any) -> bool:
    """Distinguish an item, or None in its place, from a step."""
    if isinstance(given, list | tuple):
        return len(given) > 0 and (isinstance(given[0], list | tuple) or np.ndim(given[0]) == 1)
    return given is None or getattr(given, "ndim", 0) == 2


def _item(name: str, given: Any, width: int) -> NDArray[np.float32]:
    array = np.empty((0, width), dtype=np.float32) if given is None else _array(name, given)
    if array.shape == (0,):  # an empty list
        return array.reshape(0, width)
    if array.ndim != 2 or (len(array) and array.shape[1] != width):
        raise UserError(
            f"{name} has an item of shape {array.shape}; expected (steps, {width}), or None"
        )
    return array.reshape(-1, width)


def _array(name: str, given: Any) -> NDArray[np.float32]:
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        # NumPy has no bfloat16.
        given = (given.float() if given.is_floating_point() else given).numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise UserError(f"{name} is no table of numbers: its rows differ in width") from error
    if array.dtype.kind not in "fiub" and array.size:
        raise UserError(f"{name} holds {array.dtype}; expected numbers")
    with np.errstate(over="ignore"):
        floats: NDArray[np.float32] = array.astype(np.float32, copy=False)
    return floats
