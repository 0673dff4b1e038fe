"""The loss that a client minimises: the task's, corrected for skewed labels.

A client whose labels are skewed learns its own prior as much as its features. With p_i its shares
of the labels and p those of all clients, the local loss, and nothing else, is corrected:

- classes: log(p_i / p) is added to the logits (logit adjustment, Menon et al. 2021), so that they
  themselves learn what the pooled prior would give; several labels: the same in log-odds;
- numbers: items are weighted by p / p_i of their bin, at most `MAX_WEIGHT` either way, on average
  by 1.

Notation: B items, O outputs, K classes, labels or bins.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.model.calibration import label_counts, own_shares
from common.model.ha_fedformer import task_loss
from common.task import Task

#: Largest factor by which an item may count more or less than average.
MAX_WEIGHT = 5.0


@dataclass(frozen=True)
class Objective:
    """The local loss."""

    task: Task
    # (K,) added to the logits; for numbers the weights of the bins; None for no correction.
    offsets: Tensor | None = None
    edges: Tensor | None = None  # (K-1,) of the bins, for numbers

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, outputs (B, O) and labels (B,) or (B, O)."""
        if self.offsets is None:
            return task_loss(outputs, labels, self.task)
        offsets = self.offsets.to(outputs)
        if self.task is not Task.regression:
            return task_loss(outputs + offsets, labels, self.task)
        assert self.edges is not None
        weights = offsets[torch.bucketize(labels, self.edges.to(labels))]
        return (weights * F.l1_loss(outputs[:, 0], labels, reduction="none")).mean()


def local_objective(
    task: Task, sums: Tensor, pooled_shares: Tensor, edges: Tensor | None
) -> Objective:
    """Build a client's objective.

    From the label sums of its train items, the (K,) label shares of all clients, empty for no
    correction (`common.model.calibration`), and the (K-1,) edges of the bins for numbers.
    """
    if len(pooled_shares) == 0:
        return Objective(task)
    own = own_shares(sums, pooled_shares, task)
    match task:
        case Task.classification:
            return Objective(task, torch.log(own / pooled_shares))
        case Task.multilabel:
            return Objective(task, torch.logit(own) - torch.logit(pooled_shares))
        case Task.regression:
            weights = (pooled_shares / own).clamp(1 / MAX_WEIGHT, MAX_WEIGHT)
            counts = label_counts(sums, task)
            return Objective(task, weights * counts.sum() / (weights * counts).sum(), edges)
