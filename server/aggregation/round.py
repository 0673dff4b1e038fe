"""A round's updates, one after the other, into its sum and what is reported of the clients."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from common.clients import ClientKey
from common.config import StrategyConfig
from common.messages import Uplink
from common.task import Task
from server.aggregation.client_weights import client_weight, trust_round
from server.aggregation.hierarchy import RoundSum
from server.aggregation.posterior_std import PosteriorReport

T = TypeVar("T")


@dataclass
class SummedRound:
    """The updates of a round.

    Attributes
    ----------
    total
        Their sum.
    losses
        Client to train loss.
    trust
        Client to the trust in its labels, where clients are weighted by it.
    posteriors
        How uncertain the clients are.
    """

    total: RoundSum
    losses: dict[ClientKey, float] = field(default_factory=dict)
    trust: dict[ClientKey, float] = field(default_factory=dict)
    posteriors: PosteriorReport = field(default_factory=PosteriorReport)

    def without_few(self, least: int) -> list[str]:
        """Leave out modalities with fewer clients; return a line for each."""
        modalities = sorted(self.total.modalities.items())
        enough = {name: each for name, each in modalities if each.clients >= least}
        self.total = replace(self.total, modalities=enough)
        return [
            f"{name}: {each.clients} updates, and runtime.min_clients={least}"
            for name, each in modalities
            if name not in enough
        ]

    def by_client(self, figures: dict[ClientKey, T]) -> dict[str, T]:
        """Return figures of the clients that are in the sum, in the clients' order."""
        modalities = self.total.modalities
        return {str(key): figures[key] for key in sorted(figures) if key.modality in modalities}


def sum_updates(
    updates: Iterable[Uplink], config: StrategyConfig, prior: Tensor, task: Task
) -> SummedRound:
    """Add updates one by one; where clients are weighted by agreement, all are kept until the last.

    Parameters
    ----------
    updates
        Of one round; those of one modality in the clients' order.
    config
        The rules and weights.
    prior, task
        Of the pooled labels, see `common.model.calibration.prior_of`, and their kind.
    """
    summed = SummedRound(RoundSum(config))
    if config.weights == "agreement":
        updates = list(updates)
        summed.trust = trust_round(updates, prior, task)
    for uplink in updates:
        trust = summed.trust.get(uplink.key, 1.0)
        weight = client_weight(uplink, config.weights, trust)
        summed.total = summed.total.add(uplink, weight, trust)
        summed.losses[uplink.key] = uplink.train_loss
        summed.posteriors.add(uplink)
    return summed
