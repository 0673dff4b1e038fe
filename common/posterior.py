"""A client's belief about its weights: one Gaussian per tensor.

Notation: a tensor of shape (out, ...) is read as a matrix (out, in), `in` the product of the rest.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

from common.config import DecoderConfig, DecoderMerge, EncoderConfig, EncoderMerge, Structure


class Form(StrEnum):
    """Shape of a precision.

    ``identity``: none is sent, the precision is I. ``diagonal``: shaped like the mean. ``row``:
    (in, in), shared by all rows of the mean read as (out, in).
    """

    identity = "identity"
    diagonal = "diagonal"
    row = "row"


@dataclass(frozen=True)
class Gaussian:
    """N(mean, precision^-1) over one tensor.

    Attributes
    ----------
    mean
        Any shape.
    precision
        As `form` says; None for the identity.
    form
        How to read `precision`.
    """

    mean: Tensor
    precision: Tensor | None = None
    form: Form = Form.identity

    def __post_init__(self) -> None:
        expected = precision_shape(self.mean, self.form)
        found = None if self.precision is None else tuple(self.precision.shape)
        if found != expected:
            raise ValueError(f"{self.form} precision has shape {found}, expected {expected}")


Posterior = Mapping[str, Gaussian]


@dataclass(frozen=True)
class Layout:
    """How named arrays lie one after the other in a vector.

    Attributes
    ----------
    names, shapes
        Of each array, in their order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Layout":
        """Return that of arrays in the order of their names, in which they come off the wire."""
        names = tuple(sorted(arrays))
        return cls(names, tuple(tuple(arrays[name].shape) for name in names))

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sizes", [math.prod(shape) for shape in self.shapes])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the arrays, as views of a vector."""
        pieces = torch.split(vector, self.__dict__["_sizes"])
        named = zip(self.names, pieces, self.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in named}


class Means(Mapping[str, Gaussian]):
    """A posterior without precisions whose means are one vector.

    It is as any other, but thousands of them can be checked and added in one piece each.

    Attributes
    ----------
    layout
        Of the arrays.
    vector
        All their numbers.
    """

    def __init__(self, layout: Layout, vector: Tensor) -> None:
        self.layout = layout
        self.vector = vector

    @cached_property
    def _gaussians(self) -> dict[str, Gaussian]:
        return {name: Gaussian(mean) for name, mean in self.layout.split(self.vector).items()}

    def __getitem__(self, name: str) -> Gaussian:
        return self._gaussians[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)


def encoder_structure(config: EncoderConfig) -> Structure | None:
    """Return the structure of the encoders' posteriors; None where they are not merged by them."""
    return config.structure if config.merge is EncoderMerge.pbea else None


def decoder_structure(config: DecoderConfig) -> Structure | None:
    """Return the structure of the decoders' posteriors; None where they are not merged by them."""
    return Structure.inputs if config.merge is DecoderMerge.posterior else None


def posterior_form(mean: Tensor, structure: Structure | None) -> Form:
    """Return the form that a client's posterior over one tensor has, unless it tells nothing."""
    matrix = mean.ndim >= 2
    match structure:
        case Structure.diagonal:
            return Form.diagonal
        case Structure.row:
            return Form.row if matrix else Form.diagonal
        case Structure.inputs:
            return Form.row if matrix else Form.identity
        case _:
            return Form.identity


def precision_shape(mean: Tensor, form: Form) -> tuple[int, ...] | None:
    """Return the shape of the precision that belongs to a mean."""
    match form:
        case Form.identity:
            return None
        case Form.diagonal:
            return tuple(mean.shape)
        case Form.row:
            columns = mean[0].numel()
            return (columns, columns)
