"""FedAvg, the weighted average of arrays, as a sum that can be merged.

    W = sum_i n_i W_i / sum_i n_i

Sums are kept in float64, so that order and grouping change a result by rounding only.

Source: McMahan et al. 2017, arXiv 1602.05629.

Notation: P weights in all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.posterior import Layout, Posterior
from server.aggregation.rules import RULES, Arrays, Rule, Setting, Shares, merge_sums


@dataclass(frozen=True)
class WeightedSum:
    """Sum of n_i W_i, and of n_i."""

    layout: Layout = field(default_factory=Layout)
    #: (P,) float64.
    vector: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    weight: float = 0.0

    def add(self, posterior: Posterior, weight: float) -> "WeightedSum":
        """Add the means of one client.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, there are no arrays, or `merge` raises.
        """
        check_weight(weight)
        if not posterior:
            raise ValueError("an update of no arrays")
        vector = posterior.mean.to(torch.float64, copy=True).mul_(weight)
        return self.merge(WeightedSum(posterior.layout, vector, weight))

    def merge(self, other: "WeightedSum") -> "WeightedSum":
        """Return the sum of both; an empty sum changes nothing.

        Raises
        ------
        ValueError
            If names or shapes differ, naming the first that does.
        """
        if not self.weight or not other.weight:
            return self if self.weight else other
        if fault := other.layout.difference(self.layout):
            raise ValueError(f"updates that do not fit together: {fault}")
        return WeightedSum(self.layout, self.vector + other.vector, self.weight + other.weight)

    def finish(self) -> Arrays:
        """Return the average, float32; raise ValueError for that of nothing, which is not zero."""
        if not self.weight:
            raise ValueError("no clients to merge")
        return self.layout.split((self.vector / self.weight).float())


def check_weight(weight: float) -> None:
    """Raise ValueError unless a weight is positive and finite."""
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight {weight}: expected a positive finite number")


def weighted_across(sums: Mapping[str, Any], setting: Setting) -> tuple[Arrays, Shares]:
    """Merge all modalities' clients; the shares of modalities are those of their weights."""
    decoder: Arrays = merge_sums(sums).finish()
    total = sum(setting.weights.values())
    shares = {name: weight / total for name, weight in setting.weights.items()}
    return decoder, {layer: dict(shares) for layer in decoder}


RULES["average"] = Rule(WeightedSum, lambda total, _: total.finish(), weighted_across)
