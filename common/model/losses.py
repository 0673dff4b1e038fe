"""The training loss of each task.

Notation: B items, O outputs.
"""

import torch.nn.functional as F
from torch import Tensor

from common.task import Task


def task_loss(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the mean loss of a batch.

    Parameters
    ----------
    outputs
        (B, O) from the decoder.
    labels
        (B,) numbers or classes, or (B, O) of 0/1.
    task
        Regression takes the absolute error, classes the cross-entropy, several labels the binary
        cross-entropy of each.
    """
    match task:
        case Task.regression:
            return F.l1_loss(outputs[:, 0], labels)
        case Task.classification:
            return F.cross_entropy(outputs, labels)
        case Task.multilabel:
            return F.binary_cross_entropy_with_logits(outputs, labels)
