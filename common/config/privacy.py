"""Differential privacy of what clients send."""

from dataclasses import dataclass
from enum import StrEnum


class PrivacyRule(StrEnum):
    """Who adds the noise: nobody, the server to the averages, or each client to what it sends."""

    none = "none"
    central = "central"
    local = "local"


@dataclass
class PrivacyConfig:
    """See `server.acceptance.privacy` and `client.privacy`."""

    name: PrivacyRule = PrivacyRule.none
    clip: float = 1.0  # L2 norm of a client's whole change, encoder and decoder
    noise_multiplier: float = 1.0  # deviation of the noise over the clip
    delta: float = 1e-5
