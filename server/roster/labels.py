"""What the clients' labels are together, and how much they differ from one client to another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.labels import names_fault
from common.messages import ClientDescription
from common.model.calibration import pool_label_sums, prior_of, variance_of
from common.task import Task


@dataclass(frozen=True)
class PooledLabels:
    """The labels of all clients together."""

    prior: Tensor  # see `common.model.calibration.prior_of`
    # How much they differ between clients, from 0 to 1: `label_skew`, `number_skew`.
    skew: float


def _size(task: Task, outputs: int) -> int:
    """Return the length of the label sums of a model's outputs."""
    return {Task.regression: 3, Task.multilabel: outputs + 1}.get(task, outputs)


def kind_fault(
    client: ClientDescription, task: Task, outputs: int, names: Sequence[str] = ()
) -> str | None:
    """Say why a client's labels are not for a model of so many outputs, or None.

    `names` are what the evaluation data call the classes or labels.
    """
    if client.task is not task:
        return f"labels for task={client.task}, and the evaluation data for task={task}"
    found, expected = len(client.label_sums), _size(task, outputs)
    # A client may never have seen the last classes.
    fewer = found < expected and task is Task.classification
    if found != expected and not fewer:
        return f"labels for {found} outputs, the evaluation data for {expected}"
    if fault := names_fault(task, client.label_names, found, names):
        return f"{fault} in the evaluation data; prepare both with the same classes=[…]"
    return None


def pool_labels(clients: Iterable[ClientDescription], task: Task, outputs: int) -> PooledLabels:
    """Pool the labels of clients, at least one, that have no `kind_fault`."""
    size = _size(task, outputs)
    sums = [F.pad(own.label_sums, (0, size - len(own.label_sums))) for own in clients]
    match task:
        case Task.regression:
            skew = number_skew(sums)
        case Task.classification:
            skew = label_skew(sums)
        case Task.multilabel:
            # Each label by itself, present against absent.
            sides = [torch.stack([own[0] - own[1:], own[1:]], dim=1) for own in sums]
            skews = [label_skew([side[label] for side in sides]) for label in range(outputs)]
            skew = sum(skews) / len(skews)
    return PooledLabels(prior_of(pool_label_sums(sums, task), task), skew)


def own_skew(sums: Tensor, prior: Tensor, task: Task) -> float:
    """Measure how unlike a client's labels are to those of all, from their label sums and prior.

    Of classes the divergence of theirs from the prior as a share of the prior's entropy, of several
    labels the mean of that over the labels, of numbers the squared distance of the means as a share
    of the prior's variance; less what chance alone would make of so few items. 0: like all.
    """
    if (count := float(sums[0] if task is not Task.classification else sums.sum())) <= 0:
        return 0.0
    if task is Task.regression:
        mean, variance = prior.tolist()
        distance = (float(sums[1]) - mean) ** 2 - variance / count
        return max(distance / variance, 0.0) if variance > 0 else 0.0
    if task is Task.classification:
        own, every = F.pad(sums, (0, len(prior) - len(sums)))[None] / count, prior.exp()[None]
    else:
        own, every = (torch.stack([p, 1 - p], dim=1) for p in (sums[1:] / count, prior.sigmoid()))
    entropy = -torch.special.xlogy(every, every).sum(dim=1)
    divergence = torch.special.xlogy(own, own / every).sum(dim=1)
    chance = (own.shape[1] - 1) / (2 * count)
    skew: float = ((divergence - chance) / entropy).mean().clamp(min=0.0).item()
    return skew


def number_skew(sums: Sequence[Tensor]) -> float:
    """Measure how much the client says about a number: adjusted R^2 of the label on the client.

    ``1 - (W / (N - C)) / (S / (N - 1))`` for C clients with N items, S the sum of squared
    deviations of their labels from the common mean, W from the client's own. `sums` are the label
    sums of each client. 0: no more than chance makes of so many clients, or all labels are equal,
    or no client has two items; 1: labels differ from client to client and not inside of one.
    """
    pooled = pool_label_sums(sums, Task.regression)
    count, _, total = pooled.tolist()
    within = sum(float(own[2]) for own in sums)
    free = count - sum(bool(own[0] > 0) for own in sums)
    if free <= 0 or variance_of(pooled) == 0:
        return 0.0
    skew: float = min(max(1 - within / free * (count - 1) / total, 0.0), 1.0)
    return skew


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
