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

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.posterior import Form, Posterior, Stack, stacked
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
    #: sum n P of some, float64; that of others is sum n times the identity.
    stacks: tuple[Stack, ...] = ()

    @property
    def precisions(self) -> dict[str, Precision]:
        """Tensor name to sum n P, where it is not that of the identity."""
        return {
            name: Precision(values, stack.form)
            for stack in self.stacks
            for name, values in zip(stack.names, stack.values, strict=True)
        }

    def add(self, posterior: Posterior, weight: float) -> "PosteriorSum":
        """Multiply in one client's posterior with its number of examples.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, or names, shapes or forms differ from the
            others'.
        """
        stacks = tuple(
            replace(stack, values=stack.values.to(torch.float64, copy=True).mul_(weight))
            for stack in posterior.stacks
        )
        one = PosteriorSum(WeightedSum().add(posterior, weight), stacks)
        if precisions := one.precisions:
            views = one.shifts.layout.split(one.shifts.vector, precisions)
            means = posterior.layout.split(posterior.mean.double(), precisions)
            for name, precision in precisions.items():
                views[name].copy_(precision.times(means[name]))
        return self.merge(one)

    def merge(self, other: "PosteriorSum") -> "PosteriorSum":
        """Multiply two products; an empty one changes nothing."""
        if not self.shifts.weight or not other.shifts.weight:
            return self if self.shifts.weight else other
        shifts = self.shifts.merge(other.shifts)
        if _kinds(self.stacks) == _kinds(other.stacks):
            pairs = zip(self.stacks, other.stacks, strict=True)
            added = (replace(ours, values=ours.values + theirs.values) for ours, theirs in pairs)
            return PosteriorSum(shifts, tuple(added))
        precisions, own, others = {}, self.precisions, other.precisions
        for name in own.keys() | others.keys():
            try:
                both = own.get(name, self._identity).plus(others.get(name, other._identity))
            except ValueError as error:
                raise ValueError(f"array {name!r}: {error}") from error
            precisions[name] = both.form, both.values
        return PosteriorSum(shifts, stacked(precisions))

    @property
    def _identity(self) -> Precision:
        return Precision(torch.tensor(self.shifts.weight, dtype=torch.float64), Form.identity)

    def finish(self) -> Arrays:
        """Return the mode, float32; raise ValueError if nothing was added."""
        modes = self.shifts.finish()
        precisions = self.precisions
        shifts = self.shifts.layout.split(self.shifts.vector, precisions) if precisions else {}
        for name, precision in precisions.items():
            modes[name] = precision.solve(shifts[name]).float()
        return modes


def _kinds(stacks: tuple[Stack, ...]) -> list[tuple[object, ...]]:
    return [(stack.names, stack.form, stack.values.shape) for stack in stacks]


RULES["pbea"] = Rule(PosteriorSum, lambda total, _: total.finish(), parts=("encoder",))
RULES["posterior"] = Rule(
    PosteriorSum, lambda total, _: total.finish(), weighted_across, parts=("decoder",)
)
