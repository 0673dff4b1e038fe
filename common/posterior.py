"""A client's belief about its weights: one Gaussian per tensor.

Notation: a tensor of shape (out, ...) is read as a matrix (out, in), `in` the product of the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

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
