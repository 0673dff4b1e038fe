"""How far an update may move the model, and how sure of itself it may be.

Norms. With D the change of a client, its means minus the arrays that it was sent, the encoder's and
the decoder's apart, an update is refused where

    ||D|| > max(reach, min(f median, f ||sent||)),   f = ``strategy.screening.norm_factor``

The median is that of the former round, so that an update is compared when it comes: of the
modality's clients for encoders and of all clients for decoders, of three at least. So that clients
that send next to nothing cannot make honest changes look large, that of an encoder is not below the
median of all modalities, by root mean square: the only one where a modality has fewer than three
clients. A round of fewer than three in all leaves the medians as they were. Where there is none, as
in round 1, only the arrays that were sent are the measure; these also hold where a majority
conspires.

``reach`` is how far local training can move at all, and is never refused: a step of Adam moves a
weight by at most lr (1 - b1) / sqrt(1 - b2) (Kingma and Ba 2015, section 2.1), one of SGD moves all
together by lr times the largest gradient. So clients with many more steps than the others pass.

Precisions. Where they keep their scale, the mean eigenvalue of a tensor's precision may be
``strategy.screening.precision_factor`` times the median, formed as that of norms over the clients
that have a precision of that tensor.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, Optimizer, Sampler, Scale
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.posterior import Layout, Posterior
from common.structures import Structure, decoder_structure, encoder_structure

#: (1 - b1) / sqrt(1 - b2) with torch's .9 and .999.
_ADAM_STEP = 0.1 / math.sqrt(0.001)

#: Clients without whom a median says nothing.
_QUORUM = 3

#: What was usual in a former round: a quantity, or quantity/modality, to its median.
Medians = Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """The change of one part of a client's model.

    Attributes
    ----------
    part
        "encoder" or "decoder".
    norm
        L2.
    sent
        L2 norm of what the client was sent; infinite where the change is not in its unit.
    size
        Numbers in it.
    reach
        The largest norm that local training can give; 0 where that is unknown.
    """

    part: str
    norm: float
    sent: float
    size: int
    reach: float

    @property
    def rms(self) -> float:
        """Root mean square, which compares encoders of different sizes."""
        return self.norm / math.sqrt(self.size)


@dataclass(frozen=True)
class Measures:
    """What is compared of an update, without its arrays.

    Attributes
    ----------
    key
        Whose it is.
    encoder, decoder
        How far they moved.
    precisions
        Quantity to the mean eigenvalue of a tensor's precision, where these are compared.
    """

    key: ClientKey
    encoder: Change
    decoder: Change
    precisions: Mapping[str, float]


class Screening:
    """Measures the updates of a round, and compares them with what is usual.

    Parameters
    ----------
    sent
        The trained arrays that clients started from.
    config
        The run's configuration.
    """

    def __init__(self, sent: ModelArrays, config: Config) -> None:
        self._config = config
        self._encoders = {name: Start.of(arrays) for name, arrays in sent.encoders.items()}
        self._decoder = Start.of(sent.decoder)

    def measure(self, uplink: Uplink) -> Measures:
        """Measure an update that is sound by itself."""
        start = self._encoders[uplink.key.modality]
        strategy = self._config.strategy
        encoder = encoder_structure(strategy.encoder)
        decoder = decoder_structure(strategy.decoder)
        return Measures(
            uplink.key,
            self._change("encoder", uplink.encoder, start, uplink.steps, encoder),
            self._change("decoder", uplink.decoder, self._decoder, uplink.steps, decoder),
            {
                f"precision of {part} array {name!r}": gaussian.mean_precision()
                for part, posterior in (("decoder", uplink.decoder), ("encoder", uplink.encoder))
                if self._compares_precisions(part)
                for name, gaussian in posterior.precise.items()
            },
        )

    def outlier(self, measures: Measures, medians: Medians) -> str | None:
        """Say why an update is out of proportion to the former round's; None if it is not."""
        rules, modality = self._config.strategy.screening, measures.key.modality
        if (factor := rules.norm_factor) is not None:
            for change in (measures.decoder, measures.encoder):
                usual = usual_of(change.part, modality, medians) * change.size**0.5
                bound, measure = norm_bound(change, usual, factor)
                if change.norm > bound:
                    return (
                        f"the norm of its {change.part}'s change is {change.norm:.3g}, more than "
                        f"{factor:g} times the {measure}"
                    )
        if (factor := rules.precision_factor) is not None:
            for name, scale in measures.precisions.items():
                usual = usual_of(name, modality, medians)
                if scale > factor * usual:
                    return (
                        f"the mean eigenvalue of the {name} is {scale:.3g}, more than {factor:g} "
                        f"times the median {usual:.3g}"
                    )
        return None

    def clipped(self, uplink: Uplink, norm: float) -> Uplink:
        """Scale a whole change down to a norm: D min(1, norm / ||D||), precisions as they are.

        Parameters
        ----------
        uplink
            An update that is sound by itself.
        norm
            The largest L2 norm, of encoder and decoder together.
        """
        starts = (self._encoders[uplink.key.modality].values, self._decoder.values)
        parts = (uplink.encoder, uplink.decoder)
        changes = [
            part.mean.double() - start.double() for part, start in zip(parts, starts, strict=True)
        ]
        whole = math.hypot(*map(_norm, changes))
        if whole <= norm:
            return uplink
        encoder, decoder = (
            part.moved((start.double() + norm / whole * change).to(part.mean.dtype))
            for part, start, change in zip(parts, starts, changes, strict=True)
        )
        return replace(uplink, encoder=encoder, decoder=decoder)

    def _change(
        self,
        part: str,
        posterior: Posterior,
        start: "Start",
        steps: int,
        structure: Structure | None,
    ) -> Change:
        sends_change = structure is not None and structure.sends_change
        sampled = self._config.strategy.sampler.name in (Sampler.sgld, Sampler.sghmc)
        # FedPA's P (theta - M) has its own unit where it keeps the client's scale.
        comparable = not sends_change or self._config.strategy.encoder.scale is Scale.relative
        plain = not (sampled or sends_change)
        size = len(start.values)
        return Change(
            part,
            _norm(posterior.mean - start.values),
            start.norm if comparable else math.inf,
            size,
            _reach(self._config, steps, size, start.norm) if plain else 0.0,
        )

    def _compares_precisions(self, part: str) -> bool:
        """Whether the precisions of a part keep their scale, and are compared."""
        if self._config.strategy.screening.precision_factor is None:
            return False
        return part == "decoder" or self._config.strategy.encoder.scale is Scale.absolute


@dataclass(frozen=True)
class Start:
    """One part of the model that was sent: its numbers (P,) float32, and their L2 norm."""

    values: Tensor
    norm: float

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Start":
        """Join the arrays in the order in which updates have them."""
        values = Layout.of(arrays).join(arrays)
        return cls(values, _norm(values))


def norm_bound(change: Change, usual: float, factor: float) -> tuple[float, str]:
    """Return how large the norm of a change may be, and the measure that decides it.

    Parameters
    ----------
    change
        The change.
    usual
        Norm of the former round's median change; infinite where there is none.
    factor
        How many times the measure is allowed.
    """
    measure = min(usual, change.sent)
    words = f"median {usual:.3g}" if usual <= change.sent else f"{measure:.3g} that was sent"
    return max(change.reach, factor * measure), words


def round_medians(measures: Iterable[Measures]) -> dict[str, float]:
    """Return the medians that the next round's updates are compared with.

    Quantities that fewer than three clients have are left out. That of a modality is not below that
    of all.
    """
    figures: dict[str, dict[ClientKey, float]] = defaultdict(dict)
    for each in measures:
        figures["decoder"][each.key] = each.decoder.rms
        figures["encoder"][each.key] = each.encoder.rms
        for name, scale in each.precisions.items():
            figures[name][each.key] = scale
    medians: dict[str, float] = {}
    for name, by_client in figures.items():
        if len(by_client) < _QUORUM:
            continue
        medians[name] = overall = float(np.median(list(by_client.values())))
        for modality in {key.modality for key in by_client} if name != "decoder" else ():
            own = [figure for key, figure in by_client.items() if key.modality == modality]
            typical = float(np.median(own)) if len(own) >= _QUORUM else overall
            medians[f"{name}/{modality}"] = max(overall, typical)
    return medians


def usual_of(name: str, modality: str, medians: Medians) -> float:
    """Return the median of a quantity for a modality's clients; infinite where there is none."""
    return medians.get(f"{name}/{modality}", medians.get(name, math.inf))


def exceeds_clip(measures: Measures, norm: float) -> str | None:
    """Say that a whole change is larger than the client was to clip it to, if it is."""
    whole = math.hypot(measures.encoder.norm, measures.decoder.norm)
    start = math.hypot(measures.encoder.sent, measures.decoder.sent)
    # A hair more, for rounding in float32.
    if whole <= 1.001 * norm + 1e-6 * start:
        return None
    return f"the norm of its change is {whole:.3g}, expected at most privacy.clip={norm:g}"


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _reach(config: Config, steps: int, size: int, start: float) -> float:
    client = config.client
    if client.optimizer is Optimizer.sgd:
        moved = client.lr * steps * client.max_grad_norm
    else:
        moved = _ADAM_STEP * client.lr * steps * size**0.5
    # Weights decay towards zero besides.
    return moved + client.lr * client.weight_decay * steps * (start + moved)
