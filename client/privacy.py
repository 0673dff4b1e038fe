"""Differential privacy at a client: its update is clipped and, for ``local``, noisy.

With the change D of encoder and decoder together, C = ``privacy.clip`` and z =
``privacy.noise_multiplier``:

- ``central``: D min(1, C / ||D||) is sent; the server adds the noise (`server.acceptance.privacy`);
- ``local``: N(0, (z C)^2) is added to every weight before it is sent, so that the server need not
  be trusted.

Nothing else that depends on the data is sent then: no loss, no calibration sums, no label
agreement, no precision.
"""

import os
from dataclasses import replace

import torch
from torch import Tensor

from common.config import PrivacyConfig, PrivacyRule
from common.messages import Downlink, Uplink
from common.posterior import Gaussian, Posterior
from common.secure_noise import Source, with_noise


def protect(
    uplink: Uplink, downlink: Downlink, config: PrivacyConfig, source: Source = os.urandom
) -> Uplink:
    """Return the part of an update, which began at `downlink`, that may be sent."""
    if config.name is PrivacyRule.none:
        return uplink
    encoder, decoder = _clipped(uplink, downlink, config.clip)
    if config.name is PrivacyRule.local:
        deviation = config.noise_multiplier * config.clip
        encoder, decoder = (with_noise(part, deviation, source) for part in (encoder, decoder))
    return replace(
        uplink,
        encoder=Posterior.of({name: Gaussian(mean) for name, mean in encoder.items()}),
        decoder=Posterior.of({name: Gaussian(mean) for name, mean in decoder.items()}),
        train_loss=0.0,
        calibration_sums=torch.zeros_like(uplink.calibration_sums),
        label_agreement=torch.zeros_like(uplink.label_agreement),
    )


def _clipped(uplink: Uplink, downlink: Downlink, clip: float) -> list[dict[str, Tensor]]:
    """Return the means of encoder and decoder, whose changes are clipped jointly."""
    parts = ((uplink.encoder, downlink.encoder), (uplink.decoder, downlink.decoder))
    changes = [
        {name: gaussian.mean - sent[name] for name, gaussian in posterior.items()}
        for posterior, sent in parts
    ]
    flat = [change.double().flatten() for part in changes for change in part.values()]
    norm = torch.cat(flat).norm().item()
    if norm <= clip:
        return [{name: each.mean for name, each in posterior.items()} for posterior, _ in parts]
    return [
        {name: sent[name] + change * (clip / norm) for name, change in part.items()}
        for part, (_, sent) in zip(changes, parts, strict=True)
    ]
