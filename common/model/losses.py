"""The training loss of each task."""

import torch.nn.functional as F
from torch import Tensor

from common.task import Task


def task_loss(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the mean loss of outputs (B, O) on labels (B,), or (B, O) of 0/1 for several.

    Numbers take the absolute error, classes the cross-entropy, several labels the binary
    cross-entropy of each.
    """
    match task:
        case Task.regression:
            return F.l1_loss(outputs[:, 0], labels)
        case Task.classification:
            return F.cross_entropy(outputs, labels)
        case Task.multilabel:
            return F.binary_cross_entropy_with_logits(outputs, labels)
