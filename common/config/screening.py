"""What the server refuses of updates that are well formed, and when it gives up on a node."""

from dataclasses import dataclass


@dataclass
class ScreeningConfig:
    """See `server.acceptance.screening`; null switches a rule off."""

    # A change may be so many times the median of the round's, and of the arrays that were sent.
    norm_factor: float | None = 10.0
    # A precision may be so many times as large as the round's median, or as its shrinkage allows.
    precision_factor: float | None = 100.0
    # A client's whole change, encoder and decoder, is scaled down to this norm.
    clip_norm: float | None = None
    # After so many refused updates a node is left out for the rest of the run.
    max_faults: int | None = 3
