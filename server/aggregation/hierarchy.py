"""The hierarchy: PbEA inside each modality, then CmDA across modalities.

A round is one `RoundSum`: add every client's `Uplink`, in any order and grouping, then
`merge_round`. Other rules take the place of either by configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from common.config import DecoderMerge, EncoderMerge, StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import Parts
from common.posterior import Posterior
from server.aggregation.client_weights import StepSums
from server.aggregation.cmda import merge_decoders
from server.aggregation.collected import Collected, attend, median, trimmed_mean
from server.aggregation.pbea import PosteriorSum

#: Rules that need every client's arrays at once.
_COLLECTED = {"fedatt", "median", "trimmed_mean"}


@dataclass(frozen=True)
class ModalitySum:
    """What the clients of one modality add up to.

    Attributes
    ----------
    encoder, decoder
        Products of the posteriors; or the clients themselves, for rules that need them.
    loss
        Sum of n_i times the train loss.
    evidence
        Sum of the clients' evidence, None for no client.
    steps
        For the scale of changes per local step.
    examples, clients
        Their numbers.
    """

    encoder: PosteriorSum | Collected
    decoder: PosteriorSum | Collected
    loss: float = 0.0
    evidence: Tensor | None = None
    steps: StepSums = field(default_factory=StepSums)
    examples: int = 0
    clients: int = 0

    @classmethod
    def empty(cls, config: StrategyConfig) -> "ModalitySum":
        """Return the sum of no client."""
        return cls(_empty(config.encoder.merge), _empty(config.decoder.merge))

    def add(
        self, uplink: Uplink, weight: float, trust: float, config: StrategyConfig
    ) -> "ModalitySum":
        """Add one client; see `RoundSum.add`."""
        share = weight / uplink.steps if config.normalise_steps else weight
        return ModalitySum(
            _add_posterior(self.encoder, uplink.encoder, share),
            _add_posterior(self.decoder, uplink.decoder, share),
            self.loss + uplink.examples * uplink.train_loss,
            _add(self.evidence, trust * uplink.evidence),
            self.steps.add(weight, uplink.steps),
            self.examples + uplink.examples,
            self.clients + 1,
        )

    def merge(self, other: "ModalitySum") -> "ModalitySum":
        """Return the sum of both."""
        return ModalitySum(
            _merge(self.encoder, other.encoder),
            _merge(self.decoder, other.decoder),
            self.loss + other.loss,
            _add(self.evidence, other.evidence),
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

        Parameters
        ----------
        uplink
            Its update.
        weight
            What it counts, see `server.aggregation.client_weights`; None: its examples.
        trust
            What its evidence counts.
        """
        counted = float(uplink.examples) if weight is None else weight
        name = uplink.key.modality
        total = self.modalities.get(name) or ModalitySum.empty(self.config)
        added = total.add(uplink, counted, trust, self.config)
        return replace(self, modalities={**self.modalities, name: added})

    def merge(self, other: "RoundSum") -> "RoundSum":
        """Return the sum of both."""
        merged = dict(self.modalities)
        for name, added in other.modalities.items():
            merged[name] = merged[name].merge(added) if name in merged else added
        return replace(self, modalities=merged)


@dataclass(frozen=True)
class MergedRound:
    """The new global model.

    Attributes
    ----------
    parts
        Encoders of the modalities that replied, and the decoder; trained tensors only.
    decoder_weights
        Layer to modality to its share in the decoder; empty where clients have none.
    change_scales
        What the change of each tensor is to be multiplied by, () each; see `StepSums`. Empty unless
        steps are normalised.
    """

    parts: Parts
    decoder_weights: Mapping[str, Mapping[str, float]]
    change_scales: Parts


def merge_round(total: RoundSum, current: Parts, generator: torch.Generator) -> MergedRound:
    """Merge encoders inside, decoders across modalities.

    Parameters
    ----------
    total
        The round's sum, in which at least one client replied.
    current
        What the clients started from; used by attention over clients alone.
    generator
        Draws the noise of CmDA and FedAtt.

    Raises
    ------
    ValueError
        If no client replied.
    """
    # In an order that does not depend on who replied first.
    sums = {name: total.modalities[name] for name in sorted(total.modalities)}
    if not sums:
        raise ValueError("no clients to merge")
    config = total.config
    encoders = {
        name: _finalize(
            each.encoder, config.encoder.merge, current.encoders[name], config, generator
        )
        for name, each in sums.items()
    }
    decoder, weights = _merge_decoders(sums, current.decoder, config, generator)
    merged = Parts(encoders, decoder)
    return MergedRound(merged, weights, _change_scales(sums, merged, config))


def _change_scales(sums: Mapping[str, ModalitySum], merged: Parts, config: StrategyConfig) -> Parts:
    if not config.normalise_steps:
        return Parts({}, {})
    encoders = {
        name: dict.fromkeys(merged.encoders[name], torch.tensor(each.steps.scale()))
        for name, each in sums.items()
    }
    everyone = reduce(StepSums.merge, [each.steps for each in sums.values()])
    return Parts(encoders, dict.fromkeys(merged.decoder, torch.tensor(everyone.scale())))


def _merge_decoders(
    sums: Mapping[str, ModalitySum],
    current: Mapping[str, Tensor],
    config: StrategyConfig,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    rule = config.decoder.merge
    if rule is DecoderMerge.cmda:
        averages = {}
        for name, each in sums.items():
            average = _finalize(each.decoder, rule, current, config, generator)
            # In the model's order, in which noise is drawn, whatever the order on the wire.
            averages[name] = {layer: average[layer] for layer in current}
        return merge_decoders(averages, config.decoder, generator)
    everyone = reduce(_merge, [each.decoder for each in sums.values()])
    decoder = _finalize(everyone, rule, current, config, generator)
    if rule not in (DecoderMerge.average, DecoderMerge.posterior):
        return decoder, {}
    weight = sum(each.steps.weight for each in sums.values())
    shares = {name: each.steps.weight / weight for name, each in sums.items()}
    return decoder, {layer: dict(shares) for layer in decoder}


def _empty(rule: EncoderMerge | DecoderMerge) -> PosteriorSum | Collected:
    return Collected() if rule in _COLLECTED else PosteriorSum()


def _add_posterior(
    total: PosteriorSum | Collected, posterior: Posterior, weight: float
) -> PosteriorSum | Collected:
    if isinstance(total, Collected):
        return total.add({name: each.mean for name, each in posterior.items()}, weight)
    return total.add(posterior, weight)


def _finalize(
    total: PosteriorSum | Collected,
    rule: EncoderMerge | DecoderMerge,
    current: Mapping[str, Tensor],
    config: StrategyConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    if not isinstance(total, Collected):
        return total.finalize()
    match str(rule):
        case "median":
            return median(total)
        case "trimmed_mean":
            return trimmed_mean(total, config.trim)
        case _:
            return attend(total, current, config.fedatt, generator)


def _merge(
    left: PosteriorSum | Collected, right: PosteriorSum | Collected
) -> PosteriorSum | Collected:
    """Return the sum of two of a kind."""
    if isinstance(left, Collected):
        assert isinstance(right, Collected)
        return left.merge(right)
    assert isinstance(right, PosteriorSum)
    return left.merge(right)


def _add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
