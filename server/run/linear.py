"""The linear experts of a run: from the clients' sums to buffers of the model.

An expert that is fitted to the items it predicts is too sure of itself. So it is scaled towards the
prior by the factor that predicts the server's own validation items best.

Notation: N items, O outputs, F pooled features.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clients import ClientKey
from common.config import Standardisation
from common.data.batching import SequenceItems, batches
from common.data.dataset import MultimodalDataset
from common.data.federation import FederatedDataset
from common.data.moments import FeatureMoments
from common.messages import ClientDescription, no_numbers
from common.model.calibration import INVERSE_TEMPERATURES, standardise, temper
from common.model.ha_fedformer import HAFedformer, standardisation
from common.model.linear import (
    LinearSums,
    calibrated,
    fit_linear,
    has_linear,
    measure_linear,
)
from common.task import Task
from server.aggregation.bounds import FEW_ITEMS, most_examples
from server.aggregation.linear_sums import pool_linear_sums

#: The factor where there is no item to choose it by.
UNKNOWN = 0.5

#: Items of a batch.
_BATCH = 256


@dataclass(frozen=True)
class Experts:
    """What the linear experts of a model are fitted to; by default there are none."""

    #: By modality, of standardised features.
    sums: Mapping[str, LinearSums] = field(default_factory=dict)
    #: Of the labels, see `common.model.calibration.prior_of`.
    prior: Tensor = field(default_factory=no_numbers)


def too_wide(data: FederatedDataset) -> list[str]:
    """Return the modalities that are too wide for a linear expert."""
    return [name for name, shape in data.shapes.items() if not has_linear(shape, data.outputs)]


def pool_clients(
    clients: Iterable[ClientDescription],
    data: FederatedDataset,
    moments: Mapping[str, FeatureMoments],
    whose: Standardisation = Standardisation.pooled,
    units: Mapping[ClientKey, FeatureMoments] | None = None,
) -> dict[str, LinearSums]:
    """Pool the sums of clients, of features standardised as in training, by modality.

    `moments` are those of all clients, `units` those of clients that use their own, and `whose`
    says which all use. A modality that is too wide has none, nor has one for which no client sent
    any.
    """
    clients = list(clients)
    most = most_examples([client.examples for client in clients])
    by_modality: dict[str, list[LinearSums]] = {}
    alone, wide = whose is Standardisation.client, too_wide(data)
    for client in clients:
        if client.linear is None or (name := client.key.modality) in wide:
            continue
        usual = client.moments if alone else moments[name]
        sums = standardised_sums(client.linear, (units or {}).get(client.key, usual))
        by_modality.setdefault(name, []).append(sums.padded(data.outputs))
    pooled = {}
    for name, sites in by_modality.items():
        own = _own_sums(name, data, None if alone else moments[name])
        pooled[name] = pool_linear_sums(sites, data.task, own, most)
    return pooled


def _own_sums(
    name: str, data: FederatedDataset, moments: FeatureMoments | None
) -> LinearSums | None:
    """Return the sums of the coordinator's validation items, None if they are few.

    Their features are standardised with some moments, or by default with their own.
    """
    items = data.validation
    present = items.select(items.present([name]).nonzero()[0])
    if len(present) < FEW_ITEMS:
        return None
    sequences = present.sequences[name]
    moments = moments or FeatureMoments.of(sequences)
    sums = measure_linear(sequences, present.labels, data.task, data.outputs, moments.mean)
    return standardised_sums(sums, moments)


def standardised_sums(sums: LinearSums, moments: FeatureMoments) -> LinearSums:
    """Return the sums of features that the model standardises with these moments."""
    mean, scale = standardisation(moments)
    return sums.standardised(mean.double().flatten(), scale.double().flatten())


@torch.inference_mode()
def set_linear(
    model: HAFedformer, name: str, sums: LinearSums, prior: Tensor, items: MultimodalDataset
) -> None:
    """Fit a modality's expert to pooled sums, and calibrate it on the server's items.

    `prior` is that of the pooled labels.
    """
    task, expert = model.spec.task, model.encoder(name).linear
    assert expert is not None
    fitted = fit_linear(sums, task, prior)
    expert.set(fitted)
    outputs, labels = _predict(model, name, items)
    factor = best_factor(outputs, labels, prior, task)
    expert.set(calibrated(fitted, factor, prior, task))


def _predict(model: HAFedformer, name: str, items: MultimodalDataset) -> tuple[Tensor, Tensor]:
    """Return outputs (N, O) and labels of the items that have a modality."""
    present = items.present([name]).nonzero()[0]
    if len(present) == 0:
        return torch.empty(0, model.spec.outputs), torch.from_numpy(items.labels[present])
    source = SequenceItems(items.sequences[name], items.labels, present)
    parts = [(model.linear_outputs(name, own), y) for own, y in batches(source, _BATCH)]
    outputs, labels = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(labels)


def best_factor(outputs: Tensor, labels: Tensor, prior: Tensor, task: Task) -> float:
    """Return the factor in [0, 1] with the least squared error, or log-loss of a grid.

    Of outputs (N, O) of `common.model.linear.fit_linear`, and labels.
    """
    if len(outputs) == 0:
        return UNKNOWN
    exact = outputs.double()
    if task is Task.regression:
        expected = torch.from_numpy(standardise(labels.numpy(), prior, task)).double()[:, None]
        slope = (exact * expected).sum() / (exact**2).sum().clamp(min=1e-12)
        return slope.clamp(0, 1).item()
    factors = [beta for beta in INVERSE_TEMPERATURES if beta <= 1]
    losses = [_log_loss(temper(exact, prior, beta, task), labels, task) for beta in factors]
    return factors[losses.index(min(losses))]


def _log_loss(scores: Tensor, labels: Tensor, task: Task) -> float:
    if task is Task.classification:
        return F.cross_entropy(scores, labels).item()
    return F.binary_cross_entropy_with_logits(scores, labels.double()).item()
