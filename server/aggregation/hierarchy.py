"""The hierarchy: a rule inside each modality, PbEA say, then one across modalities, CmDA say.

A round is one `RoundSum`: add every client's `Uplink`, in any order and grouping, then
`merge_round`. The rules are those that the configuration names, see `server.aggregation.rules`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.task import Task
from server.aggregation.client_weights import StepSums, client_weight, trust_round
from server.aggregation.posterior_std import MOST_CLIENTS, posterior_std
from server.aggregation.rules import Setting, Shares, find_rule

T = TypeVar("T")


@dataclass(frozen=True)
class ModalitySum:
    """What the clients of one modality add up to."""

    #: Sums of the rules that merge them, see `server.aggregation.rules.ClientSum`.
    encoder: Any
    decoder: Any
    #: Of n_i times the train loss.
    loss: float
    #: Each client's times the trust in it.
    calibration_sums: Tensor
    #: For the scale of changes per local step.
    steps: StepSums
    examples: int
    clients: int

    def merge(self, other: "ModalitySum") -> "ModalitySum":
        """Return the sum of both."""
        return ModalitySum(
            self.encoder.merge(other.encoder),
            self.decoder.merge(other.decoder),
            self.loss + other.loss,
            self.calibration_sums + other.calibration_sums,
            self.steps.merge(other.steps),
            self.examples + other.examples,
            self.clients + other.clients,
        )


@dataclass(frozen=True)
class RoundSum:
    """What the clients of a round add up to, by modality."""

    config: StrategyConfig
    modalities: Mapping[str, ModalitySum] = field(default_factory=dict)

    def add(self, uplink: Uplink, weight: float | None = None, trust: float = 1.0) -> "RoundSum":
        """Add one client.

        `weight` is what its update counts, by default its examples; `trust` what its sums do.
        """
        config, counted = self.config, float(uplink.examples) if weight is None else weight
        share = counted / uplink.steps if config.normalise_steps else counted
        one = ModalitySum(
            find_rule(config.encoder.merge, "encoder").start().add(uplink.encoder, share),
            find_rule(config.decoder.merge, "decoder").start().add(uplink.decoder, share),
            uplink.examples * uplink.train_loss,
            trust * uplink.calibration_sums,
            StepSums().add(counted, uplink.steps),
            uplink.examples,
            1,
        )
        return self.merge(RoundSum(config, {uplink.key.modality: one}))

    def merge(self, other: "RoundSum") -> "RoundSum":
        """Return the sum of both."""
        merged = dict(self.modalities)
        for name, added in other.modalities.items():
            merged[name] = merged[name].merge(added) if name in merged else added
        return replace(self, modalities=merged)


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


@dataclass(frozen=True)
class MergedRound:
    """The new global model."""

    #: Trained tensors only: encoders of the modalities that replied, and the decoder.
    parts: ModelArrays
    #: Layer to modality to its share in the decoder; empty where clients have none.
    decoder_weights: Shares
    #: What the change of each tensor is multiplied by, () each; empty unless steps are normalised.
    change_scales: ModelArrays


def merge_round(total: RoundSum, current: ModelArrays, generator: torch.Generator) -> MergedRound:
    """Merge encoders inside, decoders across modalities.

    `current` is what the clients started from, `generator` draws the noise of CmDA and FedAtt.

    Raises
    ------
    ValueError
        If no client replied, or decoders do not fit together.
    """
    # In an order that does not depend on who replied first.
    sums = {name: total.modalities[name] for name in sorted(total.modalities)}
    if not sums:
        raise ValueError("no clients to merge")
    config = total.config
    inside = find_rule(config.encoder.merge, "encoder")
    encoders = {
        name: inside.finish(modality.encoder, Setting(current.encoders[name], config, generator))
        for name, modality in sums.items()
    }
    across = find_rule(config.decoder.merge, "decoder")
    decoders = {name: modality.decoder for name, modality in sums.items()}
    weights = {name: modality.steps.weight for name, modality in sums.items()}
    setting = Setting(current.decoder, config, generator, weights)
    decoder, shares = across.merge_modalities(decoders, setting)
    scales = ModelArrays({}, {})
    if config.normalise_steps:
        steps = {name: modality.steps for name, modality in sums.items()}
        everyone = reduce(StepSums.merge, steps.values())
        scales = ModelArrays(
            {
                name: dict.fromkeys(encoders[name], torch.tensor(steps[name].scale()))
                for name in steps
            },
            dict.fromkeys(decoder, torch.tensor(everyone.scale())),
        )
    return MergedRound(ModelArrays(encoders, decoder), shares, scales)
