"""Prediction from any subset of modalities.

Encoders take nearly all of the time, and encodings do not depend on the rule or the subset: call
`encode` once, then `predict_encoded` for each subset. `predict` does both, for one subset.

Notation: B items, M modalities, T steps, d model width, O outputs, K classes or labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config import FusionRule
from common.data.batching import Padded
from common.model.calibrated import join_numbers, join_scores
from common.model.fusion import (
    Fusion,
    deviation_of_seen_experts,
    fuse_encodings,
    product_of_gaussians,
    product_of_scores,
    tempered_scores,
)
from common.model.ha_fedformer import HAFedformer
from common.model.linear import fuse_linear
from common.task import Task


@dataclass(frozen=True)
class Prediction:
    """Predictions for a batch."""

    values: Tensor  # (B,) numbers in units of the label, or (B, K) probabilities
    # Of numbers (B,), the deviation of the experts' product, in the same units. Around the centre
    # of `mean` and `reliability` it is approximate, and its coverage must be measured.
    std: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch, encoded by one model; everything by modality."""

    encodings: Mapping[str, Tensor]  # (B, T_m, d), right-padded
    lengths: Mapping[str, Tensor]  # (B,); 0 where an item lacks the modality
    linear: Mapping[str, Tensor]  # (B, O), of the linear expert; 0 where there is none
    # (B, O), from one modality alone; a cache, filled by the rule that needs it.
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def present(self, names: Sequence[str]) -> Tensor:
        """Return (M, B) bool: which items have which of the named modalities."""
        return torch.stack([self.lengths[name] > 0 for name in names])

    def select(self, chosen: Tensor) -> "Encoded":
        """Return the items where `chosen`, (B,) bool; no copy is made if all are chosen."""
        if bool(chosen.all()):
            return self
        parts = (self.encodings, self.lengths, self.linear, self.outputs)
        return Encoded(*({name: values[chosen] for name, values in part.items()} for part in parts))


@torch.inference_mode()
def encode(model: HAFedformer, inputs: Mapping[str, Padded]) -> Encoded:
    """Encode a batch with a model in evaluation mode, for any number of `predict_encoded`.

    `inputs` are the sequences, of B items each, of any non-empty subset of the model's modalities;
    an item lacks a modality where its length is 0.
    """
    return Encoded(
        {name: model.encode(name, padded) for name, padded in inputs.items()},
        {name: padded.lengths for name, padded in inputs.items()},
        {name: model.linear_outputs(name, padded) for name, padded in inputs.items()},
    )


@torch.inference_mode()
def predict_encoded(
    model: HAFedformer, fusion: Fusion, encoded: Encoded, names: Sequence[str]
) -> Prediction:
    """Predict each item from those of the named modalities that it has.

    Raises `ValueError` if it has none of them.
    """
    absent = ~encoded.present(names).any(dim=0)
    if absent.any():
        empty = absent.nonzero()[0].item()
        raise ValueError(f"item {empty} of the batch has none of {', '.join(names)}")
    return predict_present(model, fusion, encoded, names)


def predict_present(
    model: HAFedformer,
    fusion: Fusion,
    encoded: Encoded,
    names: Sequence[str],
    steps: int | None = None,
) -> Prediction:
    """Predict as `predict_encoded` does, with no branch on any value, so that it can be exported.

    Predictions for items without any of the modalities have no meaning. `steps` are those of the
    fused sequences, by default the longest item's.
    """
    if fusion.rule is FusionRule.calibrated:
        predicted = _join_opinions(model, fusion, encoded, names)
    elif fusion.rule is FusionRule.product_of_experts:
        predicted = _multiply_experts(model, fusion, encoded, names)
    else:
        predicted = _fuse_encodings(model, fusion, encoded, names, steps)
    return in_label_units(predicted, fusion.prior, fusion.task)


def predict_subsets(
    model: HAFedformer, fusion: Fusion, encoded: Encoded, subsets: Sequence[Sequence[str]]
) -> list[Prediction]:
    """Return what `predict_present` does for each of some subsets, the last of which is of all.

    Where the rule joins what each modality says by itself, all are one batch, in which items lack
    what is not in their subset.
    """
    names, count = list(subsets[-1]), len(subsets)
    if fusion.rule in (FusionRule.mean, FusionRule.reliability):
        return [predict_present(model, fusion, encoded, list(subset)) for subset in subsets]
    outputs = expert_outputs(model, encoded, names)
    lengths = {
        name: torch.cat([encoded.lengths[name] * (name in subset) for subset in subsets])
        for name in names
    }
    repeated = (
        {name: values[name].repeat(count, 1) for name in names}
        for values in (encoded.linear, outputs)
    )
    all_at_once = predict_present(model, fusion, Encoded({}, lengths, *repeated), names)
    values, std = all_at_once.values.chunk(count), all_at_once.std
    stds = [None] * count if std is None else std.chunk(count)
    return [Prediction(*each) for each in zip(values, stds, strict=True)]


def in_label_units(predicted: Prediction, prior: Sequence[float], task: Task) -> Prediction:
    """Return predictions of standardised numbers in the units of their prior; others as they are.

    Undoes `common.model.calibration.standardise`.
    """
    if task is not Task.regression:
        return predicted
    mean, variance = prior
    deviation, std = math.sqrt(variance), predicted.std
    values = mean + deviation * predicted.values
    return Prediction(values, None if std is None else deviation * std)


def _fuse_encodings(
    model: HAFedformer,
    fusion: Fusion,
    encoded: Encoded,
    names: Sequence[str],
    steps: int | None,
) -> Prediction:
    present = encoded.present(names)
    encodings = {name: encoded.encodings[name] for name in names}
    lengths = {name: encoded.lengths[name] for name in names}
    weights, linear = fusion.weights, {name: encoded.linear[name] for name in names}
    outputs: Tensor = model.decoder(*fuse_encodings(encodings, lengths, weights, steps))
    values = to_values(outputs + fuse_linear(linear, lengths, weights), fusion.task)
    if fusion.task is not Task.regression:
        return Prediction(values)
    values = _calibrated_alone(values, fusion, names, present)
    return Prediction(values, deviation_of_seen_experts(fusion, names, present))


def _calibrated_alone(
    values: Tensor, fusion: Fusion, names: Sequence[str], present: Tensor
) -> Tensor:
    """Move numbers (B,) of items with one modality only, of present (M, B), to its expert's line.

    An expert that was fitted to no item leaves them as they are.
    """
    lines = [
        (expert.intercept, expert.slope - 1) if expert.count > 0 else (0.0, 0.0)
        for expert in (fusion.experts[name] for name in names)
    ]
    alone = present & (present.sum(dim=0) == 1)
    shifts, tilts = values.new_tensor(lines).T @ alone.to(values)
    moved: Tensor = values + shifts + tilts * values
    return moved


def predict(model: HAFedformer, fusion: Fusion, inputs: Mapping[str, Padded]) -> Prediction:
    """Encode a batch and predict each item from the modalities that it has, see there."""
    return predict_encoded(model, fusion, encode(model, inputs), list(inputs))


def to_values(scores: Tensor, task: Task) -> Tensor:
    """Map outputs (B, O) to numbers (B,) or probabilities (B, K)."""
    match task:
        case Task.regression:
            return scores[:, 0]
        case Task.classification:
            return scores.softmax(dim=1)
        case Task.multilabel:
            return scores.sigmoid()


def expert_outputs(model: HAFedformer, encoded: Encoded, names: Sequence[str]) -> dict[str, Tensor]:
    """Return (B, O) by modality, from that modality alone."""
    for name in names:
        if name not in encoded.outputs:
            decoded = model.decoder(encoded.encodings[name], encoded.lengths[name])
            encoded.outputs[name] = decoded + encoded.linear[name]
    return {name: encoded.outputs[name] for name in names}


def _join_opinions(
    model: HAFedformer, fusion: Fusion, encoded: Encoded, names: Sequence[str]
) -> Prediction:
    opinions = {
        name: fusion.joint.opinions[name].of(output, encoded.linear.get(name))
        for name, output in expert_outputs(model, encoded, names).items()
    }
    present = {name: encoded.lengths[name] > 0 for name in names}
    if fusion.task is Task.regression:
        columns = {name: opinion[:, 0] for name, opinion in opinions.items()}
        return Prediction(*join_numbers(fusion.joint, columns, present))
    prior = torch.tensor(fusion.prior).to(next(iter(opinions.values())))
    scores = join_scores(fusion.joint, fusion.task, prior, opinions, present)
    return Prediction(to_values(scores, fusion.task))


def _multiply_experts(
    model: HAFedformer, fusion: Fusion, encoded: Encoded, names: Sequence[str]
) -> Prediction:
    outputs = expert_outputs(model, encoded, names)
    present = encoded.present(names)
    if fusion.task is Task.regression:
        means = torch.stack(
            [
                fusion.experts[name].intercept + fusion.experts[name].slope * output[:, 0]
                for name, output in outputs.items()
            ]
        )
        variances = means.new_tensor(fusion.variances(names))
        return Prediction(*product_of_gaussians(means, variances, present, 0.0, 1.0))
    scores = tempered_scores(fusion, outputs)
    prior = torch.tensor(fusion.prior).to(scores)
    return Prediction(to_values(product_of_scores(scores, present, prior), fusion.task))
