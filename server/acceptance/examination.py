"""Whose update makes the model worse on the coordinator's own items.

With l_i the loss of a modality's outputs on item i, at the scale or temperature that suits them
best and with offsets that make the predicted labels as many as there are, and H the mean loss
without features, a round is harmful where for a modality that `FEW_ITEMS` items have at least, with
d_i the rise of l_i over the round,

    mean(d) > share H    and    mean(d) > SURE sd(d) / sqrt(n),    share = ``max_loss_rise``

Of a harmful round updates are left out one by one, each time the one without which the losses, in
units of H and summed over the modalities, are least, until what is left does no harm. So whatever
sites send, a round raises no such loss by more than a share of H, chance apart. Scale and offsets
are left open because honest training on few items makes outputs too sure of themselves, and on
labels of a kind makes that kind likelier: of that nobody is to blame.

To hinder learning is no such rise. So updates that had to be scaled down (`screening`), and those
that go against the others of the round, are tried: merged with all and without them, which gives
d_i, by how much they raise the loss of their own modality. A client's d of all rounds is evidence;
where its mean is above share H / 5, and above TRIED sd(d) / sqrt(n), it is left out.

Notation: N items, K classes or labels, O outputs.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clients import ClientKey
from common.messages import Uplink
from common.model.calibration import INVERSE_TEMPERATURES, temper
from common.model.fit_joint import FEW_ITEMS, Opinions
from common.model.ha_fedformer import ModelArrays
from common.task import Task

#: Standard errors that the rise of a round, and that by one client over its rounds, has to exceed.
SURE, TRIED = 4.0, 2.5

#: What one client may raise a loss by is this part of what a round may.
_FIFTH = 5

#: Steps of the fixed point that gives classes their offsets.
_OFFSET_STEPS = 10

#: Cosine between a client's change and the sum of the others' below which it goes against them.
AGAINST = -0.1

WORSE = (
    "its updates make predictions worse: they raised the loss of {} on the coordinator's items by "
    "{:.1%} of what it is without features, on average over its rounds"
)

#: Modality to (n,) losses of the items that have it, in units of the prior's mean loss.
Losses = Mapping[str, Tensor]

#: A model, with whatever else belongs to it.
Model = TypeVar("Model")


def item_losses(items: Opinions, prior: Tensor, task: Task) -> dict[str, Tensor]:
    """Return the losses of each modality that `FEW_ITEMS` items have, and on which labels vary.

    `prior` is that of `common.model.calibration.prior_of`.
    """
    losses = {}
    for name, present in items.present.items():
        if int(present.sum()) < FEW_ITEMS:
            continue
        outputs, labels = items.outputs[name][present].double(), items.labels[present]
        if task is Task.regression:
            own, alone = _residuals(outputs[:, 0], labels.double())
        else:
            own, alone = _log_losses(outputs, labels, prior, task)
        if alone > 0:
            losses[name] = own / alone
    return losses


def harmed(before: Losses, after: Losses, share: float) -> str | None:
    """Return the modality whose loss rises most, of those that a round makes worse; or None."""
    rises = {}
    for name in before.keys() & after.keys():
        rise = after[name] - before[name]
        mean, error = rise.mean().item(), rise.std().item() / math.sqrt(len(rise))
        if not mean <= max(share, SURE * error):
            rises[name] = mean
    return max(rises, key=lambda name: rises[name], default=None)


@dataclass(frozen=True)
class Evidence:
    """By how much a client's updates raised the loss of items: how many, the sum, the squares'."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, rises: Tensor) -> "Evidence":
        """Add those of a round."""
        return Evidence(
            self.count + len(rises),
            self.total + rises.sum().item(),
            self.squares + rises.square().sum().item(),
        )

    @property
    def mean(self) -> float:
        """The mean rise."""
        return self.total / self.count

    @property
    def errors(self) -> float:
        """How many standard errors the mean is above 0."""
        variance = self.squares - self.total**2 / self.count
        return self.total / math.sqrt(variance) if variance > 0 else 0.0


def suspects(
    updates: Sequence[Uplink], sent: ModelArrays, clipped: Collection[ClientKey]
) -> set[ClientKey]:
    """Return whose update had to be scaled down, or goes against the others of its round.

    Encoders are compared inside a modality. `sent` is what the changes are measured from.
    """
    found = {uplink.key for uplink in updates if uplink.key in clipped}
    changes = {uplink.key: _changes(uplink, sent) for uplink in updates}
    totals: dict[str, Tensor] = {}
    for key, parts in changes.items():
        for part, change in zip((key.modality, ""), parts, strict=True):
            totals[part] = totals[part] + change if part in totals else change
    for key, (encoder, decoder) in changes.items():
        others = totals[key.modality] - encoder, totals[""] - decoder
        dot = sum(
            (own @ other).item() for own, other in zip((encoder, decoder), others, strict=True)
        )
        size = math.hypot(*map(_norm, (encoder, decoder))) * math.hypot(*map(_norm, others))
        if dot < AGAINST * size:
            found.add(key)
    return found


@dataclass
class Examination:
    """Finds the updates of a round that do harm; remembers the evidence against clients."""

    share: float
    evidence: dict[ClientKey, Evidence] = field(default_factory=dict)

    def examine(
        self,
        merged: Model,
        updates: Sequence[Uplink],
        merge: Callable[[Sequence[Uplink]], Model],
        losses_of: Callable[[Model], Losses],
        before: Losses,
        suspected: Collection[ClientKey],
    ) -> tuple[Model, list[tuple[ClientKey, str]]]:
        """Return a round's result without the updates that do harm; whose they are, and why.

        `merged` is what `merge` makes of all the `updates`; of none it makes the model that the
        round began with, whose losses are `before`.
        """
        left, blamed, losses = list(updates), [], losses_of(merged)
        while left and (name := harmed(before, losses, self.share)):
            tried = []
            for index in range(len(left)):
                without = merge([*left[:index], *left[index + 1 :]])
                tried.append((index, without, losses_of(without)))
            index, merged, fewer = min(tried, key=lambda one: _total(one[2]))
            blamed.append((left.pop(index).key, _why(name, before, losses, fewer)))
            losses = fewer
        guilty = set()
        for uplink in left:
            key = uplink.key
            if key not in suspected or key.modality not in losses:
                continue
            without = merge([other for other in left if other is not uplink])
            rises = losses[key.modality] - losses_of(without)[key.modality]
            self.evidence[key] = found = self.evidence.get(key, Evidence()).add(rises)
            if found.mean > self.share / _FIFTH and found.errors > TRIED:
                guilty.add(key)
                blamed.append((key, WORSE.format(key.modality, found.mean)))
        if guilty:
            merged = merge([uplink for uplink in left if uplink.key not in guilty])
        return merged, blamed


def _changes(uplink: Uplink, sent: ModelArrays) -> tuple[Tensor, Tensor]:
    """Return how far encoder and decoder moved, (P,) each."""
    parts = (uplink.encoder, sent.encoders[uplink.key.modality]), (uplink.decoder, sent.decoder)
    encoder, decoder = (part.mean - part.layout.join(start) for part, start in parts)
    return encoder, decoder


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _total(losses: Losses) -> float:
    total = math.fsum(values.mean().item() for values in losses.values())
    return total if math.isfinite(total) else math.inf


def _why(name: str, before: Losses, together: Losses, without: Losses) -> str:
    explained = [1 - losses[name].mean() for losses in (together, without, before)]
    with_it, without_it, began = (f"{share:.0%}" for share in explained)
    return (
        f"its updates make predictions worse: of what there is to predict on the coordinator's "
        f"items {name} explains {with_it} with this one and {without_it} without it, and explained "
        f"{began} before the round"
    )


def _residuals(outputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Return the squared residuals (N,) of the best line that does not fall, and of none."""
    y, p = labels - labels.mean(), outputs - outputs.mean()
    scale = p.square().sum()
    slope = (p @ y / scale).clamp(min=0.0) if scale > 0 else scale
    return (y - slope * p).square(), y.square().mean().item()


def _log_losses(outputs: Tensor, labels: Tensor, prior: Tensor, task: Task) -> tuple[Tensor, float]:
    """Return the log-losses (N,) at the best temperature, and those of no features, on average."""
    tried = [
        _log_loss(_offset(temper(outputs, prior, beta, task), labels, task), labels, task)
        for beta in INVERSE_TEMPERATURES
    ]
    return min(tried, key=lambda losses: losses.mean().item()), tried[0].mean().item()


def _offset(scores: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Move logits (N, K) so that each class, or label, is predicted as often as it occurs."""
    many = task is Task.multilabel
    found = labels.double() if many else F.one_hot(labels.long(), scores.shape[1]).double()
    share = (found.sum(dim=0) + 0.5) / (len(found) + 1)
    for _ in range(_OFFSET_STEPS):
        predicted = (scores.sigmoid() if many else scores.softmax(dim=1)).mean(dim=0)
        predicted = predicted.clamp(1e-9, 1 - 1e-9)
        step = share.logit() - predicted.logit() if many else share.log() - predicted.log()
        scores = scores + step
    return scores


def _log_loss(scores: Tensor, labels: Tensor, task: Task) -> Tensor:
    if task is Task.classification:
        return F.cross_entropy(scores, labels.long(), reduction="none")
    of_labels = F.binary_cross_entropy_with_logits(scores, labels.double(), reduction="none")
    return of_labels.sum(dim=1)
