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

from common.posterior import Form, Posterior
from server.aggregation.average import WeightedSum, weighted_across
from server.aggregation.rules import RULES, Arrays, Rule


@dataclass(frozen=True)
class Precision:
    """sum n P of one tensor, float64, to be read as its form says."""

    values: Tensor
    form: Form

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
    """Product of clients' posteriors, by its natural parameters."""

    #: sum n P M of every tensor, and sum n.
    shifts: WeightedSum = field(default_factory=WeightedSum)
    #: Tensor name to sum n P; that of others is sum n times the identity.
    precisions: Mapping[str, Precision] = field(default_factory=dict)

    def add(self, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Multiply in one client's posterior with its number of examples.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, or names, shapes or forms differ from the
            others'.
        """
        shifts, precisions = WeightedSum().add(posterior, weight), {}
        views = shifts.layout.split(shifts.vector) if posterior.precise else {}
        for name, gaussian in posterior.precise.items():
            assert gaussian.precision is not None
            precision = Precision(weight * gaussian.precision.double(), gaussian.form)
            views[name].copy_(precision.times(gaussian.mean.double()))
            precisions[name] = precision
        return self.merge(PosteriorSum(shifts, precisions))

    def merge(self, other: "PosteriorSum") -> "PosteriorSum":
        """Multiply two products; an empty one changes nothing."""
        if not self.shifts.weight or not other.shifts.weight:
            return self if self.shifts.weight else other
        shifts, precisions = self.shifts.merge(other.shifts), {}
        for name in self.precisions.keys() | other.precisions.keys():
            try:
                precisions[name] = self._precision(name).plus(other._precision(name))
            except ValueError as error:
                raise ValueError(f"array {name!r}: {error}") from error
        return PosteriorSum(shifts, precisions)

    def _precision(self, name: str) -> Precision:
        identity = Precision(torch.tensor(self.shifts.weight, dtype=torch.float64), Form.identity)
        return self.precisions.get(name, identity)

    def finish(self) -> Arrays:
        """Return the mode, float32; raise ValueError if nothing was added."""
        modes = self.shifts.finish()
        shifts = self.shifts.layout.split(self.shifts.vector) if self.precisions else {}
        for name, precision in self.precisions.items():
            modes[name] = precision.solve(shifts[name]).float()
        return modes


RULES["pbea"] = Rule(PosteriorSum, lambda total, _: total.finish(), parts=("encoder",))
RULES["posterior"] = Rule(
    PosteriorSum, lambda total, _: total.finish(), weighted_across, parts=("decoder",)
)
