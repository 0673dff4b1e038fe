"""Prediction from any subset of modalities.

Notation: B items, K classes or labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import FusionRule
from common.data.batching import Padded
from common.model.fusion import (
    Fusion,
    fuse_encodings,
    product_of_gaussians,
    product_of_scores,
    tempered_scores,
)
from common.model.ha_fedformer import HAFedformer
from common.task import Task


@dataclass(frozen=True)
class Prediction:
    """What is predicted for a batch.

    Attributes
    ----------
    values
        Regression: (B,) in units of the label. Otherwise (B, K) probabilities.
    std
        (B,) predictive standard deviation where the rule gives one (product of experts on
        numbers), else None.
    """

    values: Tensor
    std: Tensor | None = None


@torch.inference_mode()
def predict(model: HAFedformer, fusion: Fusion, inputs: Mapping[str, Padded]) -> Prediction:
    """Predict each item from the modalities that it has.

    Parameters
    ----------
    model
        In evaluation mode.
    fusion
        A fitted rule.
    inputs
        Modality to its sequences, of B items each; any non-empty subset of the model's modalities.
        An item lacks a modality where its length is 0, and must have one at least.

    Raises
    ------
    ValueError
        If an item has no modality at all.
    """
    present = torch.stack([padded.lengths > 0 for padded in inputs.values()])
    if not present.any(dim=0).all():
        empty = (~present.any(dim=0)).nonzero()[0].item()
        raise ValueError(f"item {empty} of the batch has none of {', '.join(inputs)}")
    if fusion.rule is FusionRule.product_of_experts:
        return _predict_by_experts(model, fusion, inputs, present)
    encodings = {name: model.encode(name, padded) for name, padded in inputs.items()}
    lengths = {name: padded.lengths for name, padded in inputs.items()}
    outputs: Tensor = model.decoder(*fuse_encodings(encodings, lengths, fusion.weights))
    return Prediction(to_values(outputs, fusion.task))


def to_values(scores: Tensor, task: Task) -> Tensor:
    """Map outputs (B, O) to numbers (B,) or probabilities (B, K)."""
    match task:
        case Task.regression:
            return scores[:, 0]
        case Task.classification:
            return scores.softmax(dim=1)
        case Task.multilabel:
            return scores.sigmoid()


def _predict_by_experts(
    model: HAFedformer, fusion: Fusion, inputs: Mapping[str, Padded], present: Tensor
) -> Prediction:
    outputs = {name: model(name, padded) for name, padded in inputs.items()}
    if fusion.task is Task.regression:
        experts = [fusion.experts[name] for name in inputs]
        means = torch.stack(
            [
                expert.intercept + expert.slope * output[:, 0]
                for expert, output in zip(experts, outputs.values(), strict=True)
            ]
        )
        mean, variance = fusion.prior
        variances = means.new_tensor([variance * expert.unexplained for expert in experts])
        return Prediction(*product_of_gaussians(means, variances, present, mean, variance))
    scores = tempered_scores(fusion, outputs)
    prior = torch.tensor(fusion.prior).to(scores)
    return Prediction(to_values(product_of_scores(scores, present, prior), fusion.task))
