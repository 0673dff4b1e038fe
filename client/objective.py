"""The loss that a client minimises: the task's, corrected for skewed labels.

A client whose labels are skewed learns its own prior as much as its features. With p_i its prior
and p that of all clients, the local loss, and nothing else, is corrected:

- classes: log(p_i / p) is added to the logits (logit adjustment, Menon et al. 2021), so that they
  themselves learn what the pooled prior would give; several labels: the same in log-odds;
- numbers: items are weighted by p / p_i, both taken to be Gaussian, at most `MAX_WEIGHT` either
  way before the weights are scaled to a mean of 1.

Notation: N train items, B items of a batch, O outputs, K classes or labels.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.model.calibration import label_sums, own_prior
from common.model.ha_fedformer import task_loss
from common.task import Task

#: Largest factor by which an item may count more or less than average.
MAX_WEIGHT = 5.0


@dataclass(frozen=True)
class DensityRatio:
    """Weights of standardised numbers: N(z; 0, 1) / N(z; the client's mean and deviation)."""

    mean: float
    deviation: float
    scale: float = 1.0

    @classmethod
    def of(cls, labels: Tensor) -> "DensityRatio | None":
        """Return the weights, of mean 1 on labels (N,); None where these are all equal."""
        if labels.min() == labels.max():
            return None
        exact = labels.double()
        ratio = cls(exact.mean().item(), exact.std(correction=0).item())
        return cls(ratio.mean, ratio.deviation, 1 / ratio(exact).mean().item())

    def __call__(self, labels: Tensor) -> Tensor:
        """Return the weights (B,) of labels (B,)."""
        squares = ((labels - self.mean) / self.deviation) ** 2 - labels**2
        most = math.log(MAX_WEIGHT)
        log_ratio = (math.log(self.deviation) + squares / 2).clamp(-most, most)
        return self.scale * log_ratio.exp()


@dataclass(frozen=True)
class Objective:
    """The local loss."""

    task: Task
    # (K,) added to the logits; None for no correction.
    offsets: Tensor | None = None
    # Of numbers; None for no correction.
    weights: DensityRatio | None = None

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, outputs (B, O) and labels (B,) or (B, O)."""
        if self.weights is not None:
            errors = F.l1_loss(outputs[:, 0], labels, reduction="none")
            return (self.weights(labels) * errors).mean()
        if self.offsets is not None:
            outputs = outputs + self.offsets.to(outputs)
        return task_loss(outputs, labels, self.task)


def corrected_objective(labels: Tensor, prior: Tensor, task: Task) -> Objective:
    """Build the objective of a client that corrects for how its labels are skewed.

    Of its train labels (N,) or (N, K), standardised, and the prior of all clients' labels.
    """
    if task is Task.regression:
        return Objective(task, weights=DensityRatio.of(labels))
    sums = label_sums(labels, task, len(prior))
    return Objective(task, own_prior(sums, prior, task) - prior)
