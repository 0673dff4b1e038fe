"""PbEA, posterior-based encoder aggregation, inside one modality.

Each client sends a Gaussian N(M_i, P_i^-1) per tensor of its encoder; the server multiplies them.
With n_i examples at client i the product has its mode M where

    (sum_i n_i P_i) M = sum_i n_i P_i M_i

In the natural parameters n P and n P M that is a sum, so it streams and reduces in a tree. Where
all precisions are equal it is the weighted average, FedAvg. As ``posterior`` it merges the decoders
of all clients in the same way, by the second moments of what their linear maps read.

Source: arXiv 2303.15486, section 4; the product of posteriors is that of FedPA, arXiv 2010.05273.

Notation: a tensor (out, ...) is read as a matrix (out, in) whose rows share a precision (in, in).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.posterior import Form, Gaussian, Posterior
from server.aggregation.average import WeightedSum, weighted_across
from server.aggregation.rules import RULES, Arrays, Rule


@dataclass(frozen=True)
class Precision:
    """sum n P of one tensor, float64.

    Attributes
    ----------
    values
        Shape (), the tensor's for a diagonal, (in, in) for rows.
    form
        How to read `values`.
    """

    values: Tensor
    form: Form

    @classmethod
    def of(cls, gaussian: Gaussian, weight: float) -> "Precision":
        """Return the precision of one Gaussian times its weight."""
        assert gaussian.precision is not None
        return cls(weight * gaussian.precision.double(), gaussian.form)

    def times(self, tensor: Tensor) -> Tensor:
        """Multiply a tensor by the precision: each row of (out, in) by the same (in, in)."""
        if self.form is Form.row:
            return (tensor.reshape(len(tensor), -1) @ self.values).reshape(tensor.shape)
        return self.values * tensor

    def solve(self, shift: Tensor) -> Tensor:
        """Return M where P M is a tensor."""
        if self.form is not Form.row:
            return shift / self.values
        matrix = shift.reshape(len(shift), -1)
        factor = torch.linalg.cholesky(self.values)
        return torch.cholesky_solve(matrix.T, factor).T.reshape(shift.shape)

    def plus(self, other: "Precision") -> "Precision":
        """Return the sum of both; an identity takes the form of the other."""
        form = other.form if self.form is Form.identity else self.form
        return Precision(self._as(form, other) + other._as(form, self), form)

    def _as(self, form: Form, like: "Precision") -> Tensor:
        if self.form is form:
            return self.values
        if self.form is not Form.identity:
            raise ValueError(f"a {self.form} precision cannot be added to a {form} one")
        if form is Form.diagonal:
            return self.values.expand(like.values.shape)
        return self.values * torch.eye(len(like.values), dtype=torch.float64)


@dataclass(frozen=True)
class PosteriorSum:
    """Product of clients' posteriors, by its natural parameters.

    Attributes
    ----------
    shifts
        sum n P M of every tensor, and sum n.
    precisions
        Tensor name to sum n P; that of tensors that are not named is sum n times the identity.
    """

    shifts: WeightedSum = field(default_factory=WeightedSum)
    precisions: Mapping[str, Precision] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Sum of n."""
        return self.shifts.weight

    @classmethod
    def of(cls, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Return the natural parameters of one client's posterior, see `add`."""
        shifts = WeightedSum.of(posterior, weight)
        named = posterior.precise.items()
        precisions = {name: Precision.of(gaussian, weight) for name, gaussian in named}
        if precisions:
            views = shifts.layout.split(shifts.vector)
            for name, gaussian in named:
                views[name].copy_(precisions[name].times(gaussian.mean.double()))
        return cls(shifts, precisions)

    def add(self, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Multiply in one client's posterior with its number of examples.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, or names, shapes or forms differ from the
            others'.
        """
        return self.merge(PosteriorSum.of(posterior, weight))

    def merge(self, other: "PosteriorSum") -> "PosteriorSum":
        """Multiply two products; an empty one changes nothing."""
        if not self.weight or not other.weight:
            return self if self.weight else other
        precisions = {}
        shifts = self.shifts.merge(other.shifts)
        for name in self.precisions.keys() | other.precisions.keys():
            try:
                precisions[name] = self._precision(name).plus(other._precision(name))
            except ValueError as error:
                raise ValueError(f"array {name!r}: {error}") from error
        return PosteriorSum(shifts, precisions)

    def _precision(self, name: str) -> Precision:
        identity = Precision(torch.tensor(self.weight, dtype=torch.float64), Form.identity)
        return self.precisions.get(name, identity)

    def finish(self) -> Arrays:
        """Return the mode, float32.

        Raises
        ------
        ValueError
            If nothing was added.
        """
        modes = self.shifts.finish()
        shifts = self.shifts.layout.split(self.shifts.vector) if self.precisions else {}
        for name, precision in self.precisions.items():
            modes[name] = precision.solve(shifts[name]).float()
        return modes


RULES["pbea"] = Rule(PosteriorSum, lambda total, _: total.finish(), parts=("encoder",))
RULES["posterior"] = Rule(
    PosteriorSum, lambda total, _: total.finish(), weighted_across, parts=("decoder",)
)
