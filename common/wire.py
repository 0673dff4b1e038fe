"""Tensors of a message as bytes: a safetensors file with names like ``encoder/embed.weight``.

A posterior is two groups of tensors: the means, and the precisions of those that have one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.posterior import Form, Gaussian, Layout, Posterior, Stack
from common.structures import MOST_INPUTS

# Groups: what comes before the slash in a tensor's name.
ENCODER = "encoder"
DECODER = "decoder"
_PRECISION = "-precision"  # after the group's

TensorGroups = Mapping[str, Mapping[str, Tensor]]

# A client may choose any header, so what is kept of them is limited.
_LONGEST_KEPT = 1 << 16  # bytes


class ProtocolError(Exception):
    """A message that does not follow the protocol; says what was expected."""


def write_tensors(groups: TensorGroups) -> bytes:
    """Return the tensors of each group as bytes; of types that numpy has, so no bfloat16."""
    # The same bytes as of safetensors.torch, which looks for shared memory: thrice as long.
    content: bytes = safetensors.numpy.save(
        {
            f"{group}/{name}": tensor.detach().cpu().contiguous().numpy()
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
        }
    )
    return content


def read_tensors(data: bytes, groups: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each group by name, sorted.

    Raises `ProtocolError` if they cannot be read, or one belongs to none of these groups.
    """
    try:
        # The library's order differs from one call to the next, and sums with it.
        arrays = sorted(safetensors.numpy.load(data).items())
        tensors = {name: torch.from_numpy(array) for name, array in arrays}
    except KeyError as error:
        raise ProtocolError(
            f"the tensors cannot be read: there is one of type {error}, which is never sent"
        ) from error
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from error
    by_group: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for full_name, tensor in tensors.items():
        group, slash, name = full_name.partition("/")
        if group not in by_group or not slash:
            raise ProtocolError(f"tensor {full_name!r} is in no part: expected {', '.join(groups)}")
        by_group[group][name] = tensor
    return by_group


# Posteriors -------------------------------------------------------------------------------------


def posterior_groups(group: str, posterior: Mapping[str, Gaussian]) -> TensorGroups:
    """Return the groups that a posterior is sent as; a symmetric matrix as its upper triangle."""
    means, precisions = {}, {}
    for name, gaussian in posterior.items():
        means[name] = gaussian.mean
        if (precision := gaussian.precision) is not None:
            if gaussian.form is Form.row:
                precision = upper_triangle(precision)
            precisions[f"{gaussian.form}:{name}"] = precision
    return {group: means, group + _PRECISION: precisions}


def read_posteriors(data: bytes) -> tuple[Posterior, Posterior]:
    """Read the posteriors of encoder and decoder from the bytes of an uplink's tensors.

    A header is read and checked by the library once. Uplinks that follow with the same header and
    as many bytes have their numbers at the same places.

    Raises `ProtocolError` if a tensor has the wrong type, shape or place.
    """
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    find = _places if len(header) <= _LONGEST_KEPT else _places.__wrapped__
    encoder, decoder = find(header, len(data))
    return encoder.read(data), decoder.read(data)


class _Place(NamedTuple):
    """Where the bytes of some numbers are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self, data: bytes) -> Tensor:
        """Return them as a tensor of its own, which may be written to."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if size == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = bytearray(memoryview(data)[self.start : self.start + size])
        return torch.frombuffer(numbers, dtype=self.dtype).view(self.shape)


class _StackPlaces(NamedTuple):
    """Where the precisions of one form and size are, each as it is packed."""

    names: tuple[str, ...]
    form: Form
    inputs: int  #: of a row; 0 for diagonals
    places: tuple[_Place, ...]

    def read(self, data: bytes) -> Stack:
        values = torch.stack([place.read(data) for place in self.places])
        if self.form is Form.row:
            # A quarter of the time of an index in brackets.
            values = values.index_select(1, _triangle(self.inputs).flatten())
            values = values.view(-1, self.inputs, self.inputs)
        return Stack(self.names, self.form, values)


class _PosteriorPlaces(NamedTuple):
    """Where the means of a posterior are, in one piece, and its precisions."""

    layout: Layout
    means: _Place
    stacks: tuple[_StackPlaces, ...]

    def read(self, data: bytes) -> Posterior:
        mean = self.means.read(data)
        return Posterior(self.layout, mean, tuple(stack.read(data) for stack in self.stacks))


@lru_cache(maxsize=64)
def _places(header: bytes, size: int) -> list[_PosteriorPlaces]:
    """Return where encoder and decoder are in uplinks with this header and so many bytes."""
    names = [name + suffix for suffix in ("", _PRECISION) for name in (ENCODER, DECODER)]
    groups = read_tensors(header + bytes(size - len(header)), names)
    starts = {
        name: len(header) + entry["data_offsets"][0]
        for name, entry in json.loads(header[8:]).items()
        if name != "__metadata__"
    }
    return [_posterior_places(name, groups, starts) for name in (ENCODER, DECODER)]


def _posterior_places(
    group: str, groups: TensorGroups, starts: Mapping[str, int]
) -> _PosteriorPlaces:
    means = groups[group]
    begin = end = starts[f"{group}/{next(iter(means))}"] if means else 0
    for name, mean in means.items():
        if mean.dtype is not torch.float32:
            raise ProtocolError(
                f"{group} array {name!r} is {mean.dtype} {tuple(mean.shape)}, expected float32"
            )
        if starts[f"{group}/{name}"] != end:
            raise ProtocolError(f"the {group}'s arrays do not lie in the order of their names")
        end += mean.nbytes
    alike: dict[tuple[Form, int, torch.Size, torch.dtype], dict[str, _Place]] = {}
    for key, packed in groups[group + _PRECISION].items():
        form, _, name = key.partition(":")
        if name not in means or form not in (Form.diagonal, Form.row):
            raise ProtocolError(f"precision {key!r} belongs to no array")
        if any(name in places for places in alike.values()):
            raise ProtocolError(f"{name} has two precisions")
        try:
            inputs = _inputs(Form(form), packed, means[name])
        except ValueError as error:
            raise ProtocolError(f"precision of {name}: {error}") from error
        place = _Place(packed.dtype, tuple(packed.shape), starts[f"{group}{_PRECISION}/{key}"])
        alike.setdefault((Form(form), inputs, packed.shape, packed.dtype), {})[name] = place
    stacks = tuple(
        _StackPlaces(tuple(places), form, inputs, tuple(places.values()))
        for (form, inputs, *_), places in alike.items()
    )
    layout = Layout.of(means)
    return _PosteriorPlaces(layout, _Place(torch.float32, (sum(layout.sizes),), begin), stacks)


def _inputs(form: Form, packed: Tensor, mean: Tensor) -> int:
    """Return how many inputs a map has, 0 for a diagonal; raise ValueError if it does not fit."""
    if form is Form.diagonal:
        if packed.shape != mean.shape:
            raise ValueError(f"its shape is {tuple(packed.shape)}, expected {tuple(mean.shape)}")
        return 0
    if mean.dim() == 0 or len(mean) == 0:
        raise ValueError("a single value has no rows")
    columns = math.prod(mean.shape[1:])
    if columns > MOST_INPUTS:
        raise ValueError(f"{columns} inputs, expected at most {MOST_INPUTS}")
    check_packed(packed, columns)
    return columns


# Symmetric matrices -----------------------------------------------------------------------------


def upper_triangle(matrix: Tensor) -> Tensor:
    """Return a symmetric matrix (n, n) as its upper triangle, row after row."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns]


def symmetric(packed: Tensor, columns: int) -> Tensor:
    """Undo `upper_triangle`; raise ValueError unless there are as many values as that has."""
    # Before the indices, which take far more memory than the message did.
    check_packed(packed, columns)
    return packed[_triangle(columns)]


def check_packed(packed: Tensor, columns: int) -> None:
    """Raise ValueError unless there are as many values as a symmetric matrix has."""
    if packed.shape != ((count := columns * (columns + 1) // 2),):
        raise ValueError(f"{packed.numel()} packed values, expected {count}")


@lru_cache(maxsize=16)
def _triangle(columns: int) -> Tensor:
    """Return where in its upper triangle each number of a symmetric matrix is."""
    rows, cols = torch.triu_indices(columns, columns)
    places = torch.empty(columns, columns, dtype=torch.int64)
    places[rows, cols] = places[cols, rows] = torch.arange(len(rows))
    return places
