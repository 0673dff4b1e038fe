"""A round's updates, one after the other, into its sum and what is reported of the clients."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from common.clients import ClientKey
from common.config import StrategyConfig
from common.messages import Uplink
from common.task import Task
from server.aggregation.client_weights import client_weight, trust_round
from server.aggregation.hierarchy import RoundSum
from server.aggregation.posterior_std import MOST_CLIENTS, posterior_std

T = TypeVar("T")


@dataclass
class SummedRound:
    """The sum of a round's updates, and figures of its clients."""

    total: RoundSum
    losses: dict[ClientKey, float] = field(default_factory=dict)
    #: In the labels, where clients are weighted by it.
    trust: Mapping[ClientKey, float] = field(default_factory=dict)
    #: Layer to standard deviation, of the first clients of each modality.
    posterior_std: dict[ClientKey, dict[str, float]] = field(default_factory=dict)

    def without_few(self, least: int) -> list[str]:
        """Leave out modalities with fewer clients; return a line for each."""
        modalities = sorted(self.total.modalities.items())
        enough = {name: modality for name, modality in modalities if modality.clients >= least}
        self.total = replace(self.total, modalities=enough)
        return [
            f"{name}: {modality.clients} updates, and runtime.min_clients={least}"
            for name, modality in modalities
            if name not in enough
        ]

    def by_client(self, figures: Mapping[ClientKey, T]) -> dict[str, T]:
        """Return figures of the clients that are in the sum, in the clients' order."""
        modalities = self.total.modalities
        return {str(key): figures[key] for key in sorted(figures) if key.modality in modalities}

    def stds_by_client(self) -> dict[str, dict[str, float]]:
        """Return those of `MOST_CLIENTS` at most, which modalities share equally."""
        modalities, most = self.total.modalities, MOST_CLIENTS
        if sum(modality.clients for modality in modalities.values()) > most:
            most = max(1, most // len(modalities))
        first = [
            key
            for name in modalities
            for key in [key for key in sorted(self.posterior_std) if key.modality == name][:most]
        ]
        return self.by_client({key: stds for key in first if (stds := self.posterior_std[key])})


def sum_updates(
    updates: Iterable[Uplink], config: StrategyConfig, prior: Tensor, task: Task
) -> SummedRound:
    """Add updates one by one; where clients are weighted by agreement, all are kept until the last.

    Those of one modality come in the clients' order; `prior` is that of the pooled labels.
    """
    summed = SummedRound(RoundSum(config))
    if config.weights == "agreement":
        updates = list(updates)
        summed.trust = trust_round(updates, prior, task)
    for uplink in updates:
        key, trust = uplink.key, summed.trust.get(uplink.key, 1.0)
        weight = client_weight(uplink, config.weights, trust)
        summed.total = summed.total.add(uplink, weight, trust)
        summed.losses[key] = uplink.train_loss
        if summed.total.modalities[key.modality].clients <= MOST_CLIENTS:
            summed.posterior_std[key] = posterior_std(uplink)
    return summed
