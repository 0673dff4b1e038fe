"""The baselines `pooled` and `centralised`: all clients' items on one machine.

`pooled`: still one modality an item; batches of one modality, those of all modalities mixed. What a
federation loses against it is what merging loses. `centralised`: as many items as the clients train
on, with every modality of each, which no federation of sites with one modality each can have.
``strategy.architecture`` is trained on them: HA-Fedformer through the mean of its encodings, or a
model of `server.baselines.architectures`, which takes all modalities at once and learns to join
them.

Notation: N items, B of them at a time, K classes or labels, O outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from client.node import standardised
from common.config import FusionRule
from common.data.batching import Padded
from common.data.dataset import LabelArray, MultimodalDataset
from common.data.federation import JointDataset
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.calibration import standardise
from common.model.fusion import fuse_encodings
from common.model.ha_fedformer import HAFedformer, ModelSpec
from common.model.linear import fuse_linear, measure_linear
from common.model.predict import Prediction, in_label_units, to_values
from common.seeding import derive_seed
from server.baselines.architectures import build_other
from server.baselines.baseline import Baseline, Sites
from server.baselines.training import (
    MULTIMODAL,
    Training,
    one_modality_training,
    paired_pass,
    pooled_items,
)
from server.evaluate import Answer, Scores, score
from server.run.linear import Experts, standardised_sums, too_wide
from server.run.source import NO_EXPERTS, OneModel, count_parameters, initial_model


class FullModel(OneModel, Baseline):
    """An HA-Fedformer with every encoder; its fusion rule is fitted as in a federation."""

    def __init__(
        self, sites: Sites, model: HAFedformer, training: Training, rule: FusionRule
    ) -> None:
        super().__init__(sites)
        self.model, self.training, self._rule = model, training, rule
        self.parameters = count_parameters(model)
        self.fitted = sites.fit_fusion(model, rule)

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the mean loss of each modality, or of all together."""
        losses = self.training.round(derive_seed(self.sites.config.seed, "train", number))
        self.fitted = self.sites.fit_fusion(self.model, self._rule)
        titles = (*self.sites.data.shapes, MULTIMODAL)
        return {title: losses[title] for title in titles if title in losses}


class OtherArchitecture(Baseline):
    """A model of `ARCHITECTURES`; it predicts numbers without a deviation."""

    def __init__(self, sites: Sites, spec: ModelSpec, training: Training) -> None:
        super().__init__(sites)
        self.spec, self.training = spec, training
        self.parameters = count_parameters(training.model)

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The one model."""
        return [self.training.model]

    @property
    def fusion(self) -> str:
        """Name of the architecture."""
        return self.sites.config.strategy.architecture

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the loss of what is predicted from all modalities."""
        return self.training.round(derive_seed(self.sites.config.seed, "train", number))

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together, and each alone with the others absent."""
        found = self.answers(items)
        return {title: score(self.spec, *answer) for title, answer in found.items()}

    def answers(self, items: MultimodalDataset) -> dict[str, Answer]:
        """Predict from all modalities together, and from each alone with the others absent."""
        found = predict_paired(self.training, self.prior, items)
        return {title: (truth, values, None) for title, truth, values in found}


def predict_paired(
    training: Training, prior: Tensor, items: MultimodalDataset
) -> Iterator[tuple[str, LabelArray, NDArray[np.float32]]]:
    """Predict with a model that takes every modality at once: from all of them, and each alone.

    Yields ``multimodal`` and each modality, with labels and values of the items that have any of
    the modalities in question: (N,) numbers or (N, K) probabilities. A modality that an item lacks,
    or that is not in question, comes with length 0. Labels were standardised by `prior`.
    """
    names = list(items.sequences)
    for title, subset in {MULTIMODAL: names, **{name: [name] for name in names}}.items():
        usable = items.select(np.flatnonzero(items.present(subset)))
        absent = {
            name: replace(own, lengths=np.zeros_like(own.lengths))
            for name, own in usable.sequences.items()
            if name not in subset
        }
        outputs = training.outputs({**usable.sequences, **absent})
        predicted = Prediction(to_values(outputs, training.task))
        values = in_label_units(predicted, prior.tolist(), training.task).values
        yield title, usable.labels, values.numpy()


def pooled(sites: Sites) -> FullModel:
    """Build the baseline; features are standardised with the moments of all train items."""
    config, data, prior = sites.config, sites.data, sites.prior(sites.by_key)
    moments = {name: sites.moments(name) for name in sites.by_modality}
    model = initial_model(config, data, moments, sites.experts(moments))
    items = {
        name: pooled_items([standardised(sites.by_key[key], prior) for key in keys])
        for name, keys in sites.by_modality.items()
    }
    training = one_modality_training(model, items, data.task, config.client)
    return FullModel(sites, model, training, config.fusion.name)


def centralised(sites: Sites) -> Baseline:
    """Build the baseline; features are standardised with the moments of its train items.

    Raises `UserError` if the data are not paired, as shards of clients are not.
    """
    config, task, items = sites.config, sites.data.task, paired_items(sites)
    moments = {name: FeatureMoments.of(own) for name, own in items.sequences.items()}
    experts = _paired_experts(sites, items, moments) if config.strategy.linear else NO_EXPERTS
    initial = initial_model(config, sites.data, moments, experts)
    labels = standardise(items.labels, sites.prior(sites.by_key), task)
    one_pass = partial(paired_pass, replace(items, labels=labels), config.client.batch_size)
    if config.strategy.architecture == "ha_fedformer":
        forward = partial(from_mean, initial)
        training = Training(initial, forward, one_pass, task, config.client)
        return FullModel(sites, initial, training, FusionRule.mean)
    other = build_other(config, initial)
    training = Training(other, other, one_pass, task, config.client)
    return OtherArchitecture(sites, initial.spec, training)


def paired_items(sites: Sites) -> MultimodalDataset:
    """Return the items that clients train on, without their validation items, in all modalities.

    Raises `UserError` if the data hold only the modality of each client.
    """
    data = sites.data
    if not isinstance(data, JointDataset):
        raise UserError(
            f"strategy={sites.config.strategy.name} needs paired items; use a file, or "
            "dataset=synthetic"
        )
    dealt = [data.dealt[key][site.train] for key, site in sites.by_key.items()]
    return data.items.select(np.sort(np.concatenate(dealt)))


def _paired_experts(
    sites: Sites, items: MultimodalDataset, moments: Mapping[str, FeatureMoments]
) -> Experts:
    """Return what linear experts are fitted to: the sums of all paired items."""
    data, sums = sites.data, {}
    task, outputs, wide = data.task, data.outputs, too_wide(data)
    for name, own in items.sequences.items():
        if name not in wide:
            fill = moments[name].mean
            measured = measure_linear(own, items.labels, task, outputs, fill)
            sums[name] = standardised_sums(measured, moments[name])
    return Experts(sums, sites.prior(sites.by_key))


def from_mean(model: HAFedformer, inputs: Mapping[str, Padded]) -> Tensor:
    """Run HA-Fedformer on all modalities at once: outputs (B, O) of the mean of the encodings."""
    encodings = {name: model.encode(name, padded) for name, padded in inputs.items()}
    lengths = {name: padded.lengths for name, padded in inputs.items()}
    linear = {name: model.linear_outputs(name, padded) for name, padded in inputs.items()}
    weights = dict.fromkeys(inputs, 1 / len(inputs))
    outputs: Tensor = model.decoder(*fuse_encodings(encodings, lengths, weights))
    return outputs + fuse_linear(linear, lengths, weights)
