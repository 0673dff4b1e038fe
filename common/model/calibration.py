"""What a client reports about its own validation predictions: a few sums, no labels, no items.

Sums add up over clients: *label sums* give the prior, *calibration sums* the quality of a modality,
and *label agreement* tells whether a client's labels belong to its features.

Notation: B items, O outputs, K classes or labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.task import Task

#: Inverse temperatures at which clients report their log-loss; 0 is the prior alone.
INVERSE_TEMPERATURES = (0.0, 0.125, 0.25, 0.354, 0.5, 0.707, 1.0, 1.414, 2.0)


def label_sums(labels: Tensor, task: Task, outputs: int, edges: Tensor | None = None) -> Tensor:
    """Summarise labels (B,) or (B, O), for the prior, float64.

    Regression: count, sum, sum of squares, then the count of each of the K bins with the ascending
    `edges` (K-1,), if given. Classes: (K,) count of each. Several labels: (1 + K,) count, then how
    often each is present.
    """
    match task:
        case Task.regression:
            exact = labels.double()
            sums = torch.stack([exact.new_tensor(len(exact)), exact.sum(), (exact**2).sum()])
            if edges is None:
                return sums
            bins = torch.bucketize(labels, edges.to(labels))
            return torch.cat([sums, torch.bincount(bins, minlength=len(edges) + 1).double()])
        case Task.classification:
            return torch.bincount(labels.long(), minlength=outputs).double()
        case Task.multilabel:
            labels = labels.double()
            return torch.cat([labels.new_tensor([len(labels)]), labels.sum(dim=0)])


def label_counts(sums: Tensor, task: Task) -> Tensor:
    """Take the counts (K,) of bins, classes or present labels out of `label_sums`."""
    return {Task.regression: sums[3:], Task.classification: sums, Task.multilabel: sums[1:]}[task]


def label_shares(sums: Tensor, task: Task) -> Tensor:
    """Return (K,) the smoothed share of each bin or class, or the rate of each label, in (0, 1)."""
    counts = label_counts(sums, task)
    if task is Task.multilabel:
        return (counts + 0.5) / (sums[0] + 1)
    return (counts + 1 / len(counts)) / (counts.sum() + 1)


def own_shares(sums: Tensor, pooled: Tensor, task: Task) -> Tensor:
    """Return a client's shares (K,), smoothed by one item that follows the pooled shares."""
    counts = label_counts(sums, task)
    total = sums[0] if task is Task.multilabel else counts.sum()
    shares: Tensor = (F.pad(counts, (0, len(pooled) - len(counts))) + pooled) / (total + 1)
    return shares


def prior_of(sums: Tensor, task: Task) -> Tensor:
    """Turn pooled label sums into the prior, float64; of classes and labels smoothed by one item.

    Regression: (2,) mean and variance. Classes: (K,) log-probabilities. Several labels: (K,)
    logits.
    """
    match task:
        case Task.regression:
            count, total, squares = sums[:3]
            mean = total / count.clamp(min=1)
            variance = squares / count.clamp(min=1) - mean**2
            return torch.stack([mean, variance.clamp(min=1e-6)])
        case Task.classification:
            return torch.log((sums + 1 / len(sums)) / (sums.sum() + 1))
        case Task.multilabel:
            return torch.logit((sums[1:] + 0.5) / (sums[0] + 1))


def calibration_sums(
    outputs: Tensor, labels: Tensor, prior: Tensor, task: Task, groups: Tensor | None = None
) -> Tensor:
    """Summarise predictions on labelled items, float64.

    Numbers: n and the sums of y, y^2, p, p^2, p y. Otherwise: n, then the summed log-loss at each
    of `INVERSE_TEMPERATURES`.

    The items of a video or a speaker share a level of the label, and a client validates on a
    handful of such groups: levels that agree over so few do so by chance. So for numbers only
    variation within groups counts, around the prior mean, if groups hold two items or more on
    average.

    Parameters
    ----------
    outputs, labels
        (B, O) from the decoder, and (B,) or (B, O); B may be 0.
    prior
        From `prior_of`.
    groups
        (B,) whole numbers; items of equal number share a group. None: items are independent.
    """
    if task is Task.regression:
        p, y = outputs[:, 0].double(), labels.double()
        share = 1.0
        if groups is not None and 0 < 2 * len(names := torch.unique(groups)) <= len(groups):
            members = (groups[:, None] == names[None]).to(p)
            sizes = members.sum(dim=0)
            p, y = (x - members @ (members.T @ x / sizes) + prior[0] for x in (p, y))
            # Each mean that is removed costs one item; the sums shrink with the count.
            share = 1 - len(names) / len(groups)
        ones = torch.ones_like(y)
        sums: Tensor = share * torch.stack([ones, y, y**2, p, p**2, p * y]).sum(dim=1)
        return sums
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
    pooled = prior.exp() if task is Task.classification else prior.sigmoid()
    own = own_shares(sums, pooled, task)
    own_prior = own.log() if task is Task.classification else own.logit()
    scores = [
        temper(outputs.double(), prior, beta, task) - prior + own_prior
        for beta in INVERSE_TEMPERATURES
    ]
    by_shares = _log_loss(own_prior.expand(len(outputs), -1), labels, task)
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
