"""What a round's updates say of each other: none may be out of all proportion.

Norms. With D the change of a client, its means minus the arrays that it was sent, the encoder's and
the decoder's apart, an update is refused where

    ||D|| > max(reach, min(f median, f ||sent||)),   f = ``strategy.screening.norm_factor``

The median is that of the modality's clients for encoders and of all clients for decoders, of three
at least. So that those who send next to nothing cannot make honest changes look large, that of an
encoder is not below the median of all modalities, by root mean square: the only one where a
modality has fewer than three clients. With fewer than three in all, no median means anything, and
only the arrays that were sent are the measure; these also hold where a majority conspires.

``reach`` is how far local training can move at all, and is never refused: a step of Adam moves a
weight by at most lr (1 - b1) / sqrt(1 - b2) (Kingma and Ba 2015, section 2.1), one of SGD moves all
together by lr times the largest gradient. So clients with many more steps than the others pass.

Precisions. Where they keep their scale, the mean eigenvalue of a tensor's precision may be
``strategy.screening.precision_factor`` times the median, formed as that of norms over the clients
that have a tensor of that name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import (
    Config,
    Optimizer,
    Sampler,
    Scale,
    ScreeningConfig,
    Structure,
)
from common.messages import Uplink
from common.model.ha_fedformer import Parts
from common.posterior import (
    Gaussian,
    Layout,
    Means,
    Posterior,
    decoder_structure,
    encoder_structure,
)
from server.acceptance.validation import mean_precision

#: (1 - b1) / sqrt(1 - b2) with torch's .9 and .999.
_ADAM_STEP = 0.1 / math.sqrt(0.001)

#: Clients without whom a median says nothing.
_QUORUM = 3


@dataclass(frozen=True)
class _Change:
    """The change of one part of a client's model.

    Attributes
    ----------
    norm
        L2.
    sent
        L2 norm of what the client was sent.
    size
        Numbers in it.
    reach
        The largest norm that local training can give; 0 where there is no telling.
    """

    norm: float
    sent: float
    size: int
    reach: float


@dataclass(frozen=True)
class Measures:
    """What is compared of an update, whose arrays need not stay for it.

    Attributes
    ----------
    key
        Whose it is.
    encoder, decoder
        How far they moved.
    precisions
        Part and array to the mean eigenvalue of its precision, where these are compared.
    """

    key: ClientKey
    encoder: _Change
    decoder: _Change
    precisions: Mapping[tuple[str, str], float]


class Screening:
    """Compares the updates of a round.

    Parameters
    ----------
    sent
        The trained arrays that clients started from.
    config
        The run's configuration.
    """

    def __init__(self, sent: Parts, config: Config) -> None:
        self._config = config
        self._encoders = {name: _Start.of(arrays) for name, arrays in sent.encoders.items()}
        self._decoder = _Start.of(sent.decoder)

    def measure(self, uplink: Uplink) -> Measures:
        """Measure an update that is right by itself."""
        start = self._encoders[uplink.key.modality]
        return Measures(
            uplink.key,
            self._change(uplink.encoder, start, uplink.steps, part="encoder"),
            self._change(uplink.decoder, self._decoder, uplink.steps, part="decoder"),
            {
                (part, name): mean_precision(gaussian)
                for part, posterior in (("decoder", uplink.decoder), ("encoder", uplink.encoder))
                if self._compares_precisions(part) and not isinstance(posterior, Means)
                for name, gaussian in posterior.items()
                if gaussian.precision is not None
            },
        )

    def odd(self, measures: Sequence[Measures]) -> dict[ClientKey, str]:
        """Return the clients that are to be refused, each with the reason."""
        rules = self._config.strategy.screening
        refused: dict[ClientKey, str] = {}
        if rules.norm_factor is not None:
            refused |= self._large_changes(measures, rules.norm_factor)
        if rules.precision_factor is not None:
            refused |= _large_precisions(measures, rules.precision_factor)
        return refused

    def _change(self, posterior: Posterior, start: "_Start", steps: int, *, part: str) -> _Change:
        config = self._config
        plain = _trained_plainly(config, part)
        return _Change(
            norm=start.distance(posterior),
            sent=start.norm,
            size=len(start.values),
            reach=_reach(config, steps, len(start.values), start.norm) if plain else 0.0,
        )

    def _compares_precisions(self, part: str) -> bool:
        """Whether the precisions of a part keep their scale, and are compared."""
        if self._config.strategy.screening.precision_factor is None:
            return False
        return part == "decoder" or self._config.strategy.encoder.scale is Scale.absolute

    def _large_changes(self, measures: Sequence[Measures], factor: float) -> dict[ClientKey, str]:
        everyone = "all clients"
        refused: dict[ClientKey, str] = {}
        for part in ("decoder", "encoder"):
            changes: dict[ClientKey, _Change] = {each.key: getattr(each, part) for each in measures}
            # The root mean square compares encoders of different sizes.
            figures = {key: change.norm / change.size**0.5 for key, change in changes.items()}
            groups = {key: key.modality if part == "encoder" else everyone for key in changes}
            medians = _medians(figures, groups)
            for key, change in changes.items():
                usual = medians.get(groups[key], math.inf) * change.size**0.5
                measure = change.sent if _bounded(self._config, part) else math.inf
                if change.norm > max(change.reach, factor * min(usual, measure)):
                    than = (
                        f"median {usual:.3g}"
                        if usual <= measure
                        else f"{measure:.3g} that was sent"
                    )
                    refused[key] = (
                        f"the norm of its {part}'s change is {change.norm:.3g}, more than "
                        f"{factor:g} times the {than}"
                    )
        return refused


@dataclass(frozen=True)
class _Start:
    """One part of the model that was sent, as one vector.

    Attributes
    ----------
    layout
        Of its arrays.
    values
        All their numbers, float32.
    norm
        L2.
    """

    layout: Layout
    values: Tensor
    norm: float

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "_Start":
        layout = Layout.of(arrays)
        values = torch.cat([arrays[name].reshape(-1) for name in layout.names])
        return cls(layout, values, _norm(values))

    def distance(self, posterior: Posterior) -> float:
        """Return how far from here a posterior's means are."""
        if isinstance(posterior, Means) and posterior.layout == self.layout:
            return _norm(posterior.vector - self.values)
        means = torch.cat([posterior[name].mean.reshape(-1) for name in self.layout.names])
        return _norm(means - self.values)


def _medians(
    figures: Mapping[ClientKey, float], groups: Mapping[ClientKey, str]
) -> dict[str, float]:
    """Return each group's median, not below that of all; empty where there are too few."""
    if len(figures) < _QUORUM:
        return {}
    overall = float(np.median(list(figures.values())))
    medians = {}
    for group in set(groups.values()):
        own = [figure for key, figure in figures.items() if groups[key] == group]
        medians[group] = max(overall, float(np.median(own)) if len(own) >= _QUORUM else 0.0)
    return medians


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _structure(config: Config, part: str) -> Structure | None:
    strategy = config.strategy
    if part == "encoder":
        return encoder_structure(strategy.encoder)
    return decoder_structure(strategy.decoder)


def _trained_plainly(config: Config, part: str) -> bool:
    """Whether what is sent is where the optimiser went, or a mean of that."""
    sampled = config.strategy.sampler.name in (Sampler.sgld, Sampler.sghmc)
    return not sampled and _structure(config, part) is not Structure.low_rank


def _bounded(config: Config, part: str) -> bool:
    """Whether a change is in the weights' unit: FedPA's P (theta - M) is not, with its scale."""
    low_rank = _structure(config, part) is Structure.low_rank
    return not low_rank or config.strategy.encoder.scale is Scale.relative


def _reach(config: Config, steps: int, size: int, start: float) -> float:
    client = config.client
    if client.optimizer is Optimizer.sgd:
        moved = client.lr * steps * client.max_grad_norm
    else:
        moved = _ADAM_STEP * client.lr * steps * size**0.5
    # Weights decay towards zero besides.
    return moved + client.lr * client.weight_decay * steps * (start + moved)


def _large_precisions(measures: Sequence[Measures], factor: float) -> dict[ClientKey, str]:
    by_array: dict[tuple[str, str], dict[ClientKey, float]] = {}
    for each in measures:
        for array, scale in each.precisions.items():
            by_array.setdefault(array, {})[each.key] = scale
    refused: dict[ClientKey, str] = {}
    for (part, name), scales in by_array.items():
        medians = _medians(scales, {key: key.modality for key in scales})
        for key, scale in scales.items():
            usual = medians.get(key.modality, math.inf)
            if scale > factor * usual:
                refused[key] = (
                    f"{part} array {name!r}: the mean eigenvalue of its precision is "
                    f"{scale:.3g}, more than {factor:g} times the median {usual:.3g}"
                )
    return refused


def overstep(measures: Sequence[Measures], norm: float) -> dict[ClientKey, str]:
    """Return the clients whose whole change is larger than they were to clip it to."""
    refused = {}
    for each in measures:
        whole = math.hypot(each.encoder.norm, each.decoder.norm)
        start = math.hypot(each.encoder.sent, each.decoder.sent)
        # A hair more, for rounding in float32.
        if whole > 1.001 * norm + 1e-6 * start:
            refused[each.key] = (
                f"the norm of its change is {whole:.3g}, expected at most privacy.clip={norm:g}"
            )
    return refused


def clip_update(uplink: Uplink, sent: Parts, norm: float) -> Uplink:
    """Scale a client's whole change down to a norm: D min(1, norm / ||D||), precisions as they are.

    Parameters
    ----------
    uplink
        Its update.
    sent
        The model that it started from.
    norm
        The largest L2 norm, of encoder and decoder together.
    """
    starts = (sent.encoders[uplink.key.modality], sent.decoder)
    changes = [
        {name: gaussian.mean.double() - start[name].double() for name, gaussian in part.items()}
        for part, start in zip((uplink.encoder, uplink.decoder), starts, strict=True)
    ]
    whole = math.hypot(*(_norm(array) for part in changes for array in part.values()))
    if whole <= norm:
        return uplink
    encoder, decoder = (
        _scaled(part, start, change, norm / whole)
        for part, start, change in zip(
            (uplink.encoder, uplink.decoder), starts, changes, strict=True
        )
    )
    return replace(uplink, encoder=encoder, decoder=decoder)


def _scaled(
    posterior: Posterior,
    sent: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    factor: float,
) -> dict[str, Gaussian]:
    return {
        name: replace(
            gaussian,
            mean=(sent[name].double() + factor * change[name]).to(gaussian.mean.dtype),
        )
        for name, gaussian in posterior.items()
    }


def left_out(faults: int, rules: ScreeningConfig) -> bool:
    """Whether a node with so many refused updates takes no further part."""
    return rules.max_faults is not None and faults >= rules.max_faults
