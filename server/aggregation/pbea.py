"""PbEA, posterior-based encoder aggregation, inside one modality.

Each client sends a Gaussian N(M_i, P_i^-1) per tensor of its encoder; the server multiplies them.
With n_i examples at client i the product has its mode M where

    (sum_i n_i P_i) M = sum_i n_i P_i M_i

In the natural parameters n P and n P M that is a sum, so it can stream and reduce in a tree. Where
all precisions are equal it is the weighted average, FedAvg.

Source: arXiv 2303.15486, section 4; the product of posteriors is that of FedPA, arXiv 2010.05273.

Notation: a tensor (out, ...) is read as a matrix (out, in) whose rows share a precision (in, in).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.posterior import Form, Gaussian, Layout, Means, Posterior
from server.aggregation.average import check_weight


@dataclass(frozen=True)
class NaturalSum:
    """Natural parameters of a product of Gaussians over one tensor, float64.

    Attributes
    ----------
    precision
        sum n P. Shape () for the identity, the tensor's for a diagonal, (in, in) for rows.
    shift
        sum n P M, shaped like the tensor.
    form
        How to read `precision`.
    """

    precision: Tensor
    shift: Tensor
    form: Form

    @classmethod
    def of(cls, gaussian: Gaussian, weight: float) -> "NaturalSum":
        """Return the natural parameters of one weighted Gaussian."""
        if gaussian.precision is None:
            shift = gaussian.mean.to(torch.float64, copy=True).mul_(weight)
            return cls(torch.tensor(weight, dtype=torch.float64), shift, Form.identity)
        mean = gaussian.mean.double()
        precision = weight * gaussian.precision.double()
        return cls(precision, _apply(mean, precision, gaussian.form), gaussian.form)

    def merge(self, other: "NaturalSum") -> "NaturalSum":
        """Multiply two products; an identity takes the form of the other."""
        if self.shift.shape != other.shift.shape:
            raise ValueError(
                f"shapes {tuple(self.shift.shape)} and {tuple(other.shift.shape)} differ"
            )
        form = other.form if self.form is Form.identity else self.form
        total = self._precision_as(form) + other._precision_as(form)
        return NaturalSum(total, self.shift + other.shift, form)

    def mode(self) -> Tensor:
        """Solve for the mode M."""
        if self.form is not Form.row:
            return self.shift / self.precision
        matrix = self.shift.reshape(len(self.shift), -1)
        factor = torch.linalg.cholesky(self.precision)
        return torch.cholesky_solve(matrix.T, factor).T.reshape(self.shift.shape)

    def _precision_as(self, form: Form) -> Tensor:
        if self.form is form:
            return self.precision
        if self.form is not Form.identity:
            raise ValueError(f"a {self.form} precision cannot be added to a {form} one")
        if form is Form.diagonal:
            return self.precision.expand(self.shift.shape)
        columns = self.shift[0].numel()
        return self.precision * torch.eye(columns, dtype=torch.float64)


def _apply(mean: Tensor, precision: Tensor, form: Form) -> Tensor:
    """Multiply a tensor by a precision: each row of (out, in) by the same (in, in)."""
    if form is Form.diagonal:
        return precision * mean
    return (mean.reshape(len(mean), -1) @ precision).reshape(mean.shape)


@dataclass(frozen=True)
class PosteriorSum:
    """Product of clients' posteriors over an encoder.

    Attributes
    ----------
    tensors
        Tensor name to its natural parameters, of clients that sent precisions.
    means
        Those of all others, whose tensors are one vector: its layout and its natural parameters.
    """

    tensors: Mapping[str, NaturalSum] = field(default_factory=dict)
    means: tuple[Layout, NaturalSum] | None = None

    @classmethod
    def of(cls, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Return the natural parameters of one client's posterior, see `add`."""
        check_weight(weight)
        if not posterior:
            raise ValueError("posterior of no tensors")
        if isinstance(posterior, Means):
            return cls(means=(posterior.layout, NaturalSum.of(Gaussian(posterior.vector), weight)))
        return cls({name: NaturalSum.of(each, weight) for name, each in posterior.items()})

    def add(self, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Multiply in one client's posterior with its number of examples.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, or names or shapes differ from the others'.
        """
        return self.merge(PosteriorSum.of(posterior, weight))

    def merge(self, other: "PosteriorSum") -> "PosteriorSum":
        """Multiply two products; an empty one changes nothing."""
        if not self or not other:
            return self or other
        if self.means and other.means and not self.tensors and not other.tensors:
            (layout, own), (others, more) = self.means, other.means
            if layout == others:
                return PosteriorSum(means=(layout, own.merge(more)))
        return PosteriorSum(_merged(self.by_name(), other.by_name()))

    def by_name(self) -> Mapping[str, NaturalSum]:
        """Return tensor name to its natural parameters, of all clients."""
        if self.means is None:
            return self.tensors
        layout, total = self.means
        own = {
            name: NaturalSum(total.precision, shift, Form.identity)
            for name, shift in layout.split(total.shift).items()
        }
        return _merged(self.tensors, own) if self.tensors else own

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self.tensors) or self.means is not None

    def finalize(self) -> dict[str, Tensor]:
        """Return the mode, float32.

        Raises
        ------
        ValueError
            If nothing was added.
        """
        if not self:
            raise ValueError("product of no posteriors")
        return {name: natural.mode().float() for name, natural in self.by_name().items()}


def _merged(
    left: Mapping[str, NaturalSum], right: Mapping[str, NaturalSum]
) -> dict[str, NaturalSum]:
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[0]
        raise ValueError(f"tensor {odd!r} is in one posterior but not in the other")
    merged = {}
    for name, natural in left.items():
        try:
            merged[name] = natural.merge(right[name])
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error
    return merged
