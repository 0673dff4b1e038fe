"""Rules that need every client's arrays at once: median, trimmed mean, attention over clients.

Unlike the sums of `average` and `pbea` these do not stream: memory grows with the number of
clients. Adding collects, so order and grouping still do not matter.

- median and trimmed mean, weight by weight, all clients alike (Yin et al. 2018): a minority of
  faulty clients cannot move the result beyond the others' values;
- FedAtt (Ji et al. 2019, arXiv 1812.07108), layer by layer, from the current W, with the clients'
  W_k: alpha = softmax_k ||W - W_k||, W <- W - eps (sum_k alpha_k (W - W_k) + noise).

Notation: C clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import FedAttConfig
from server.aggregation.average import add_arrays, check_weight

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Collected:
    """The arrays of clients.

    Attributes
    ----------
    clients
        Each client's arrays.
    weight
        Sum of the clients' weights; the rules here do not use them.
    """

    clients: tuple[Arrays, ...] = ()
    weight: float = 0.0

    def add(self, arrays: Arrays, weight: float) -> "Collected":
        """Add one client.

        Raises
        ------
        ValueError
            If names or shapes differ from the others', or the weight is not positive.
        """
        check_weight(weight)
        return self.merge(Collected((arrays,), weight))

    def merge(self, other: "Collected") -> "Collected":
        """Return the clients of both."""
        if self.clients and other.clients:
            add_arrays(self.clients[0], other.clients[0])
        return Collected(self.clients + other.clients, self.weight + other.weight)

    def stacked(self) -> dict[str, Tensor]:
        """Return name to (C, *shape), float64.

        Raises
        ------
        ValueError
            If there is no client.
        """
        if not self.clients:
            raise ValueError("no clients to merge")
        return {
            name: torch.stack([client[name].double() for client in self.clients])
            for name in self.clients[0]
        }


def median(collected: Collected) -> dict[str, Tensor]:
    """Return the median of every weight, float32; between two middle values their mean."""
    middle = len(collected.clients) // 2
    either = slice((len(collected.clients) - 1) // 2, middle + 1)
    return {
        name: each.sort(dim=0).values[either].mean(dim=0).float()
        for name, each in collected.stacked().items()
    }


def trimmed_mean(collected: Collected, trim: float) -> dict[str, Tensor]:
    """Return the mean of every weight without the extreme clients, float32.

    Parameters
    ----------
    collected
        The clients.
    trim
        Share of the clients left out at either end, in [0, 0.5): floor(trim C) of them.
    """
    # A hair more, for products that round to just below a whole number: 0.29 of 100 is 29.
    cut = int(trim * len(collected.clients) + 1e-9)
    kept = slice(cut, len(collected.clients) - cut)
    return {
        name: each.sort(dim=0).values[kept].mean(dim=0).float()
        for name, each in collected.stacked().items()
    }


def attend(
    collected: Collected, current: Arrays, config: FedAttConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """Move the current arrays towards the clients', the farther the more; float32.

    Parameters
    ----------
    collected
        The clients.
    current
        What they started from.
    config
        eps, and the deviation of the noise.
    generator
        Draws the noise.
    """
    merged, stacked = {}, collected.stacked()
    # In the model's order, in which noise is drawn, whatever the order on the wire.
    for name in [each for each in current if each in stacked]:
        ahead = current[name].double() - stacked[name]
        attention = ahead.reshape(len(ahead), -1).norm(dim=1).softmax(dim=0)
        pull = torch.tensordot(attention, ahead, dims=1)
        noise = torch.randn(pull.shape, dtype=torch.float64, generator=generator)
        moved = current[name].double() - config.epsilon * (pull + config.noise * noise)
        merged[name] = moved.float()
    return merged
