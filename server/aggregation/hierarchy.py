"""The hierarchy: a rule inside each modality, PbEA say, then one across modalities, CmDA say.

A round is one `RoundSum`: add every client's `Uplink`, in any order and grouping, then
`merge_round`. The rules are those that the configuration names, see `server.aggregation.rules`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from common.config import StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from server.aggregation.client_weights import StepSums
from server.aggregation.rules import Setting, Shares, find_rule


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

    @classmethod
    def of(
        cls, uplink: Uplink, weight: float, trust: float, config: StrategyConfig
    ) -> "ModalitySum":
        """Return one client's sum; see `RoundSum.add`."""
        share = weight / uplink.steps if config.normalise_steps else weight
        return cls(
            find_rule(config.encoder.merge, "encoder").start().add(uplink.encoder, share),
            find_rule(config.decoder.merge, "decoder").start().add(uplink.decoder, share),
            uplink.examples * uplink.train_loss,
            trust * uplink.calibration_sums,
            StepSums().add(weight, uplink.steps),
            uplink.examples,
            1,
        )

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
        counted = float(uplink.examples) if weight is None else weight
        one = ModalitySum.of(uplink, counted, trust, self.config)
        return self.merge(RoundSum(self.config, {uplink.key.modality: one}))

    def merge(self, other: "RoundSum") -> "RoundSum":
        """Return the sum of both."""
        merged = dict(self.modalities)
        for name, added in other.modalities.items():
            merged[name] = merged[name].merge(added) if name in merged else added
        return replace(self, modalities=merged)


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
    decoder, shares = across.across(across, decoders, setting)
    merged = ModelArrays(encoders, decoder)
    return MergedRound(merged, shares, _change_scales(sums, merged, config))


def _change_scales(
    sums: Mapping[str, ModalitySum], merged: ModelArrays, config: StrategyConfig
) -> ModelArrays:
    if not config.normalise_steps:
        return ModelArrays({}, {})
    encoders = {
        name: dict.fromkeys(merged.encoders[name], torch.tensor(modality.steps.scale()))
        for name, modality in sums.items()
    }
    everyone = reduce(StepSums.merge, [modality.steps for modality in sums.values()])
    return ModelArrays(encoders, dict.fromkeys(merged.decoder, torch.tensor(everyone.scale())))
