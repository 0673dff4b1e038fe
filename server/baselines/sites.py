"""The clients of a simulated federation, with all that a baseline needs of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from client.trainer import validation_outputs
from common.clients import ClientKey
from common.config import Config, FusionRule
from common.data.dataset import describe_shape
from common.data.federation import ClientData, FederatedDataset, client_data_of
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.calibration import calibration_sums, label_sums, no_calibration_sums, prior_of
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.seeding import derive_seed

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

    def prior(self, keys: Iterable[ClientKey] | None = None) -> Tensor:
        """Return the prior of the train labels of some clients, by default of all."""
        sites = [self.by_key[key] for key in (self.by_key if keys is None else keys)]
        task, outputs = self.data.task, self.data.outputs
        labels = [torch.from_numpy(site.labels[site.train]) for site in sites]
        sums = [label_sums(own, task, outputs) for own in labels]
        return prior_of(torch.stack(sums).sum(dim=0), task)

    def moments(self, modality: str) -> FeatureMoments:
        """Return the pooled moments of a modality's features, over its clients' train items."""
        total = FeatureMoments.empty(*self.data.shapes[modality])
        for key in self.by_modality[modality]:
            site = self.by_key[key]
            total = total.merge(FeatureMoments.of(site.sequences.select(site.train)))
        return total

    def initial_model(self, moments: Mapping[str, FeatureMoments]) -> HAFedformer:
        """Build the model that a federation of the same seed starts from.

        It standardises the features of the given modalities with their moments.
        """
        data = self.data
        spec = ModelSpec(dict(data.shapes), data.outputs, data.task, self.config.model)
        model = build_model(spec, derive_seed(self.config.seed, "model"))
        for name, measured in moments.items():
            set_standardisation(model, name, measured)
        return model

    def calibration_sums(self, model: HAFedformer, key: ClientKey, prior: Tensor) -> Tensor:
        """Summarise a model's predictions on a client's validation items, as the client would."""
        site = self.by_key[key]
        outputs = validation_outputs(model, site, _BATCH)
        labels = torch.from_numpy(site.labels[site.validation])
        groups = torch.from_numpy(site.groups[site.validation])
        return calibration_sums(outputs, labels, prior, site.task, groups)

    def fit_fusion(self, model: HAFedformer, rule: FusionRule) -> Fusion:
        """Fit a rule to the calibration sums of each modality, as a server does."""
        prior, task = self.prior(), self.data.task
        sums = {
            name: sum(
                (self.calibration_sums(model, key, prior) for key in keys),
                no_calibration_sums(task),
            )
            for name, keys in self.by_modality.items()
        }
        return fit_fusion(rule, task, prior, sums)


def load_sites(config: Config, data: FederatedDataset) -> Sites:
    """Load what every client holds.

    Raises `UserError` if it cannot be read, or has other features than the evaluation data.
    """
    sites = Sites(config, data, {key: client_data_of(data, key, config) for key in data.clients})
    for key, site in sites.by_key.items():
        shape = site.sequences.select(site.train).statistics_shape
        expected = data.shapes[key.modality]
        if shape != expected:
            raise UserError(
                f"{key.modality} is {describe_shape(shape)} at {key} but "
                f"{describe_shape(expected)} in the evaluation data"
            )
    return sites
