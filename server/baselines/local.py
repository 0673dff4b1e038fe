"""The baseline `local`: no federation; every client trains alone on its own items.

Alone, a modality's score is the mean over its clients. Together: each client has its own decoder,
so encodings cannot be mixed. Instead one client of each modality is joined with the others by the
product of their experts, each calibrated on its own validation items; client k of every modality
for each k, and the score is the mean over k.

Clients that train alone have different priors. What an expert adds to its own prior is moved to the
team's common prior, and then the experts are multiplied as in `common.model.fusion`: with equal
priors nothing changes.

Notation: M experts, N items, O outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.node import standardised
from common.clients import ClientKey
from common.config import FusionRule
from common.data.batching import SequenceItems
from common.data.dataset import MultimodalDataset
from common.data.moments import FeatureMoments
from common.model.fusion import (
    Fusion,
    fit_fusion,
    product_of_gaussians,
    product_of_scores,
    reliability_weights,
    tempered_scores,
)
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
)
from common.model.predict import Prediction, in_label_units, to_values
from common.seeding import derive_seed
from common.task import Task
from server.baselines.baseline import Baseline, Sites
from server.baselines.training import MULTIMODAL, Training, one_modality_training
from server.evaluate import Scores, evaluate, score
from server.run.source import count_parameters, initial_model


class Local(Baseline):
    """One model for each client; features and labels standardised with the client's statistics.

    It starts from the weights that a federation of the same seed would send.
    """

    fitted: dict[ClientKey, Tensor]  #: calibration sums of each client

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.models = _initial_models(sites)
        client, task = sites.config.client, sites.data.task
        self._trainings: dict[ClientKey, Training] = {}
        for key, model in self.models.items():
            site = standardised(sites.by_key[key], sites.prior([key]))
            items = {key.modality: SequenceItems(site.sequences, site.labels, site.train)}
            self._trainings[key] = one_modality_training(model, items, task, client)
        self.fitted = self._measure_calibration()
        # Of one model of each modality.
        self.parameters = sum(
            count_parameters(self.models[keys[0]]) for keys in sites.by_modality.values()
        )

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The clients' models."""
        return list(self.models.values())

    @property
    def fusion(self) -> str:
        """The product of the clients' experts."""
        return str(FusionRule.product_of_experts)

    @property
    def fusion_weights(self) -> dict[str, float]:
        """Modality to its weight in the product, the mean over the products."""
        experts = {key: self._expert(key).experts[key.modality] for key in self.models}
        teams = [{key.modality: experts[key] for key in team} for team in self._teams()]
        return _means([reliability_weights(team) for team in teams])

    def train(self, number: int) -> dict[str, float]:
        """Train a round of every client; return each modality's mean loss, by examples."""
        losses, examples = {}, {}
        for key, training in self._trainings.items():
            seed = derive_seed(self.sites.config.seed, "train", number, str(key))
            losses[key] = training.round(seed)[key.modality]
            examples[key] = len(self.sites.by_key[key].train)
        self.fitted = self._measure_calibration()
        self.client_losses = {str(key): loss for key, loss in losses.items()}
        return {
            name: sum(losses[key] * examples[key] for key in keys)
            / sum(examples[key] for key in keys)
            for name, keys in self.sites.by_modality.items()
        }

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score products of clients, and the clients of each modality alone."""
        scores = {MULTIMODAL: self._together(items)}
        for name, keys in self.sites.by_modality.items():
            rows, rule = items.in_modalities([name]), self.sites.config.fusion.name
            alone = [evaluate(self.models[key], self._expert(key, rule), rows) for key in keys]
            scores[name] = _means([own[name] for own in alone])
        return scores

    def _together(self, items: MultimodalDataset) -> dict[str, float]:
        task, usable = self.sites.data.task, items.select(np.flatnonzero(items.present()))
        predictions = {}
        for key, training in self._trainings.items():
            sequences = usable.sequences[key.modality]
            outputs = training.outputs({key.modality: sequences})
            present = torch.from_numpy(sequences.present)
            predictions[key] = ExpertPrediction(key.modality, self._expert(key), outputs, present)
        scores = []
        for team in self._teams():
            joined = combine([predictions[key] for key in team], self.sites.prior(team), task)
            std = None if joined.std is None else joined.std.numpy()
            spec = self.models[team[0]].spec
            scores.append(score(spec, usable.labels, joined.values.numpy(), std))
        return _means(scores)

    def _measure_calibration(self) -> dict[ClientKey, Tensor]:
        """Return calibration sums of each client, of its validation items and around its prior."""
        return {
            key: self.sites.calibration_sums(model, key, self.sites.prior([key]))
            for key, model in self.models.items()
        }

    def _expert(self, key: ClientKey, rule: FusionRule = FusionRule.product_of_experts) -> Fusion:
        """Calibrate a client's expert."""
        seen = {key.modality: self.fitted[key]}
        return fit_fusion(rule, self.sites.data.task, self.sites.prior([key]), seen)

    def _teams(self) -> list[tuple[ClientKey, ...]]:
        """Return teams of one client of each modality; every client is in at least one."""
        members = self.sites.by_modality.values()
        count = max(map(len, members))
        return [tuple(keys[k % len(keys)] for keys in members) for k in range(count)]


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def _initial_models(sites: Sites) -> dict[ClientKey, HAFedformer]:
    """Build a model of one modality for each client, all from the same initial weights."""
    initial = initial_model(sites.config, sites.data, {})
    parts = split_arrays(initial.state_dict())
    models = {}
    for key, site in sites.by_key.items():
        name = key.modality
        spec = replace(initial.spec, features={name: initial.spec.features[name]})
        model = build_model(spec, seed=0)
        model.load_state_dict(join_arrays(ModelArrays({name: parts.encoders[name]}, parts.decoder)))
        set_standardisation(model, name, FeatureMoments.of(site.sequences.select(site.train)))
        models[key] = model
    return models


@dataclass(frozen=True)
class ExpertPrediction:
    """What one client's model predicts."""

    modality: str
    fusion: Fusion  # its calibration, of the one modality, and its prior
    outputs: Tensor  # (N, O) of its model
    present: Tensor  # (N,) bool, which items have the modality


def combine(experts: Sequence[ExpertPrediction], prior: Tensor, task: Task) -> Prediction:
    """Multiply M experts of different modalities, of which every item has at least one.

    The prior is of the labels of all these clients together. Numbers come with deviations.
    """
    present = torch.stack([expert.present for expert in experts])
    if task is Task.regression:
        mean, variance = prior.tolist()
        moved = [_moved_gaussian(expert, mean, variance) for expert in experts]
        means = torch.stack([own for own, _ in moved])
        variances = means.new_tensor([own for _, own in moved])
        joined = product_of_gaussians(means, variances, present, 0.0, 1.0)
        return in_label_units(Prediction(*joined), (mean, variance), task)
    shared, scores = prior.to(experts[0].outputs), []
    for expert in experts:
        (own,) = tempered_scores(expert.fusion, {expert.modality: expert.outputs})
        scores.append(own - torch.tensor(expert.fusion.prior).to(own) + shared)
    return Prediction(to_values(product_of_scores(torch.stack(scores), present, shared), task))


def _moved_gaussian(expert: ExpertPrediction, mean: float, variance: float) -> tuple[Tensor, float]:
    """Return (N,) means and their variance, as they would be if the prior were the client's own.

    All are standardised by that prior, of a mean and a variance. An expert adds a difference of
    natural parameters to its prior, of a precision of at least 0, so the variance is at most 1.
    """
    fitted = expert.fusion.experts[expert.modality]
    own_mean, own_variance = expert.fusion.prior
    own_mean, own_variance = (own_mean - mean) / math.sqrt(variance), own_variance / variance
    means = own_mean + math.sqrt(own_variance) * (
        fitted.intercept + fitted.slope * expert.outputs[:, 0]
    )
    posterior = own_variance * fitted.unexplained
    precision = 1 / posterior - 1 / own_variance + 1
    shift = means / posterior - own_mean / own_variance
    return shift / precision, 1 / precision
