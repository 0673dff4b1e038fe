"""What a baseline is, and what it is given: all clients of a simulated federation."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from client.node import describe_client, standardised
from client.trainer import validation_outputs
from common.clients import ClientKey
from common.config import Config, FusionRule
from common.data.dataset import describe_shape
from common.data.federation import ClientData, FederatedDataset, client_data_of
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.calibration import (
    calibration_sums,
    label_sums,
    no_calibration_sums,
    pool_label_sums,
    prior_of,
)
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import HAFedformer
from server.evaluate import opinions
from server.records import Phase, PhaseClock, RoundRecord
from server.run.linear import Experts, pool_clients
from server.run.source import RoundSource

#: Validation items of a batch.
_BATCH = 256


@dataclass(frozen=True)
class Sites:
    """All clients of a run, on this machine."""

    config: Config
    data: FederatedDataset
    by_key: Mapping[ClientKey, ClientData]

    @property
    def by_modality(self) -> dict[str, list[ClientKey]]:
        """Modality, in the dataset's order, to its clients."""
        return {
            name: [key for key in self.by_key if key.modality == name] for name in self.data.shapes
        }

    def experts(self, moments: Mapping[str, FeatureMoments]) -> Experts:
        """Return what linear experts are fitted to, as the clients would say."""
        clients = (describe_client(site, key, self.config) for key, site in self.by_key.items())
        return Experts(pool_clients(clients, self.data, moments), self.prior(self.by_key))

    def prior(self, keys: Iterable[ClientKey]) -> Tensor:
        """Return the prior of the train labels of some clients."""
        task, sites = self.data.task, [self.by_key[key] for key in keys]
        labels = [torch.from_numpy(site.labels[site.train]) for site in sites]
        sums = [label_sums(own, task, self.data.outputs) for own in labels]
        return prior_of(pool_label_sums(sums, task), task)

    def moments(self, modality: str) -> FeatureMoments:
        """Return the pooled moments of a modality's features, over its clients' train items."""
        total = FeatureMoments.empty(*self.data.shapes[modality])
        for key in self.by_modality[modality]:
            site = self.by_key[key]
            total = total.merge(FeatureMoments.of(site.sequences.select(site.train)))
        return total

    def calibration_sums(self, model: HAFedformer, key: ClientKey, prior: Tensor) -> Tensor:
        """Summarise a model's predictions on a client's validation items, as the client would."""
        site = standardised(self.by_key[key], prior)
        outputs = validation_outputs(model, site, _BATCH)
        labels = torch.from_numpy(site.labels[site.validation])
        return calibration_sums(outputs, labels, prior, site.task)

    def fit_fusion(self, model: HAFedformer, rule: FusionRule) -> Fusion:
        """Fit a rule to the calibration sums of each modality, as a server does."""
        prior, task = self.prior(self.by_key), self.data.task
        sums = {
            name: sum(
                (self.calibration_sums(model, key, prior) for key in keys),
                no_calibration_sums(task),
            )
            for name, keys in self.by_modality.items()
        }
        return fit_fusion(rule, task, prior, sums, opinions(model, prior, self.data.validation))


def load_sites(config: Config, data: FederatedDataset) -> Sites:
    """Load what every client holds.

    Raises `UserError` if it cannot be read, or has other features than the evaluation data.
    """
    sites = Sites(config, data, {key: client_data_of(data, key, config) for key in data.clients})
    for key, site in sites.by_key.items():
        shape = site.sequences.select(site.train).statistics_shape
        if shape != (expected := data.shapes[key.modality]):
            here, there = map(describe_shape, (shape, expected))
            raise UserError(f"{key.modality} is {here} at {key} but {there} in the evaluation data")
    return sites


class Baseline(RoundSource):
    """One or several models in training on all clients' data."""

    def __init__(self, sites: Sites) -> None:
        self.sites, self.prior = sites, sites.prior(sites.by_key)
        #: Client to its train loss in the last round; empty where none trains by itself.
        self.client_losses: Mapping[str, float] = {}
        self.examples = sum(len(site.train) for site in sites.by_key.values())

    @abstractmethod
    def train(self, number: int) -> dict[str, float]:
        """Train a round, counted from 1, and fit what joins the modalities.

        Returns modality, or ``multimodal``, to the mean train loss. Raises `UserError` if the loss
        stops being finite.
        """

    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round and return its record."""
        losses = self.train(number)
        clock.end(Phase.train)
        clients = {name: len(keys) for name, keys in self.sites.by_modality.items()}
        return RoundRecord(number, losses, self.client_losses, clients=clients)
