"""Prediction from any subset of modalities.

Encoders take nearly all of the time, and encodings do not depend on the rule or the subset: call
`encode` once, then `predict_encoded` for each subset. `predict` does both, for one subset.

Notation: B items, M modalities, T steps, d model width, O outputs, K classes or labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config import FusionRule
from common.data.batching import Padded
from common.model.fusion import (
    Fusion,
    deviation_of_seen_experts,
    fuse_encodings,
    product_of_gaussians,
    product_of_scores,
    tempered_scores,
)
from common.model.ha_fedformer import HAFedformer
from common.task import Task


@dataclass(frozen=True)
class Prediction:
    """Predictions for a batch."""

    values: Tensor  # (B,) numbers in units of the label, or (B, K) probabilities
    # Of numbers (B,), the deviation of the experts' product. Around the centre of `mean` and
    # `reliability` it is approximate, and its coverage must be measured.
    std: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch, encoded by one model; everything by modality."""

    encodings: Mapping[str, Tensor]  # (B, T_m, d), right-padded
    lengths: Mapping[str, Tensor]  # (B,); 0 where an item lacks the modality
    # (B, O), decoded from one modality alone; a cache, filled by the rule that needs it.
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def present(self, names: Sequence[str]) -> Tensor:
        """Return (M, B) bool: which items have which of the named modalities."""
        return torch.stack([self.lengths[name] > 0 for name in names])

    def select(self, chosen: Tensor) -> "Encoded":
        """Return the items where `chosen`, (B,) bool; no copy is made if all are chosen."""
        if bool(chosen.all()):
            return self
        parts = (self.encodings, self.lengths, self.outputs)
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
    if fusion.rule is FusionRule.product_of_experts:
        return _multiply_experts(model, fusion, encoded, names)
    present = encoded.present(names)
    encodings = {name: encoded.encodings[name] for name in names}
    lengths = {name: encoded.lengths[name] for name in names}
    outputs: Tensor = model.decoder(*fuse_encodings(encodings, lengths, fusion.weights, steps))
    numbers = fusion.task is Task.regression
    std = deviation_of_seen_experts(fusion, names, present) if numbers else None
    return Prediction(to_values(outputs, fusion.task), std)


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


def _multiply_experts(
    model: HAFedformer, fusion: Fusion, encoded: Encoded, names: Sequence[str]
) -> Prediction:
    for name in names:
        if name not in encoded.outputs:
            encoded.outputs[name] = model.decoder(encoded.encodings[name], encoded.lengths[name])
    outputs = {name: encoded.outputs[name] for name in names}
    present = encoded.present(names)
    if fusion.task is Task.regression:
        means = torch.stack(
            [
                fusion.experts[name].intercept + fusion.experts[name].slope * output[:, 0]
                for name, output in outputs.items()
            ]
        )
        variances = means.new_tensor(fusion.variances(names))
        return Prediction(*product_of_gaussians(means, variances, present, *fusion.prior))
    scores = tempered_scores(fusion, outputs)
    prior = torch.tensor(fusion.prior).to(scores)
    return Prediction(to_values(product_of_scores(scores, present, prior), fusion.task))
