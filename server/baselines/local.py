"""The baseline `local`: no federation; every client trains alone on its own items.

Alone, a modality's score is the mean over its clients. Together: each client has its own decoder,
so encodings cannot be mixed. Instead one client of each modality is joined with the others by the
product of their experts, each calibrated on its own validation items; client k of every modality
for each k, and the score is the mean over k.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.clients import ClientKey
from common.config import FusionRule
from common.data.batching import SequenceItems
from common.data.dataset import MultimodalDataset
from common.data.moments import FeatureMoments
from common.model.fusion import Fusion, fit_fusion, reliability_weights
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
)
from common.seeding import derive_seed
from server.baselines.baseline import BASELINES, Baseline
from server.baselines.experts import ExpertPrediction, combine
from server.baselines.scores import mean_scores, outputs_on, score
from server.baselines.sites import Sites
from server.baselines.training import MULTIMODAL, Training, one_modality_training
from server.evaluate import Scores, evaluate
from server.run.source import count_parameters


class Local(Baseline):
    """One model for each client, standardised with the client's own statistics.

    It starts from the weights that a federation of the same seed would send.
    """

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        self.models = _initial_models(sites)
        client, task = sites.config.client, sites.data.task
        self._trainings: dict[ClientKey, Training] = {}
        for key, model in self.models.items():
            site = sites.by_key[key]
            items = {key.modality: SequenceItems(site.sequences, site.labels, site.train)}
            self._trainings[key] = one_modality_training(model, items, task, client)
        self._calibration_sums = self._measure_calibration()
        # Of one model of each modality.
        self.parameters = sum(
            count_parameters(self.models[keys[0]]) for keys in sites.by_modality.values()
        )

    @property
    def fusion(self) -> str:
        """The product of the clients' experts."""
        return str(FusionRule.product_of_experts)

    @property
    def fusion_weights(self) -> dict[str, float]:
        """Modality to its weight in the product, the mean over the products."""
        experts = {
            key: self._fusion(key, FusionRule.product_of_experts).experts[key.modality]
            for key in self.models
        }
        teams = [{key.modality: experts[key] for key in team} for team in self._teams()]
        return mean_scores([reliability_weights(team) for team in teams])

    def train(self, number: int) -> dict[str, float]:
        """Train a round of every client; return each modality's mean loss, by examples."""
        losses, examples = {}, {}
        for key, training in self._trainings.items():
            seed = derive_seed(self.sites.config.seed, "train", number, str(key))
            losses[key] = training.round(seed)[key.modality]
            examples[key] = len(self.sites.by_key[key].train)
        self._calibration_sums = self._measure_calibration()
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
            alone = [evaluate(self.models[key], self._fusion(key, rule), rows) for key in keys]
            scores[name] = mean_scores([own[name] for own in alone])
        return scores

    def _measure_calibration(self) -> dict[ClientKey, Tensor]:
        """Return calibration sums of each client, of its validation items and around its prior."""
        return {
            key: self.sites.calibration_sums(model, key, self.sites.prior([key]))
            for key, model in self.models.items()
        }

    def _fusion(self, key: ClientKey, rule: FusionRule) -> Fusion:
        """Calibrate a client's expert."""
        seen = {key.modality: self._calibration_sums[key]}
        return fit_fusion(rule, self.sites.data.task, self.sites.prior([key]), seen)

    def _teams(self) -> list[tuple[ClientKey, ...]]:
        """Return teams of one client of each modality; every client is in at least one."""
        members = self.sites.by_modality.values()
        rounds = range(max(len(keys) for keys in members))
        return [tuple(keys[k % len(keys)] for keys in members) for k in rounds]

    def _together(self, items: MultimodalDataset) -> dict[str, float]:
        usable = items.select(np.flatnonzero(items.present()))
        task = self.sites.data.task
        predictions = {key: self._predict(key, usable) for key in self.models}
        scores = []
        for team in self._teams():
            joined = combine([predictions[key] for key in team], self.sites.prior(team), task)
            scores.append(score(task, usable.labels, joined.values, joined.std))
        return mean_scores(scores)

    def _predict(self, key: ClientKey, items: MultimodalDataset) -> ExpertPrediction:
        sequences, training = items.sequences[key.modality], self._trainings[key]
        return ExpertPrediction(
            key.modality,
            self._fusion(key, FusionRule.product_of_experts),
            outputs_on(training.model, training.forward, {key.modality: sequences}),
            torch.from_numpy(sequences.present),
        )


BASELINES["local"] = Local


def _initial_models(sites: Sites) -> dict[ClientKey, HAFedformer]:
    """Build a model of one modality for each client, all from the same initial weights."""
    initial = sites.initial_model({})
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
