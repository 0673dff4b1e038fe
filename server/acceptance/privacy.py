r"""Differential privacy of clients: the noise of the server, and what it is worth.

``central``. Client i of modality m sends changes (E_i, D_i) of encoder and decoder with
||(E_i, D_i)|| <= C. The encoder of m moves by the mean of E_i over its k_m clients, the decoder by
that of D_i over all K. Let a client's data be left out, so that it sends zeros, while who takes
part is known: then the sums S_m = sum E_i of its modality and S = sum D_i change by E_i and D_i,
together by at most C in L2, and no other sum changes. So N(0, (z C)^2) on every number of S and of
every S_m is the Gaussian mechanism of noise multiplier z, once a round for each client:

    encoder of m: deviation z C / k_m        decoder: deviation z C / K

These deviations are what Flower's `compute_stdv` gives for an average's clients. Exchanging a
client's data for other data moves the sums by up to 2 C.

``local``. Each update has N(0, (z C)^2) on it when it leaves (`client.privacy`). Two data sets of
the client give changes up to 2 C apart: multiplier z / 2 towards everybody, the server included.

T rounds of multiplier z are one mechanism with mu = sqrt(T) / z, of which it is exact that

    delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)

(Balle and Wang 2018, theorem 8; Dong, Roth and Su 2019, corollary 1). That clients are sampled
counts for nothing: the seed that they are drawn with is no secret. Rounding to float32 is not
covered by the theorem (Mironov 2012).
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from common.config import Config, PrivacyConfig, PrivacyRule
from common.model.ha_fedformer import ModelArrays
from common.secure_noise import Source, with_noise

#: What leaves a site without noise, whatever the mechanism.
NOT_COVERED = (
    "label sums, sent once before round 1",
    "means and deviations of the features, sent once before round 1",
    "the number of train items, and of local steps",
    "which clients take part, and that and why one failed",
)


def add_noise(
    merged: ModelArrays,
    clients: Mapping[str, int],
    config: PrivacyConfig,
    source: Source = os.urandom,
) -> ModelArrays:
    """Add a round's noise to its averages, of equal weights and of changes of norm C at most.

    `clients` is modality to the number that were averaged, `source` gives random bytes.
    """
    deviation = config.noise_multiplier * config.clip
    encoders = {
        name: with_noise(arrays, deviation / clients[name], source)
        for name, arrays in merged.encoders.items()
    }
    decoder = with_noise(merged.decoder, deviation / sum(clients.values()), source)
    return ModelArrays(encoders, decoder)


def privacy_spent(config: Config, rounds: int) -> dict[str, Any] | None:
    """Say what so many rounds disclose of a client that took part in all of them.

    ``epsilon`` at ``delta`` is for data left out (``central``) or exchanged (``local``), as
    ``neighbours`` says; ``epsilon_replaced`` for data exchanged. None where there is no mechanism.
    """
    privacy = config.privacy
    if privacy.name is PrivacyRule.none:
        return None
    left_out, replaced = (
        gaussian_epsilon(distance * math.sqrt(rounds) / privacy.noise_multiplier, privacy.delta)
        for distance in (1, 2)
    )
    central = privacy.name is PrivacyRule.central
    return {
        "mechanism": str(privacy.name),
        "unit": "client",
        "neighbours": "a client's data left out" if central else "a client's data replaced",
        "epsilon": left_out if central else replaced,
        "epsilon_replaced": replaced,
        "delta": privacy.delta,
        "rounds": rounds,
        "clip": privacy.clip,
        "noise_multiplier": privacy.noise_multiplier,
        "trusted": "the server" if central else "nobody",
        "not_covered": list(NOT_COVERED),
    }


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta of a Gaussian mechanism whose neighbours are mu deviations apart, above 0."""
    # Imported here: more than a second that only runs with privacy need.
    from scipy.special import log_ndtr

    likelier = math.exp(log_ndtr(mu / 2 - epsilon / mu))
    return max(0.0, likelier - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon at which the mechanism has at most this delta."""
    from scipy.optimize import brentq

    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # What Renyi divergences give (Mironov 2017), which is never less.
    enough = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, enough))
