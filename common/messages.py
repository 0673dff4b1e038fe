"""The messages between client and server; `common.protocol` puts them on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.model.linear import LinearSums
from common.posterior import Posterior
from common.task import Task


def no_numbers() -> Tensor:
    """Return (0,), float64."""
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class ClientDescription:
    """What a client tells the server about itself before the first round."""

    key: ClientKey
    examples: int  # train items, which all that follows describes
    task: Task
    label_sums: Tensor  # see `common.model.calibration.label_sums`
    moments: FeatureMoments  # of the features; their last dimension is the feature width
    # Of pooled features and labels; None where the run has no linear experts, or this client's
    # modality is too wide for one.
    linear: LinearSums | None = None
    label_names: tuple[str, ...] = ()  # of classes or labels; none for classes counted from 0
    extractor: str = ""  # identity of what made the features; empty if that is not known


@dataclass(frozen=True)
class NodeDescription:
    """A node's answer to a query: the clients that it hosts, or why it cannot take part."""

    clients: tuple[ClientDescription, ...]  # one on a deployed node, any number on a simulated one
    error: str = ""  # or one line that says what is wrong with the site's configuration or data


@dataclass(frozen=True)
class Downlink:
    """What a client receives for a round: its encoder, the decoder, the prior; nothing else."""

    key: ClientKey
    round: int  # from 1
    encoder: Mapping[str, Tensor]  # of the client's own modality, with all that is not trained
    decoder: Mapping[str, Tensor]
    prior: Tensor  # of the pooled labels, see `common.model.calibration.prior_of`
    lr_scale: float = 1.0  # what this round's local rates are multiplied by
    corrects_labels: bool = False  # whether the client corrects its loss for how its labels differ
    evaluates: bool = True  # whether the sums over the client's validation items are used


@dataclass(frozen=True)
class Uplink:
    """What a client returns from a round: posteriors over the trained tensors, and sums."""

    key: ClientKey
    round: int  # of the `Downlink` that this answers
    encoder: Posterior
    decoder: Posterior
    examples: int  # train items; the client's weight
    # Mean over the local steps; of numbers in units of the prior's deviation.
    train_loss: float
    # Of the model as received, on the client's validation items, zero where it does not evaluate;
    # see `common.model.calibration`.
    calibration_sums: Tensor
    label_agreement: Tensor
    steps: int  # local

    @property
    def nbytes(self) -> int:
        """Bytes of the posteriors."""
        return self.encoder.nbytes + self.decoder.nbytes
