"""How far an update may move the model, and how sure of itself it may be.

Norms. With D the change of a client, its means minus the arrays that it was sent, the encoder's and
the decoder's apart, an update is refused where

    ||D|| > max(reach, f min(median, ||sent||)),   f = ``strategy.screening.norm_factor``

The median is that of the former round, so that an update is compared when it comes: of the
modality's clients for encoders and of all clients for decoders, of three at least. So that clients
that send next to nothing cannot make honest changes look large, that of an encoder is not below the
median of all modalities, by root mean square: the only one where a modality has fewer than three
clients. Without a median, as in round 1, only the arrays that were sent are the measure; these also
hold where a majority conspires.

``reach`` is how far local training can move at all, and is never refused: a step of Adam moves a
weight by at most lr (1 - b1) / sqrt(1 - b2) (Kingma and Ba 2015, section 2.1), one of SGD moves all
together by lr times the largest gradient. So clients with many more steps than the others pass.

Precisions. Where they keep their scale, the mean eigenvalue of a tensor's precision may be
``strategy.screening.precision_factor`` times the median, formed as that of norms over the clients
that have a precision of that tensor.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, Optimizer, PrivacyRule, Sampler, Scale
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.posterior import Layout
from common.structures import decoder_structure, encoder_structure
from server.acceptance.validation import RejectedUpdateError

#: (1 - b1) / sqrt(1 - b2) with torch's .9 and .999.
_ADAM_STEP = 0.1 / math.sqrt(0.001)

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
    #: Of a change: the root of how many numbers it has, the norm it started from, what is in reach.
    unit: float = 1.0
    sent: float = math.inf
    reach: float = 0.0

    def fault(self, medians: Medians, modality: str) -> str | None:
        """Say why it is out of proportion to the former round's; None if it is not."""
        if self.factor is None:
            return None
        value = self.value * self.unit
        overall = medians.get(self.quantity, math.inf)
        usual = medians.get(f"{self.quantity}/{modality}", overall) * self.unit
        if value <= max(self.reach, self.factor * min(usual, self.sent)):
            return None
        what = f"mean eigenvalue of the {self.quantity}"
        if self.quantity in ("encoder", "decoder"):
            what = f"norm of its {self.quantity}'s change"
        bound = f"median {usual:.3g}" if usual <= self.sent else f"{self.sent:.3g} that was sent"
        return f"the {what} is {value:.3g}, more than {self.factor:g} times the {bound}"


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
        self._measures: dict[ClientKey, list[Measure]] = {}
        #: Whether something was measured that nothing is known of yet, as in the first round.
        self.is_new = False

    def measure(self, uplink: Uplink) -> None:
        """Measure an update; refused or not, it is one of those that say what is usual."""
        # Where changes are clipped what one client sends must not decide whether another counts.
        measures = list(self._measure(uplink)) if self._clip is None else []
        self._measures[uplink.key] = measures
        self.is_new |= any(measure.quantity not in self._former for measure in measures)

    def learn(self) -> None:
        """Take what was measured so far for usual, where nothing was known."""
        if self.is_new:
            self._former = {**self.medians(), **self._former}
            self.is_new = False

    def screen(self, uplink: Uplink) -> Uplink:
        """Return an update that was measured, clipped where that is asked for.

        Raises
        ------
        RejectedUpdateError
            If its change, or a precision, is out of proportion.
        """
        for measure in self._measures[uplink.key]:
            if fault := measure.fault(self._former, uplink.key.modality):
                raise RejectedUpdateError(fault)
        clips = (self._config.strategy.screening.clip_norm, self._clip)
        norms = [norm for norm in clips if norm is not None]
        return self._clipped(uplink, min(norms)) if norms else uplink

    def medians(self) -> dict[str, float]:
        """Return what the next round's updates are compared with.

        Quantities that fewer than three clients have stay as they were. That of a modality is not
        below that of all. They are sorted, so that equal runs write equal checkpoints.
        """
        medians = dict(self._former)
        values: dict[str, dict[ClientKey, float]] = defaultdict(dict)
        for key, measures in self._measures.items():
            for measure in measures:
                values[measure.quantity][key] = measure.value
        for name, by_client in values.items():
            if len(by_client) < _QUORUM:
                continue
            medians[name] = overall = float(np.median(list(by_client.values())))
            for modality in {key.modality for key in by_client} if name != "decoder" else ():
                own = [value for key, value in by_client.items() if key.modality == modality]
                typical = float(np.median(own)) if len(own) >= _QUORUM else overall
                medians[f"{name}/{modality}"] = max(overall, typical)
        return dict(sorted(medians.items()))

    def _measure(self, uplink: Uplink) -> Iterator[Measure]:
        strategy, screening = self._config.strategy, self._config.strategy.screening
        encoder, encoders = self._encoders[uplink.key.modality], encoder_structure(strategy.encoder)
        decoders = decoder_structure(strategy.decoder)
        sampled = strategy.sampler.name in (Sampler.sgld, Sampler.sghmc)
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
                0.0 if sampled or sends_change else _reach(self._config, uplink.steps, start),
            )
        keep_their_scale = {"decoder": uplink.decoder}
        if strategy.encoder.scale is Scale.absolute:
            keep_their_scale["encoder"] = uplink.encoder
        if (factor := screening.precision_factor) is not None:
            for part, posterior in keep_their_scale.items():
                for name, gaussian in posterior.precise.items():
                    quantity = f"precision of {part} array {name!r}"
                    yield Measure(quantity, gaussian.mean_precision(), factor)

    def _clipped(self, uplink: Uplink, norm: float) -> Uplink:
        """Scale a whole change down to an L2 norm: D min(1, norm / ||D||), precisions as before."""
        parts = uplink.encoder, uplink.decoder
        starts = self._encoders[uplink.key.modality], self._decoder
        sent = [start.values.double() for start in starts]
        changes = [part.mean.double() - begun for part, begun in zip(parts, sent, strict=True)]
        whole = math.hypot(*map(_norm, changes))
        # A private client has clipped its own; a hair more, for rounding in float32.
        hair = 1e-6 * math.hypot(*(start.norm for start in starts))
        if self._clip is not None and not whole <= 1.001 * self._clip + hair:
            fault = f"the norm of its change is {whole:.3g}, expected at most privacy.clip="
            raise RejectedUpdateError(f"{fault}{self._clip:g}")
        if whole <= norm:
            return uplink
        encoder, decoder = (
            part.moved((begun + norm / whole * change).to(part.mean.dtype))
            for part, begun, change in zip(parts, sent, changes, strict=True)
        )
        return replace(uplink, encoder=encoder, decoder=decoder)


class _Start(NamedTuple):
    """One part of the model that was sent, (P,) in the order of updates, and its L2 norm."""

    values: Tensor
    norm: float

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "_Start":
        values = Layout.of(arrays).join(arrays)
        return cls(values, _norm(values))


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _reach(config: Config, steps: int, start: _Start) -> float:
    """Return the largest norm that local training can give a change."""
    client = config.client
    moved = client.lr * steps
    if client.optimizer is Optimizer.sgd:
        moved *= client.max_grad_norm
    else:
        moved *= _ADAM_STEP * math.sqrt(len(start.values))
    # Weights decay towards zero besides.
    return moved + client.lr * client.weight_decay * steps * (start.norm + moved)
