"""What a client reports about its own validation predictions: a few sums, no labels, no items.

Sums add up over clients: *label sums* give the prior, *calibration sums* the quality of a modality,
and *label agreement* tells whether a client's labels belong to its features.

Numbers are standardised by the prior before anything else is computed from them (`standardise`), so
that nothing depends on the unit of the labels or on where their zero is.

Notation: B items, O outputs, K classes or labels.
"""

import math
from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.data.dataset import LabelArray
from common.data.moments import FeatureMoments
from common.task import Task

#: Numbers are all equal where their deviation is below this share of their mean.
CONSTANT = 1e-12

#: Inverse temperatures at which clients report their log-loss; 0 is the prior alone.
INVERSE_TEMPERATURES = (0.0, 0.125, 0.25, 0.354, 0.5, 0.707, 1.0, 1.414, 2.0)


def label_sums(labels: Tensor, task: Task, outputs: int) -> Tensor:
    """Summarise labels (B,) or (B, O), for the prior, float64.

    Regression: count, mean, sum of squared deviations from it. Classes: (K,) count of each. Several
    labels: (1 + K,) count, then how often each is present.
    """
    match task:
        case Task.regression:
            moments = FeatureMoments.of_rows(labels.numpy())
            return torch.tensor([moments.count, moments.mean, moments.squares], dtype=torch.float64)
        case Task.classification:
            return torch.bincount(labels.long(), minlength=outputs).double()
        case Task.multilabel:
            labels = labels.double()
            return torch.cat([labels.new_tensor([len(labels)]), labels.sum(dim=0)])


def pool_label_sums(sums: Iterable[Tensor], task: Task) -> Tensor:
    """Return the label sums of several clients' items together, at least one client's."""
    if task is not Task.regression:
        return reduce(torch.add, sums)
    moments = reduce(FeatureMoments.merge, (FeatureMoments(*own.numpy()) for own in sums))
    return torch.tensor([moments.count, moments.mean, moments.squares], dtype=torch.float64)


def variance_of(sums: Tensor) -> float:
    """Return the variance of numbers from their label sums; 0 where they are all equal."""
    count, mean, squares = sums.tolist()
    variance = squares / max(count, 1)
    return variance if variance > (CONSTANT * mean) ** 2 else 0.0


def prior_of(sums: Tensor, task: Task) -> Tensor:
    """Turn pooled label sums into the prior, float64; of classes and labels smoothed by one item.

    Regression: (2,) mean and variance; 1 where all numbers are equal, as nothing else gives a unit.
    Classes: (K,) log-probabilities. Several labels: (K,) logits.
    """
    match task:
        case Task.regression:
            return torch.stack([sums[1], sums.new_tensor(variance_of(sums) or 1.0)])
        case Task.classification:
            return torch.log((sums + 1 / len(sums)) / (sums.sum() + 1))
        case Task.multilabel:
            return torch.logit((sums[1:] + 0.5) / (sums[0] + 1))


def own_prior(sums: Tensor, prior: Tensor, task: Task) -> Tensor:
    """Return the prior (K,) of one client's classes or labels, from its label sums.

    It is smoothed by one item that follows the `prior` of all clients.
    """
    if task is Task.multilabel:
        return torch.logit((sums[1:] + prior.sigmoid()) / (sums[0] + 1))
    counts = F.pad(sums, (0, len(prior) - len(sums)))
    return torch.log((counts + prior.exp()) / (counts.sum() + 1))


def standardise(labels: LabelArray, prior: Tensor, task: Task) -> LabelArray:
    """Return numbers (B,) as deviations of the prior from its mean, float32; else the labels.

    `common.model.predict.in_label_units` undoes it.
    """
    if task is not Task.regression:
        return labels
    mean, variance = prior.tolist()
    deviations: NDArray[np.float64] = np.subtract(labels, mean, dtype=np.float64)
    return (deviations / math.sqrt(variance)).astype(np.float32)


def calibration_sums(outputs: Tensor, labels: Tensor, prior: Tensor, task: Task) -> Tensor:
    """Summarise predictions on labelled items, float64.

    Numbers: n and the sums of y, y^2, p, p^2, p y, of labels y that are standardised. Otherwise: n,
    then the summed log-loss at each of `INVERSE_TEMPERATURES`.

    Of outputs (B, O) from the decoder, labels (B,) or (B, O), and the prior of `prior_of`, which
    numbers do not need; B may be 0.
    """
    if task is Task.regression:
        p, y = outputs[:, 0].double(), labels.double()
        return torch.stack([torch.ones_like(y), y, y**2, p, p**2, p * y]).sum(dim=1)
    losses = [
        _log_loss(temper(outputs.double(), prior, beta, task), labels, task)
        for beta in INVERSE_TEMPERATURES
    ]
    return torch.stack([torch.tensor(float(len(labels)), dtype=torch.float64), *losses])


def label_agreement(
    outputs: Tensor, labels: Tensor, sums: Tensor, prior: Tensor, task: Task
) -> Tensor:
    """Summarise whether a client's labels belong to its features, according to the received model.

    Compares two hypotheses about the client's validation items: labels follow the model, moved to
    the client's own shares of the labels; or they follow those shares whatever the features. The
    ratio is neutral for a client with a single class, and negative for one whose labels were
    permuted. Unlike a loss it cannot be improved by easy labels.

    Of outputs (B, O), labels (B,) or (B, O), the sums of the client's train labels, see
    `label_sums`, and the prior of all clients. Returns the log-likelihood ratio of the two
    hypotheses, float64, summed over items, at each of `INVERSE_TEMPERATURES`; nothing for numbers,
    for which `calibration_sums` says as much.
    """
    if task is Task.regression:
        return outputs.new_zeros(0, dtype=torch.float64)
    own = own_prior(sums, prior, task)
    scores = [
        temper(outputs.double(), prior, beta, task) - prior + own for beta in INVERSE_TEMPERATURES
    ]
    by_shares = _log_loss(own.expand(len(outputs), -1), labels, task)
    return torch.stack([by_shares - _log_loss(own_scores, labels, task) for own_scores in scores])


def agreement_size(task: Task) -> int:
    """Length of the vector that `label_agreement` returns."""
    return 0 if task is Task.regression else len(INVERSE_TEMPERATURES)


def calibration_size(task: Task) -> int:
    """Length of the vector that `calibration_sums` returns."""
    return 6 if task is Task.regression else 1 + len(INVERSE_TEMPERATURES)


def no_calibration_sums(task: Task) -> Tensor:
    """Return the sums of no items: the empty sum."""
    return torch.zeros(calibration_size(task), dtype=torch.float64)


def temper(outputs: Tensor, prior: Tensor, beta: float, task: Task) -> Tensor:
    """Move logits towards the prior: prior + beta (outputs - prior), (B, K) in log space."""
    scores = outputs.log_softmax(dim=1) if task is Task.classification else outputs
    return prior + beta * (scores - prior)


def _log_loss(scores: Tensor, labels: Tensor, task: Task) -> Tensor:
    if task is Task.classification:
        return F.cross_entropy(scores, labels, reduction="sum")
    return F.binary_cross_entropy_with_logits(scores, labels.double(), reduction="sum")
