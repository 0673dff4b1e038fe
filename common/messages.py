"""The messages between client and server; `common.protocol` puts them on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.posterior import Posterior
from common.task import Task


def no_numbers() -> Tensor:
    """Return (0,), float64."""
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class ClientDescription:
    """What a client tells the server about itself before the first round.

    Attributes
    ----------
    key
        Modality and number.
    examples
        Number of train items.
    task
        Kind of its labels.
    label_sums
        Of the train items, see `common.model.calibration.label_sums`.
    moments
        Of the train items' features; their last dimension is the feature width.
    """

    key: ClientKey
    examples: int
    task: Task
    label_sums: Tensor
    moments: FeatureMoments


@dataclass(frozen=True)
class NodeDescription:
    """A node's answer to a query: the clients that it hosts, or why it cannot take part.

    Attributes
    ----------
    clients
        One on a deployed node; on a simulated node any number, none included.
    error
        Empty, or one line that says what is wrong with the site's configuration or data.
    """

    clients: tuple[ClientDescription, ...]
    error: str = ""


@dataclass(frozen=True)
class Downlink:
    """What a client receives for a round: its encoder, the decoder, the prior; nothing else.

    Attributes
    ----------
    key
        Which client of the node is meant.
    round
        From 1.
    encoder
        Arrays of the client's own modality, standardisation statistics included.
    decoder
        Arrays of the decoder.
    prior
        Of the pooled labels, see `common.model.calibration.prior_of`.
    lr_scale
        What this round's local rates are multiplied by.
    label_shares
        Of the pooled labels, see `common.model.calibration.label_shares`, where the client is to
        correct its loss for its own; else empty.
    """

    key: ClientKey
    round: int
    encoder: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor]
    prior: Tensor
    lr_scale: float = 1.0
    label_shares: Tensor = field(default_factory=no_numbers)


@dataclass(frozen=True)
class Uplink:
    """What a client returns from a round: its own encoder's posterior, the decoder, sums.

    Attributes
    ----------
    key
        Which client.
    round
        The round of the `Downlink` that this answers.
    encoder
        A Gaussian for each trained tensor of the client's encoder.
    decoder
        The same for the decoder.
    examples
        Train items; the client's weight.
    train_loss
        Mean over the local steps.
    calibration_sums
        Of the model as received, on the client's validation items, see
        `common.model.calibration.calibration_sums`.
    label_agreement
        Of the same, see `common.model.calibration.label_agreement`.
    steps
        Local steps.
    """

    key: ClientKey
    round: int
    encoder: Posterior
    decoder: Posterior
    examples: int
    train_loss: float
    calibration_sums: Tensor
    label_agreement: Tensor
    steps: int
