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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
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
from common.posterior import Gaussian, Posterior, decoder_structure, encoder_structure
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


def screen(uplinks: Sequence[Uplink], sent: Parts, config: Config) -> dict[ClientKey, str]:
    """Return the clients that are to be refused, each with the reason.

    Parameters
    ----------
    uplinks
        That are right by themselves.
    sent
        The model that they started from.
    config
        The run's configuration.
    """
    rules = config.strategy.screening
    refused: dict[ClientKey, str] = {}
    if rules.norm_factor is not None:
        refused |= _large_changes(uplinks, sent, config, rules.norm_factor)
    if rules.precision_factor is not None:
        refused |= _large_precisions(uplinks, config, rules.precision_factor)
    return refused


def _large_changes(
    uplinks: Sequence[Uplink], sent: Parts, config: Config, factor: float
) -> dict[ClientKey, str]:
    encoders = {
        uplink.key: _change(
            uplink.encoder, sent.encoders[uplink.key.modality], config, uplink.steps, part="encoder"
        )
        for uplink in uplinks
    }
    decoders = {
        uplink.key: _change(uplink.decoder, sent.decoder, config, uplink.steps, part="decoder")
        for uplink in uplinks
    }
    everyone = "all clients"
    refused: dict[ClientKey, str] = {}
    for part, changes in (("decoder", decoders), ("encoder", encoders)):
        # The root mean square compares encoders of different sizes.
        figures = {key: change.norm / change.size**0.5 for key, change in changes.items()}
        groups = {key: key.modality if part == "encoder" else everyone for key in changes}
        medians = _medians(figures, groups)
        for key, change in changes.items():
            usual = medians.get(groups[key], math.inf) * change.size**0.5
            measure = change.sent if _bounded(config, part) else math.inf
            if change.norm > max(change.reach, factor * min(usual, measure)):
                than = f"median {usual:.3g}" if usual <= measure else f"{measure:.3g} that was sent"
                refused[key] = (
                    f"the norm of its {part}'s change is {change.norm:.3g}, more than {factor:g} "
                    f"times the {than}"
                )
    return refused


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


def _change(
    posterior: Posterior, sent: Mapping[str, Tensor], config: Config, steps: int, *, part: str
) -> _Change:
    size = sum(gaussian.mean.numel() for gaussian in posterior.values())
    start = _norm(sent[name] for name in posterior)
    reach = _reach(config, steps, size, start) if _trained_plainly(config, part) else 0.0
    return _Change(_norm(_difference(posterior, sent).values()), start, size, reach)


def _difference(posterior: Posterior, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: gaussian.mean.double() - sent[name].double() for name, gaussian in posterior.items()
    }


def _norm(arrays: Iterable[Tensor]) -> float:
    return math.sqrt(sum((array.double() ** 2).sum().item() for array in arrays))


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


def _large_precisions(
    uplinks: Sequence[Uplink], config: Config, factor: float
) -> dict[ClientKey, str]:
    refused: dict[ClientKey, str] = {}
    for part in ("decoder", "encoder"):
        if part == "encoder" and config.strategy.encoder.scale is Scale.relative:
            continue
        for name, scales in _scales_by_name(uplinks, part).items():
            medians = _medians(scales, {key: key.modality for key in scales})
            for key, scale in scales.items():
                usual = medians.get(key.modality, math.inf)
                if scale > factor * usual:
                    refused[key] = (
                        f"{part} array {name!r}: the mean eigenvalue of its precision is "
                        f"{scale:.3g}, more than {factor:g} times the median {usual:.3g}"
                    )
    return refused


def _scales_by_name(uplinks: Sequence[Uplink], part: str) -> dict[str, dict[ClientKey, float]]:
    found: dict[str, dict[ClientKey, float]] = {}
    for uplink in uplinks:
        posterior = uplink.encoder if part == "encoder" else uplink.decoder
        for name, gaussian in posterior.items():
            if gaussian.precision is not None:
                found.setdefault(name, {})[uplink.key] = mean_precision(gaussian)
    return found


def overstep(uplinks: Sequence[Uplink], sent: Parts, norm: float) -> dict[ClientKey, str]:
    """Return the clients whose whole change is larger than they were to clip it to."""
    refused = {}
    for uplink in uplinks:
        whole = _norm(array for part in _changes(uplink, sent) for array in part.values())
        start = _norm(
            part[name]
            for part, posterior in (
                (sent.encoders[uplink.key.modality], uplink.encoder),
                (sent.decoder, uplink.decoder),
            )
            for name in posterior
        )
        # A hair more, for rounding in float32.
        if whole > 1.001 * norm + 1e-6 * start:
            refused[uplink.key] = (
                f"the norm of its change is {whole:.3g}, expected at most privacy.clip={norm:g}"
            )
    return refused


def _changes(uplink: Uplink, sent: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    encoder = _difference(uplink.encoder, sent.encoders[uplink.key.modality])
    return encoder, _difference(uplink.decoder, sent.decoder)


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
    changes = _changes(uplink, sent)
    whole = _norm(array for part in changes for array in part.values())
    if whole <= norm:
        return uplink
    scaled = partial(_scaled, factor=norm / whole)
    return replace(
        uplink,
        encoder=scaled(uplink.encoder, sent.encoders[uplink.key.modality], changes[0]),
        decoder=scaled(uplink.decoder, sent.decoder, changes[1]),
    )


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
