"""Messages compared, and their tensors on the wire, opened and put back as an attacker may."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import safetensors.torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor


def assert_same(found: Any, expected: Any) -> None:
    """Compare messages bit for bit, whatever they are made of."""
    if is_dataclass(expected):
        # Fields alone: what is computed from them once may be there or not.
        names = [field.name for field in fields(expected)]
        assert_same(*({name: getattr(each, name) for name in names} for each in (found, expected)))
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.detach().numpy().tobytes() == expected.detach().numpy().tobytes()
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and found == expected


def tensors_of(content: RecordDict) -> dict[str, Tensor]:
    """Return a message's tensors by their names on the wire, like ``decoder/head.bias``."""
    return safetensors.torch.load(content.array_records["tensors"]["tensors"].data)


def put_tensors(content: RecordDict, tensors: Mapping[str, Tensor]) -> None:
    """Replace a message's tensors."""
    put_bytes(content, safetensors.torch.save(dict(tensors)))


def put_bytes(content: RecordDict, data: bytes) -> None:
    """Replace the bytes that hold a message's tensors."""
    array = Array("uint8", (len(data),), "safetensors", data)
    content["tensors"] = ArrayRecord({"tensors": array})


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[RecordDict], None]:
    """Return what applies a change to the tensors of a message."""

    def apply(content: RecordDict) -> None:
        tensors = tensors_of(content)
        change(tensors)
        put_tensors(content, tensors)

    return apply
