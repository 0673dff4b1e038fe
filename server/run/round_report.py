"""The report of a round, which the strategy makes and the run writes down."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round, apart from evaluation.

    Attributes
    ----------
    round
        From 1.
    clients
        Modality to the number of clients that were merged.
    train_loss
        Modality to the mean train loss, weighted by examples.
    reused
        Modalities of which no client replied: their encoder stays as it was.
    rejected
        One line for each client that failed or whose update was refused.
    decoder_weights
        Layer to modality to its share in the decoder.
    trust
        Client to the trust in its labels, where clients are weighted by it.
    bytes_down, bytes_up
        Of arrays, all clients together.
    refused
        Replies whose content was refused; a client's own failure or silence is none.
    client_losses
        Client that was merged to its train loss.
    posterior_widths
        Client to layer to width, see `server.aggregation.widths`.
    """

    round: int
    clients: Mapping[str, int]
    train_loss: Mapping[str, float]
    reused: tuple[str, ...]
    rejected: tuple[str, ...]
    decoder_weights: Mapping[str, Mapping[str, float]]
    trust: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    refused: int = 0
    client_losses: Mapping[str, float] = field(default_factory=dict)
    posterior_widths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
