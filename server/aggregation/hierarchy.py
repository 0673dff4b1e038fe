"""The hierarchy: PbEA inside each modality, then CmDA across modalities.

A round is one `RoundSum`: add every client's `Uplink`, in any order and grouping, then
`merge_round`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.config import DecoderMerge, StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import Parts
from server.aggregation.average import WeightedSum
from server.aggregation.cmda import merge_decoders
from server.aggregation.pbea import PosteriorSum


@dataclass(frozen=True)
class ModalitySum:
    """What the clients of one modality add up to.

    Attributes
    ----------
    encoder, decoder
        Product of the encoders' posteriors, weighted sum of the decoders.
    loss
        Sum of n_i times the train loss.
    evidence
        Sum of the clients' evidence, None for no client.
    examples, clients
        Their numbers.
    """

    encoder: PosteriorSum = field(default_factory=PosteriorSum)
    decoder: WeightedSum = field(default_factory=WeightedSum)
    loss: float = 0.0
    evidence: Tensor | None = None
    examples: int = 0
    clients: int = 0

    def add(self, uplink: Uplink) -> "ModalitySum":
        """Add one client."""
        return self.merge(
            ModalitySum(
                PosteriorSum().add(uplink.encoder, uplink.examples),
                WeightedSum().add(uplink.decoder, uplink.examples),
                uplink.examples * uplink.train_loss,
                uplink.evidence,
                uplink.examples,
                1,
            )
        )

    def merge(self, other: "ModalitySum") -> "ModalitySum":
        """Return the sum of both."""
        return ModalitySum(
            self.encoder.merge(other.encoder),
            self.decoder.merge(other.decoder),
            self.loss + other.loss,
            _add(self.evidence, other.evidence),
            self.examples + other.examples,
            self.clients + other.clients,
        )


@dataclass(frozen=True)
class RoundSum:
    """What the clients of a round add up to, by modality."""

    modalities: Mapping[str, ModalitySum] = field(default_factory=dict)

    def add(self, uplink: Uplink) -> "RoundSum":
        """Add one client."""
        return self.merge(RoundSum({uplink.key.modality: ModalitySum().add(uplink)}))

    def merge(self, other: "RoundSum") -> "RoundSum":
        """Return the sum of both."""
        merged = dict(self.modalities)
        for modality, added in other.modalities.items():
            merged[modality] = merged.get(modality, ModalitySum()).merge(added)
        return replace(self, modalities=merged)


@dataclass(frozen=True)
class MergedRound:
    """The new global model.

    Attributes
    ----------
    parts
        Encoders of the modalities that replied, and the decoder; trained tensors only.
    decoder_weights
        Layer to modality to its share in the decoder.
    """

    parts: Parts
    decoder_weights: Mapping[str, Mapping[str, float]]


def merge_round(total: RoundSum, config: StrategyConfig, generator: torch.Generator) -> MergedRound:
    """Merge encoders inside, decoders across modalities.

    Parameters
    ----------
    total
        The round's sum, in which at least one client replied.
    config
        How decoders are merged. How encoders are is in what the clients sent: without a precision
        PbEA is the average.
    generator
        Draws CmDA's noise.

    Raises
    ------
    ValueError
        If no client replied.
    """
    # In an order that does not depend on who replied first.
    sums = {name: total.modalities[name] for name in sorted(total.modalities)}
    encoders = {name: modality.encoder.finalize() for name, modality in sums.items()}
    if config.decoder.merge is DecoderMerge.cmda:
        averages = {name: modality.decoder.finalize() for name, modality in sums.items()}
        decoder, weights = merge_decoders(averages, config.decoder, generator)
    else:
        decoder, weights = _average_decoders(sums)
    return MergedRound(Parts(encoders, decoder), weights)


def _average_decoders(
    sums: Mapping[str, ModalitySum],
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Average all clients' decoders by examples, whatever their modality."""
    everyone = WeightedSum()
    for modality in sums.values():
        everyone = everyone.merge(modality.decoder)
    decoder = everyone.finalize()
    shares = {name: modality.examples / everyone.weight for name, modality in sums.items()}
    return decoder, {layer: dict(shares) for layer in decoder}


def _add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
