"""The product of experts that were each calibrated against a prior of their own.

Clients that never met have different priors. What an expert adds to its own prior is moved to the
prior that the team has together, and then the experts are multiplied as in `common.model.fusion`:
with equal priors nothing changes.

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
    """What one client's model predicts.

    Attributes
    ----------
    modality
        The client's.
    fusion
        Its calibration, of the one modality, and its prior.
    outputs
        (N, O) of its model.
    present
        (N,) bool, which items have the modality.
    """

    modality: str
    fusion: Fusion
    outputs: Tensor
    present: Tensor


def combine(predictions: Sequence[ExpertPrediction], prior: Tensor, task: Task) -> Prediction:
    """Multiply experts.

    Parameters
    ----------
    predictions
        M of them, of different modalities; every item is in one of these at least.
    prior
        Of the labels of all these clients together; see `common.model.calibration.prior_of`.
    task
        Kind of label.

    Returns
    -------
    Prediction
        For N items; with deviations of numbers.
    """
    present = torch.stack([each.present for each in predictions])
    if task is not Task.regression:
        shared = prior.to(predictions[0].outputs)
        scores = torch.stack([_moved_scores(each, shared) for each in predictions])
        return Prediction(to_values(product_of_scores(scores, present, shared), task))
    mean, variance = prior.tolist()
    means, variances = zip(
        *(_moved_gaussian(each, mean, variance) for each in predictions), strict=True
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

    In natural parameters what an expert adds to its prior is a difference, and its precision is
    at least 0, so that the variance that is returned is at most the prior's.
    """
    fitted = expert.fusion.experts[expert.modality]
    own_mean, own_variance = expert.fusion.prior
    means = fitted.intercept + fitted.slope * expert.outputs[:, 0]
    posterior = own_variance * fitted.unexplained
    precision = 1 / posterior - 1 / own_variance + 1 / variance
    shift = means / posterior - own_mean / own_variance + mean / variance
    return shift / precision, 1 / precision
