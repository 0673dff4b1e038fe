"""Median and trimmed mean, weight by weight, all clients alike.

A minority of faulty clients cannot move the result beyond the others' values. These rules need
every client's arrays at once, so memory grows with the number of clients; adding collects, so order
and grouping still do not matter.

Source: Yin et al. 2018, arXiv 1803.01498.

Notation: C clients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.posterior import Posterior
from server.aggregation.average import check_weight
from server.aggregation.rules import RULES, Arrays, Rule


@dataclass(frozen=True)
class ClientUpdates:
    """Each client's posterior; their weights are not used."""

    clients: tuple[Posterior, ...] = ()

    def add(self, posterior: Posterior, weight: float) -> "ClientUpdates":
        """Add one client.

        Raises
        ------
        ValueError
            If names or shapes differ from the others', or the weight is not positive.
        """
        check_weight(weight)
        return self.merge(ClientUpdates((posterior,)))

    def merge(self, other: "ClientUpdates") -> "ClientUpdates":
        """Return the clients of both."""
        if self.clients and other.clients:
            fault = other.clients[0].layout.difference(self.clients[0].layout)
            if fault:
                raise ValueError(f"updates that do not fit together: {fault}")
        return ClientUpdates(self.clients + other.clients)

    def stacked(self) -> dict[str, Tensor]:
        """Return name to (C, *shape), float64; raise ValueError if there is no client."""
        if not self.clients:
            raise ValueError("no clients to merge")
        clients = [client.layout.split(client.mean) for client in self.clients]
        names = self.clients[0].layout.names
        return {name: torch.stack([arrays[name].double() for arrays in clients]) for name in names}


def median(updates: ClientUpdates) -> Arrays:
    """Return the median of every weight, float32; between two middle values their mean."""
    middle = len(updates.clients) // 2
    return _mean_of_sorted(updates, slice((len(updates.clients) - 1) // 2, middle + 1))


def trimmed_mean(updates: ClientUpdates, trim: float) -> Arrays:
    """Return the mean of every weight without floor(trim C) clients at either end, float32."""
    # A hair more, for products that round to just below a whole number: 0.29 of 100 is 29.
    cut = int(trim * len(updates.clients) + 1e-9)
    return _mean_of_sorted(updates, slice(cut, len(updates.clients) - cut))


def _mean_of_sorted(updates: ClientUpdates, kept: slice) -> Arrays:
    return {
        name: values.sort(dim=0).values[kept].mean(dim=0).float()
        for name, values in updates.stacked().items()
    }


RULES["median"] = Rule(ClientUpdates, lambda updates, _: median(updates))
RULES["trimmed_mean"] = Rule(
    ClientUpdates, lambda updates, setting: trimmed_mean(updates, setting.config.trim)
)
