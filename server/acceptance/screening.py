"""How far an update may move the model, and how sure of itself it may be.

Norms. With D the change of a client, its means minus the arrays that it was sent, the encoder's and
the decoder's apart, what counts of an update is

    D min(1, f min(median, ||sent||) / ||D||),   f = ``strategy.screening.norm_factor``

so that nothing a client sends moves a round further than f times what is usual. The median is that
of the former round, so that an update is compared when it comes: of the modality's clients for
encoders and of all clients for decoders, of three at least. So that clients that send next to
nothing cannot make honest changes look large, that of an encoder is not below the median of all
modalities, by root mean square: the only one where a modality has fewer than three clients. Without
a median, as in round 1, only the arrays that were sent are the measure; these also hold where a
majority conspires. A client with many more items than others moves further by honest training: it
is scaled down too, and never refused for it.

Precisions. Where they keep their scale, the mean eigenvalue of a tensor's precision may be
``strategy.screening.precision_factor`` times the median, formed as that of norms over the clients
that have a precision of that tensor. An update beyond is refused.
"""

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, PrivacyRule, Scale
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.posterior import Layout, Posterior
from common.structures import decoder_structure, encoder_structure
from server.acceptance.validation import RejectedUpdateError

#: So that a multiple stays a number.
_MOST_TIMES = 1e9

#: Clients without whom a median says nothing.
_QUORUM = 3

#: What was usual in a former round: a quantity, or quantity/modality, to its median.
Medians = Mapping[str, float]


class Measure(NamedTuple):
    """One quantity of an update that is compared with the same one of others."""

    #: "encoder" or "decoder" for the change of that part; or whose precision it is.
    quantity: str
    #: Mean eigenvalue of a precision; of a change the root mean square, whatever its size.
    value: float
    #: How many times what is usual it may be; None: any number.
    factor: float | None
    #: Of a change: the root of how many numbers it has, and the norm it started from.
    unit: float = 1.0
    sent: float = math.inf

    def usual(self, medians: Medians, modality: str) -> float:
        """Return what is usual of it; infinite where nothing is known."""
        overall = medians.get(self.quantity, math.inf)
        return min(medians.get(f"{self.quantity}/{modality}", overall) * self.unit, self.sent)


class Screening:
    """Compares and clips the updates of a round.

    `sent` are the trained arrays that clients started from, `medians` what was usual before.
    """

    def __init__(self, sent: ModelArrays, config: Config, medians: Medians) -> None:
        self._config, privacy = config, config.privacy
        self._encoders = {name: _Start.of(arrays) for name, arrays in sent.encoders.items()}
        self._decoder = _Start.of(sent.decoder)
        self._clip = privacy.clip if privacy.name is PrivacyRule.central else None
        self._former = medians
        #: Of updates that were measured and not screened yet.
        self._measures: dict[ClientKey, list[Measure]] = {}
        #: Quantity to modality to its values at all clients.
        self._values: dict[str, dict[str, array[float]]] = {}
        #: Client to how many times the usual a change of its was that was scaled down.
        self.clipped: dict[ClientKey, float] = {}
        #: Whether something was measured that nothing is known of yet, as in the first round.
        self.is_new = False

    def measure(self, uplink: Uplink) -> None:
        """Measure an update; refused or not, it is one of those that say what is usual."""
        # Where changes are clipped what one client sends must not decide whether another counts.
        measures = list(self._measure(uplink)) if self._clip is None else []
        self._measures[uplink.key] = measures
        for measure in measures:
            values = self._values.setdefault(measure.quantity, {})
            values.setdefault(uplink.key.modality, array("d")).append(measure.value)
        self.is_new |= any(measure.quantity not in self._former for measure in measures)

    def learn(self) -> None:
        """Take what was measured so far for usual, where nothing was known."""
        if self.is_new:
            self._former = {**self.medians(), **self._former}
            self.is_new = False

    def screen(self, uplink: Uplink) -> Uplink:
        """Return an update that was measured, its changes scaled down to what they may be.

        Raises
        ------
        RejectedUpdateError
            If a precision is out of proportion.
        """
        scales, worst = {"encoder": 1.0, "decoder": 1.0}, 0.0
        for measure in self._measures.pop(uplink.key):
            usual = measure.usual(self._former, uplink.key.modality)
            factor, value = measure.factor, measure.value * measure.unit
            if factor is None or value <= factor * usual:
                continue
            if measure.quantity not in scales:
                raise RejectedUpdateError(
                    f"the mean eigenvalue of the {measure.quantity} is {value:.3g}, more than "
                    f"{factor:g} times the median {usual:.3g}"
                )
            scales[measure.quantity] = factor * usual / value
            worst = max(worst, min(value / max(usual, 1e-300), _MOST_TIMES))
        if worst:
            self.clipped[uplink.key] = worst
            uplink = self._scaled(uplink, scales["encoder"], scales["decoder"])
        clips = (self._config.strategy.screening.clip_norm, self._clip)
        norms = [norm for norm in clips if norm is not None]
        return self._within(uplink, min(norms)) if norms else uplink

    def medians(self) -> dict[str, float]:
        """Return what the next round's updates are compared with.

        Quantities that fewer than three clients have stay as they were. That of a modality is not
        below that of all. They are sorted, so that equal runs write equal checkpoints.
        """
        medians = dict(self._former)
        for name, by_modality in self._values.items():
            values = np.concatenate(list(by_modality.values()))
            if len(values) < _QUORUM:
                continue
            medians[name] = overall = float(np.median(values))
            for modality, own in by_modality.items() if name != "decoder" else ():
                typical = float(np.median(own)) if len(own) >= _QUORUM else overall
                medians[f"{name}/{modality}"] = max(overall, typical)
        return dict(sorted(medians.items()))

    def _measure(self, uplink: Uplink) -> Iterator[Measure]:
        strategy, screening = self._config.strategy, self._config.strategy.screening
        encoder, encoders = self._encoders[uplink.key.modality], encoder_structure(strategy.encoder)
        decoders = decoder_structure(strategy.decoder)
        for part, posterior, start, structure in (
            ("decoder", uplink.decoder, self._decoder, decoders),
            ("encoder", uplink.encoder, encoder, encoders),
        ):
            sends_change = structure is not None and structure.sends_change
            # FedPA's P (theta - M) has its own unit where it keeps the client's scale.
            comparable = not sends_change or strategy.encoder.scale is Scale.relative
            unit = math.sqrt(len(start.values))
            yield Measure(
                part,
                _norm(posterior.mean - start.values) / unit,
                screening.norm_factor,
                unit,
                start.norm if comparable else math.inf,
            )
        keep_their_scale = {"decoder": uplink.decoder}
        if strategy.encoder.scale is Scale.absolute:
            keep_their_scale["encoder"] = uplink.encoder
        if (factor := screening.precision_factor) is not None:
            for part, posterior in keep_their_scale.items():
                for name, mean in posterior.mean_precisions.items():
                    yield Measure(f"precision of {part} array {name!r}", mean, factor)

    def _within(self, uplink: Uplink, norm: float) -> Uplink:
        """Scale a whole change down to an L2 norm: D min(1, norm / ||D||), precisions as before."""
        starts = self._encoders[uplink.key.modality], self._decoder
        parts = zip((uplink.encoder, uplink.decoder), starts, strict=True)
        whole = math.hypot(*(_norm(_change(part, start)) for part, start in parts))
        # A private client has clipped its own; a hair more, for rounding in float32.
        hair = 1e-6 * math.hypot(*(start.norm for start in starts))
        if self._clip is not None and not whole <= 1.001 * self._clip + hair:
            fault = f"the norm of its change is {whole:.3g}, expected at most privacy.clip="
            raise RejectedUpdateError(f"{fault}{self._clip:g}")
        return uplink if whole <= norm else self._scaled(uplink, norm / whole, norm / whole)

    def _scaled(self, uplink: Uplink, encoder: float, decoder: float) -> Uplink:
        """Multiply the changes of both parts; precisions stay."""
        return replace(
            uplink,
            encoder=_moved(uplink.encoder, self._encoders[uplink.key.modality], encoder),
            decoder=_moved(uplink.decoder, self._decoder, decoder),
        )


class _Start(NamedTuple):
    """One part of the model that was sent, (P,) in the order of updates, and its L2 norm."""

    values: Tensor
    norm: float

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "_Start":
        values = Layout.of(arrays).join(arrays)
        return cls(values, _norm(values))


def _norm(values: Tensor) -> float:
    # A third of the time of `torch.linalg.vector_norm` in float64.
    exact = values.double()
    return math.sqrt(torch.dot(exact, exact))


def _change(part: Posterior, start: _Start) -> Tensor:
    """Return (P,) float64, how far the mean is from where it started."""
    return part.mean.double() - start.values.double()


def _moved(part: Posterior, start: _Start, scale: float) -> Posterior:
    if scale == 1:
        return part
    return part.moved((start.values.double() + scale * _change(part, start)).to(part.mean.dtype))
