"""The tensors of a message on the wire, opened and put back as a client with bad intentions may."""

from collections.abc import Callable, Mapping

import safetensors.torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor


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
