"""A client's belief about its weights: one Gaussian per tensor, all means in one vector.

Notation: a tensor of shape (out, ...) is read as a matrix (out, in), `in` the product of the rest;
P weights in all.
"""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor


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
    """N(mean, precision^-1) over one tensor of any shape."""

    mean: Tensor
    precision: Tensor | None = None  # shaped as `form` says; None for the identity
    form: Form = Form.identity

    def __post_init__(self) -> None:
        expected = precision_shape(self.mean, self.form)
        found = None if self.precision is None else tuple(self.precision.shape)
        if found != expected:
            raise ValueError(f"{self.form} precision has shape {found}, expected {expected}")


def precision_shape(mean: Tensor, form: Form) -> tuple[int, ...] | None:
    """Return the shape of the precision that belongs to a mean."""
    if form is Form.row:
        return (mean[0].numel(),) * 2
    return tuple(mean.shape) if form is Form.diagonal else None


@dataclass(frozen=True)
class Layout:
    """How named arrays follow one another in a vector, sorted by name as on the wire."""

    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of some arrays."""
        names = tuple(sorted(arrays))
        return cls(names, tuple(tuple(arrays[name].shape) for name in names))

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers in each array."""
        return [math.prod(shape) for shape in self.shapes]

    def join(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return arrays of this layout as one vector (P,)."""
        return torch.cat([arrays[name].reshape(-1) for name in self.names])

    def split(self, vector: Tensor, only: Container[str] | None = None) -> dict[str, Tensor]:
        """Return the arrays, or those of some names, as views of a vector (P,)."""
        pieces = torch.split(vector, self.sizes)
        named = zip(self.names, pieces, self.shapes, strict=True)
        wanted = self.names if only is None else only
        return {name: piece.view(shape) for name, piece, shape in named if name in wanted}

    def difference(self, expected: "Layout") -> str | None:
        """Name the first array that another layout lacks, has besides, or has in another shape."""
        if self == expected:
            return None
        shapes, others = (dict(zip(of.names, of.shapes, strict=True)) for of in (self, expected))
        for name in sorted(shapes.keys() ^ others.keys()):
            return f"array {name!r} is {'unexpected' if name in shapes else 'missing'}"
        name = next(name for name in shapes if shapes[name] != others[name])
        return f"array {name!r} has shape {shapes[name]}, expected {others[name]}"


@dataclass(frozen=True)
class Stack:
    """The precisions of one form and size, so that all are worked on at once."""

    names: tuple[str, ...]
    form: Form
    values: Tensor  # (k, in, in), or (k, *shape) of diagonals

    @cached_property
    def means(self) -> list[float]:
        """Their mean eigenvalues, which are the means of their diagonals."""
        values = self.values
        diagonals = values.diagonal(dim1=1, dim2=2) if self.form is Form.row else values.flatten(1)
        means: list[float] = diagonals.double().mean(dim=1).tolist()
        return means


def stacked(precisions: Mapping[str, tuple[Form, Tensor]]) -> tuple[Stack, ...]:
    """Join precisions, by the names of their tensors, with those of their form, size and type."""
    alike: dict[tuple[Form, torch.Size, torch.dtype], dict[str, Tensor]] = {}
    for name, (form, values) in precisions.items():
        alike.setdefault((form, values.shape, values.dtype), {})[name] = values
    return tuple(
        Stack(tuple(each), form, torch.stack(list(each.values())))
        for (form, *_), each in alike.items()
    )


class Posterior(Mapping[str, Gaussian]):
    """The Gaussians of an encoder or a decoder.

    All means are one vector (P,), and precisions of one form and size one stack, so that an update
    is checked, compared and added in few pieces.
    """

    def __init__(self, layout: Layout, mean: Tensor, stacks: tuple[Stack, ...] = ()) -> None:
        self.layout, self.mean, self.stacks = layout, mean, stacks

    @classmethod
    def of(cls, gaussians: Mapping[str, Gaussian]) -> "Posterior":
        """Join Gaussians by name."""
        means = {name: gaussian.mean for name, gaussian in gaussians.items()}
        precise = {
            n: (g.form, g.precision) for n, g in gaussians.items() if g.precision is not None
        }
        layout = Layout.of(means)
        return cls(layout, layout.join(means), stacked(precise))

    @property
    def nbytes(self) -> int:
        """Bytes of the means and precisions."""
        return self.mean.nbytes + sum(stack.values.nbytes for stack in self.stacks)

    @cached_property
    def mean_precisions(self) -> dict[str, float]:
        """The mean eigenvalue of each precision, by the tensor's name."""
        return {
            name: mean
            for stack in self.stacks
            for name, mean in zip(stack.names, stack.means, strict=True)
        }

    def moved(self, mean: Tensor) -> "Posterior":
        """Return the posterior with other means (P,) and the same precisions."""
        return Posterior(self.layout, mean, self.stacks)

    @cached_property
    def _gaussians(self) -> dict[str, Gaussian]:
        views = self.layout.split(self.mean)
        precise = {
            name: Gaussian(views[name], precision, stack.form)
            for stack in self.stacks
            for name, precision in zip(stack.names, stack.values, strict=True)
        }
        return {name: precise.get(name) or Gaussian(mean) for name, mean in views.items()}

    def __getitem__(self, name: str) -> Gaussian:
        return self._gaussians[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)
