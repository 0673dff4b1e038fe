"""The product of experts that were each calibrated against a prior of their own.

Clients that train alone have different priors. What an expert adds to its own prior is moved to the
team's common prior, and then the experts are multiplied as in `common.model.fusion`: with equal
priors nothing changes.

Notation: M experts, N items, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.model.fusion import (
    Fusion,
    product_of_gaussians,
    product_of_scores,
    tempered_scores,
)
from common.model.predict import Prediction, to_values
from common.task import Task


@dataclass(frozen=True)
class ExpertPrediction:
    """What one client's model predicts."""

    modality: str
    fusion: Fusion  # its calibration, of the one modality, and its prior
    outputs: Tensor  # (N, O) of its model
    present: Tensor  # (N,) bool, which items have the modality


def combine(predictions: Sequence[ExpertPrediction], prior: Tensor, task: Task) -> Prediction:
    """Multiply M experts of different modalities, of which every item has at least one.

    The prior is of the labels of all these clients together. Numbers come with deviations.
    """
    present = torch.stack([expert.present for expert in predictions])
    if task is not Task.regression:
        shared = prior.to(predictions[0].outputs)
        scores = torch.stack([_moved_scores(expert, shared) for expert in predictions])
        return Prediction(to_values(product_of_scores(scores, present, shared), task))
    mean, variance = prior.tolist()
    means, variances = zip(
        *(_moved_gaussian(expert, mean, variance) for expert in predictions), strict=True
    )
    stacked = torch.stack(means)
    return Prediction(
        *product_of_gaussians(stacked, stacked.new_tensor(variances), present, mean, variance)
    )


def _moved_scores(expert: ExpertPrediction, prior: Tensor) -> Tensor:
    """Return (N, O) tempered scores, as they would be if `prior` were the client's own."""
    own = torch.tensor(expert.fusion.prior).to(expert.outputs)
    (scores,) = tempered_scores(expert.fusion, {expert.modality: expert.outputs})
    moved: Tensor = scores - own + prior
    return moved


def _moved_gaussian(expert: ExpertPrediction, mean: float, variance: float) -> tuple[Tensor, float]:
    """Return (N,) means and their variance, as they would be if the prior were the client's own.

    An expert adds a difference of natural parameters to its prior, of a precision of at least 0, so
    the variance is at most the prior's.
    """
    fitted = expert.fusion.experts[expert.modality]
    own_mean, own_variance = expert.fusion.prior
    means = fitted.intercept + fitted.slope * expert.outputs[:, 0]
    posterior = own_variance * fitted.unexplained
    precision = 1 / posterior - 1 / own_variance + 1 / variance
    shift = means / posterior - own_mean / own_variance + mean / variance
    return shift / precision, 1 / precision
