"""What the clients' labels are together, and how much they differ from one client to another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.messages import ClientDescription
from common.model.calibration import label_counts, label_shares, prior_of
from common.task import Task


@dataclass(frozen=True)
class PooledLabels:
    """The labels of all clients: prior and shares of `common.model.calibration`; `label_skew`."""

    prior: Tensor
    shares: Tensor
    skew: float


def pool_labels(
    clients: Iterable[ClientDescription], task: Task, outputs: int, bins: int
) -> PooledLabels:
    """Pool the labels of clients, at least one.

    `outputs` are those of the model; `bins` those in which numbers are counted, if they are.

    Raises
    ------
    UserError
        If a client's labels are of another kind than the server's evaluation data, or are some
        that these do not know.
    """
    size = {Task.regression: 3 + bins, Task.multilabel: outputs + 1}.get(task, outputs)
    sums = []
    for client in clients:
        own = client.label_sums
        if client.task is not task:
            raise UserError(
                f"client {client.key} has labels for task={client.task}, and the evaluation data "
                f"for task={task}"
            )
        # A client may never have seen the last classes.
        fewer = len(own) < size and task is Task.classification
        if len(own) != size and not fewer:
            raise UserError(
                f"client {client.key} has labels for {len(own)} outputs, the evaluation data for "
                f"{size}"
            )
        sums.append(F.pad(own, (0, size - len(own))))
    total = reduce(torch.add, sums)
    if task is Task.multilabel:
        # Each label by itself, present against absent.
        sides = [torch.stack([own[0] - own[1:], own[1:]], dim=1) for own in sums]
        skews = [label_skew([side[label] for side in sides]) for label in range(outputs)]
        skew = sum(skews) / len(skews)
    else:
        skew = label_skew([label_counts(own, task) for own in sums])
    return PooledLabels(prior_of(total, task), label_shares(total, task), skew)


def label_skew(counts: Sequence[Tensor]) -> float:
    """Measure how much the label says about the client.

    The mutual information of client and label as a share of the label's entropy, less what chance
    alone would make of so few items (Miller and Madow 1955: (C-1)(K-1) / 2N nats for C clients, K
    labels that occur, N items). `counts` are (K,) of each client. 0: all clients have the same
    labels, or no two can be compared; 1: each has its own.
    """
    table = torch.stack(list(counts)).double()
    table = table[table.sum(dim=1) > 0][:, table.sum(dim=0) > 0]
    clients, labels = table.shape
    if clients < 2 or labels < 2:
        return 0.0
    items = table.sum()
    joint = table / items
    expected = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    information = torch.special.xlogy(joint, joint / expected).sum()
    share = joint.sum(dim=0)
    entropy = -(share * share.log()).sum()
    chance = (clients - 1) * (labels - 1) / (2 * items)
    skew: float = ((information - chance) / entropy).clamp(0, 1).item()
    return skew
