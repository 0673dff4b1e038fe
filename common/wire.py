"""Tensors of a message as bytes: a safetensors file with names like ``encoder/embed.weight``.

A posterior is two parts of it: the means, and the precisions where there are any.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.posterior import Form, Gaussian, Layout, Posterior

# Parts: what comes before the slash in a tensor's name.
ENCODER = "encoder"
DECODER = "decoder"
_PRECISION = "-precision"  # after the part's

Parts = Mapping[str, Mapping[str, Tensor]]


class ProtocolError(Exception):
    """A message that does not follow the protocol; says what was expected."""


def write_tensors(parts: Parts) -> bytes:
    """Return the tensors of each part as bytes; of types that numpy has, so no bfloat16."""
    # The same bytes as of safetensors.torch, which looks for shared memory: thrice as long.
    content: bytes = safetensors.numpy.save(
        {
            f"{part}/{name}": tensor.detach().cpu().contiguous().numpy()
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
    )
    return content


def read_tensors(data: bytes, parts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part by name, sorted.

    Raises
    ------
    ProtocolError
        If they cannot be read, or one belongs to none of these parts.
    """
    try:
        tensors = {
            name: torch.from_numpy(array) for name, array in safetensors.numpy.load(data).items()
        }
    except KeyError as error:
        raise ProtocolError(
            f"the tensors cannot be read: there is one of type {error}, which is never sent"
        ) from error
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from error
    by_part: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    # Sorted: the library's order differs from one call to the next, and sums with it.
    for full_name, tensor in sorted(tensors.items()):
        part, slash, name = full_name.partition("/")
        if part not in by_part or not slash:
            raise ProtocolError(f"tensor {full_name!r} is in no part: expected {', '.join(parts)}")
        by_part[part][name] = tensor
    return by_part


# Posteriors -------------------------------------------------------------------------------------


def posterior_parts(part: str, posterior: Mapping[str, Gaussian]) -> Parts:
    """Return the parts that a posterior is sent as; a symmetric matrix as its upper triangle."""
    precisions = {
        f"{gaussian.form}:{name}": _pack(gaussian.precision, gaussian.form)
        for name, gaussian in posterior.items()
        if gaussian.precision is not None
    }
    means = {name: gaussian.mean for name, gaussian in posterior.items()}
    return {part: means, part + _PRECISION: precisions}


def read_posteriors(data: bytes) -> tuple[Posterior, Posterior]:
    """Read the posteriors of encoder and decoder from the bytes of an uplink's tensors.

    The first uplink with a header is read by the library, which checks it. Those that follow with
    the same header and as many bytes have their numbers at the same places.

    Raises
    ------
    ProtocolError
        If a tensor is missing or has the wrong type or shape.
    """
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    places = _KNOWN.get(header)
    if places is None or places.size != len(data):
        places = _Places.of(header, data)
    if len(header) <= _LONGEST_KNOWN:
        # Put last; the first go when there are too many.
        _KNOWN.pop(header, None)
        _KNOWN[header] = places
        while len(_KNOWN) > _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)))
    encoder, decoder = (part.read(data) for part in places.parts)
    return encoder, decoder


@dataclass(frozen=True)
class _Place:
    """Where the bytes of some numbers are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def read(self, data: bytes) -> Tensor:
        """Return them as a tensor of its own, which may be written to."""
        if self.end == self.start:
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = bytearray(memoryview(data)[self.start : self.end])
        return torch.frombuffer(numbers, dtype=self.dtype).view(self.shape)


@dataclass(frozen=True)
class _PartPlaces:
    """Where the means of a part are, in one piece, and its precisions as they are packed."""

    layout: Layout
    means: _Place
    precisions: Mapping[str, tuple[Form, _Place]]

    @classmethod
    def of(cls, part: str, parts: Parts, starts: Mapping[str, int]) -> "_PartPlaces":
        means = parts[part]
        layout = Layout.of(means)
        for name, mean in means.items():
            if mean.dtype is not torch.float32:
                raise ProtocolError(
                    f"{part} array {name!r} is {mean.dtype} {tuple(mean.shape)}, expected float32"
                )
        first = starts[f"{part}/{layout.names[0]}"] if layout.names else 0
        expected = first
        for name, size in zip(layout.names, layout.sizes, strict=True):
            if starts[f"{part}/{name}"] != expected:
                raise ProtocolError(f"the {part}'s arrays do not lie in the order of their names")
            expected += 4 * size
        precisions: dict[str, tuple[Form, _Place]] = {}
        for key, packed in parts[part + _PRECISION].items():
            form, _, name = key.partition(":")
            if name not in means or form not in (Form.diagonal, Form.row):
                raise ProtocolError(f"precision {key!r} belongs to no array")
            if name in precisions:
                raise ProtocolError(f"{name} has two precisions")
            start = starts[f"{part}{_PRECISION}/{key}"]
            precisions[name] = Form(form), _Place(packed.dtype, tuple(packed.shape), start)
        return cls(layout, _Place(torch.float32, (sum(layout.sizes),), first), precisions)

    def read(self, data: bytes) -> Posterior:
        mean = self.means.read(data)
        views = self.layout.split(mean) if self.precisions else {}
        precise = {}
        for name, (form, place) in self.precisions.items():
            try:
                precision = _unpack(place.read(data), views[name], form)
                precise[name] = Gaussian(views[name], precision, form)
            except (ValueError, IndexError) as error:
                raise ProtocolError(f"precision of {name}: {error}") from error
        return Posterior(self.layout, mean, precise)


@dataclass(frozen=True)
class _Places:
    """Where everything is in the bytes of uplinks with one header, so many bytes in all."""

    size: int
    parts: tuple[_PartPlaces, _PartPlaces]

    @classmethod
    def of(cls, header: bytes, data: bytes) -> "_Places":
        names = [name + suffix for suffix in ("", _PRECISION) for name in (ENCODER, DECODER)]
        parts = read_tensors(data, names)
        starts = {
            name: len(header) + entry["data_offsets"][0]
            for name, entry in json.loads(header[8:]).items()
            if name != "__metadata__"
        }
        encoder, decoder = (_PartPlaces.of(part, parts, starts) for part in (ENCODER, DECODER))
        return cls(len(data), (encoder, decoder))


#: Headers of uplinks that were read in this process, the last ones last; there is one for each
#: modality. A client may send others, of some length, which must not fill the memory.
_KNOWN: dict[bytes, _Places] = {}
_MOST_KNOWN = 64
_LONGEST_KNOWN = 1 << 16


def _pack(precision: Tensor, form: Form) -> Tensor:
    if form is not Form.row:
        return precision
    rows, columns = torch.triu_indices(*precision.shape)
    return precision[rows, columns]


def _unpack(packed: Tensor, mean: Tensor, form: Form) -> Tensor:
    if form is not Form.row:
        return packed
    columns = mean[0].numel()
    count = columns * (columns + 1) // 2
    # Before the indices, which take far more memory than the message did.
    if packed.shape != (count,):
        raise ValueError(f"{packed.numel()} packed values, expected {count}")
    # Those of wide matrices are made anew: a client may choose any width, and must not fill memory.
    places = _kept_places if columns <= _WIDEST_KEPT else _places
    return packed[places(columns)]


def _places(columns: int) -> Tensor:
    """Return where in its upper triangle each number of a symmetric matrix is."""
    rows, cols = torch.triu_indices(columns, columns)
    places = torch.empty(columns, columns, dtype=torch.int64)
    places[rows, cols] = places[cols, rows] = torch.arange(len(rows))
    return places


_WIDEST_KEPT = 256
_kept_places = lru_cache(maxsize=16)(_places)
