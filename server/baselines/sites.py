"""The clients of a simulated federation, with all that a baseline needs of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, FusionRule
from common.data.batching import Padded
from common.data.dataset import describe_shape
from common.data.federation import ClientData, FederatedDataset, client_data_of
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.calibration import calibration_sums, label_sums, no_calibration_sums, prior_of
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.seeding import derive_seed
from server.baselines.scores import outputs_on


@dataclass(frozen=True)
class Sites:
    """All clients of a run, on this machine.

    Attributes
    ----------
    config, data
        Of the run.
    by_key
        What each client holds.
    """

    config: Config
    data: FederatedDataset
    by_key: Mapping[ClientKey, ClientData]

    @property
    def by_modality(self) -> dict[str, list[ClientKey]]:
        """Modality, in the dataset's order, to its clients."""
        return {
            name: [key for key in self.by_key if key.modality == name] for name in self.data.shapes
        }

    @property
    def train_items(self) -> int:
        """Items that clients train on, all together."""
        return sum(len(site.train) for site in self.by_key.values())

    def prior(self, keys: Iterable[ClientKey] | None = None) -> Tensor:
        """Return the prior of the train labels of some clients, by default of all."""
        sums = [
            label_sums(
                torch.from_numpy(self.by_key[key].labels[self.by_key[key].train]),
                self.data.task,
                self.data.outputs,
            )
            for key in (self.by_key if keys is None else keys)
        ]
        return prior_of(torch.stack(sums).sum(dim=0), self.data.task)

    def moments(self, modality: str) -> FeatureMoments:
        """Return the pooled moments of a modality's features, over its clients' train items."""
        total = FeatureMoments.empty(*self.data.shapes[modality])
        for key in self.by_modality[modality]:
            site = self.by_key[key]
            total = total.merge(FeatureMoments.of(site.sequences.select(site.train)))
        return total

    def initial_model(self, moments: Mapping[str, FeatureMoments]) -> HAFedformer:
        """Build the model that a federation of the same seed starts from.

        Parameters
        ----------
        moments
            Modality to the statistics that its features are standardised with.
        """
        data = self.data
        spec = ModelSpec(dict(data.shapes), data.outputs, data.task, self.config.model)
        model = build_model(spec, derive_seed(self.config.seed, "model"))
        for name, each in moments.items():
            set_standardisation(model, name, each)
        return model

    def calibration_sums(self, model: HAFedformer, key: ClientKey, prior: Tensor) -> Tensor:
        """Summarise a model's predictions on a client's validation items, as the client would."""
        site, name = self.by_key[key], key.modality
        chosen = site.validation
        if len(chosen) == 0:
            return no_calibration_sums(site.task)
        forward = partial(from_one_modality, model)
        outputs = outputs_on(model, forward, {name: site.sequences.select(chosen)})
        labels, groups = (torch.from_numpy(each[chosen]) for each in (site.labels, site.groups))
        return calibration_sums(outputs, labels, prior, site.task, groups)

    def fit_fusion(self, model: HAFedformer, rule: FusionRule) -> Fusion:
        """Fit a rule to the sum of the evidence of each modality's clients, as a server does."""
        prior, task = self.prior(), self.data.task
        seen = {
            name: sum(
                (self.calibration_sums(model, key, prior) for key in keys),
                no_calibration_sums(task),
            )
            for name, keys in self.by_modality.items()
        }
        return fit_fusion(rule, task, prior, seen)


def load_sites(config: Config, data: FederatedDataset) -> Sites:
    """Load what every client holds.

    Raises
    ------
    UserError
        If it cannot be read, or has other features than the evaluation data.
    """
    sites = Sites(config, data, {key: client_data_of(data, key, config) for key in data.clients})
    for key, site in sites.by_key.items():
        found = site.sequences.select(site.train).statistics_shape
        expected = data.shapes[key.modality]
        if found != expected:
            raise UserError(
                f"{key.modality} is {describe_shape(found)} at {key} but "
                f"{describe_shape(expected)} in the evaluation data"
            )
    return sites


def from_one_modality(model: HAFedformer, inputs: Mapping[str, Padded]) -> Tensor:
    """Run a model on items of one modality, as a client does."""
    ((name, padded),) = inputs.items()
    outputs: Tensor = model(name, padded)
    return outputs
