"""What a client does to its update, so that little of its data can be read from it.

With the change D of encoder and decoder together, C = ``privacy.clip`` and z =
``privacy.noise_multiplier``:

- ``central``: D min(1, C / ||D||) is sent; the server adds the noise (`server.acceptance.privacy`);
- ``local``: N(0, (z C)^2) is added to every weight before it is sent, so that the server need not
  be trusted.

Nothing else that depends on the data is sent then: no loss, no evidence, no agreement, no
precision. Clipping is Flower's own (`flwr.supercore.differential_privacy`), whose mods need an
update to be a single record; the noise is not, since Flower draws it from NumPy's global generator.
"""

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from flwr.supercore.differential_privacy import compute_clip_model_update
from torch import Tensor

from common.config import PrivacyConfig, PrivacyRule
from common.messages import Downlink, Uplink
from common.posterior import Gaussian, Posterior
from common.secure_noise import Source, normal


def protect(
    uplink: Uplink, downlink: Downlink, config: PrivacyConfig, source: Source = os.urandom
) -> Uplink:
    """Return what may be sent of an update.

    Parameters
    ----------
    uplink
        The update.
    downlink
        What it started from.
    config
        The mechanism.
    source
        Of random bytes for the noise.
    """
    if config.name is PrivacyRule.none:
        return uplink
    encoder, decoder = _clipped(uplink, downlink, config.clip)
    if config.name is PrivacyRule.local:
        deviation = config.noise_multiplier * config.clip
        encoder, decoder = (_noisy(part, deviation, source) for part in (encoder, decoder))
    return replace(
        uplink,
        encoder=Posterior.of({name: Gaussian(mean) for name, mean in encoder.items()}),
        decoder=Posterior.of({name: Gaussian(mean) for name, mean in decoder.items()}),
        train_loss=0.0,
        evidence=torch.zeros_like(uplink.evidence),
        agreement=torch.zeros_like(uplink.agreement),
    )


def _clipped(
    uplink: Uplink, downlink: Downlink, clip: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the means of encoder and decoder, clipped jointly."""
    pairs = [
        (gaussian.mean, sent[name])
        for posterior, sent in (
            (uplink.encoder, downlink.encoder),
            (uplink.decoder, downlink.decoder),
        )
        for name, gaussian in posterior.items()
    ]
    means = [mean.numpy().copy() for mean, _ in pairs]
    # Flower divides by the norm.
    if any(not torch.equal(mean, sent) for mean, sent in pairs):
        compute_clip_model_update(means, [sent.numpy() for _, sent in pairs], clip)
    tensors = iter([torch.from_numpy(mean) for mean in means])
    return {name: next(tensors) for name in uplink.encoder}, {
        name: next(tensors) for name in uplink.decoder
    }


def _noisy(arrays: Mapping[str, Tensor], deviation: float, source: Source) -> dict[str, Tensor]:
    return {
        name: (array.double() + normal(array.shape, deviation, source)).to(array.dtype)
        for name, array in arrays.items()
    }
