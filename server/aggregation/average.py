"""Weighted average of arrays: FedAvg (McMahan et al. 2017), as a sum that can be merged.

Sums are kept in float64, so that order and grouping change a result by rounding only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightedSum:
    """Sum of n_i W_i, and of n_i.

    Attributes
    ----------
    sums
        Array name to sum_i n_i W_i, float64.
    weight
        sum_i n_i.
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0

    def add(self, arrays: Mapping[str, Tensor], weight: float) -> "WeightedSum":
        """Add one client's arrays with its weight.

        Raises
        ------
        ValueError
            If the weight is not positive and finite.
        """
        check_weight(weight)
        return self.merge(
            WeightedSum({name: weight * array.double() for name, array in arrays.items()}, weight)
        )

    def merge(self, other: "WeightedSum") -> "WeightedSum":
        """Return the sum of both; an empty sum changes nothing."""
        if self.weight == 0 or other.weight == 0:
            return other if self.weight == 0 else self
        return WeightedSum(add_arrays(self.sums, other.sums), self.weight + other.weight)

    def finalize(self) -> dict[str, Tensor]:
        """Return the average, float32.

        Raises
        ------
        ValueError
            If nothing was added: an average of nothing is not zero.
        """
        if not self.sums:
            raise ValueError("average of no clients")
        return {name: (total / self.weight).float() for name, total in self.sums.items()}


def check_weight(weight: float) -> None:
    """Raise ValueError unless a weight is positive and finite."""
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight {weight}: expected a positive finite number")


def add_arrays(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add arrays name by name, without broadcasting.

    Raises
    ------
    ValueError
        If names or shapes differ, naming the first that does.
    """
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[0]
        raise ValueError(f"array {odd!r} is in one update but not in the other")
    for name, array in left.items():
        if array.shape != right[name].shape:
            raise ValueError(
                f"array {name!r} has shape {tuple(array.shape)} in one update and "
                f"{tuple(right[name].shape)} in another"
            )
    return {name: torch.add(array, right[name]) for name, array in left.items()}
