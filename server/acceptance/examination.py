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

To hinder learning is no such rise. So updates that had to be scaled down (`screening`), those that
go against the others of the round, and those of clients against whom there is evidence already are
tried: merged with all and without them, which gives d_i, by how much they raise the loss of their
own modality, and with s_i and s'_i the scores with and without them

    g_i = -(dl_i / ds_i) (s'_i - s_i) >= d_i,

by how much the loss falls to first order on the way to a model without them. Both of all rounds are
evidence. With e = H - mean(l'), what is explained without it, a client is left out where

    mean(d) > share e    and    mean(g) > TRIED sd(g) / sqrt(n).

Of one whose change is `ODD` times what is usual and more, mean(d) > 0 and TRIED_ODD are enough. A
client whose labels are unlike those of all is not tried: honest training on few classes undoes what
others learn of the rest.
Where a site undoes what others learn from nothing, g is twice d, at the same deviation: it is found
after a quarter of the items. If its update does not matter, g has mean 0.

Notation: N items, K classes or labels, O outputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

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

#: A share of the prior's loss that is nothing.
_NOTHING = 1e-3

#: How many times what is usual a change is odd; standard errors that then are enough.
ODD, TRIED_ODD = 10.0, 1.0

#: Steps of the fixed point that gives classes their offsets.
_OFFSET_STEPS = 10

#: Cosine between a client's change and the sum of the others' below which it goes against them.
AGAINST = -0.1

WORSE = (
    "its updates make predictions worse: of what is explained of the coordinator's items by {} "
    "they undo {:.0%}, on average over its rounds"
)


class Fit(NamedTuple):
    """What outputs say of the n items that have a modality, at the scale and offsets they need."""

    #: (n,), in units of the prior's mean loss.
    losses: Tensor
    #: (n, O): a number, or logits.
    scores: Tensor
    #: (n, O), minus the derivatives of the losses by the scores.
    slopes: Tensor

    def descents(self, other: "Fit") -> Tensor:
        """Return (n,) by how much the losses fall to first order on the way to others' scores."""
        return ((other.scores - self.scores) * self.slopes).sum(dim=1)


#: By modality.
Fits = Mapping[str, Fit]

#: A model, with whatever else belongs to it.
Model = TypeVar("Model")


def fit_outputs(items: Opinions, prior: Tensor, task: Task) -> dict[str, Fit]:
    """Return a fit of each modality that `FEW_ITEMS` items have, and on which labels vary.

    `prior` is that of `common.model.calibration.prior_of`.
    """
    fits = {}
    for name, present in items.present.items():
        if int(present.sum()) < FEW_ITEMS:
            continue
        outputs, labels = items.outputs[name][present].double(), items.labels[present]
        if task is Task.regression:
            own, alone = _fit_line(outputs[:, 0], labels.double())
        else:
            own, alone = _fit_logits(outputs, labels, prior, task)
        if alone > 0:
            fits[name] = Fit(own.losses / alone, own.scores, own.slopes / alone)
    return fits


def harmed(before: Fits, after: Fits, share: float) -> str | None:
    """Return the modality whose loss rises most, of those that a round makes worse; or None."""
    rises = {}
    for name in before.keys() & after.keys():
        rise = after[name].losses - before[name].losses
        mean, error = rise.mean().item(), rise.std().item() / math.sqrt(len(rise))
        if not mean <= max(share, SURE * error):
            rises[name] = mean
    return max(rises, key=lambda name: rises[name], default=None)


@dataclass(frozen=True)
class Evidence:
    """Against a client, of n items: sums of d, of e, of g, see above, and of the squares of g."""

    count: float = 0.0
    rise: float = 0.0
    explained: float = 0.0
    descent: float = 0.0
    squares: float = 0.0

    def add(self, together: Fit, without: Fit) -> "Evidence":
        """Add those of a round."""
        descents = together.descents(without)
        return Evidence(
            self.count + len(descents),
            self.rise + (together.losses - without.losses).sum().item(),
            self.explained + (1 - without.losses).sum().item(),
            self.descent + descents.sum().item(),
            self.squares + descents.square().sum().item(),
        )

    @property
    def share(self) -> float:
        """Of what is explained without the client, how much is not with it."""
        return self.rise / max(self.explained, _NOTHING * self.count, _NOTHING)

    @property
    def errors(self) -> float:
        """How many standard errors the mean descent is above 0."""
        variance = self.squares - self.descent**2 / max(self.count, 1.0)
        return self.descent / math.sqrt(variance) if variance > 0 else 0.0


def suspects(
    updates: Sequence[Uplink], sent: ModelArrays, clipped: Mapping[ClientKey, float]
) -> dict[ClientKey, float]:
    """Return whose update had to be scaled down, or goes against the others of its round.

    The value is that of `clipped`, how many times what is usual the change was, or 1. Encoders are
    compared inside a modality. `sent` is what the changes are measured from.
    """
    found = {uplink.key: clipped[uplink.key] for uplink in updates if uplink.key in clipped}
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
            found.setdefault(key, 1.0)
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
        fits_of: Callable[[Model], Fits],
        before: Fits,
        suspected: Mapping[ClientKey, float],
        trial: Callable[[Sequence[Uplink], str], Fits],
    ) -> tuple[Model, list[tuple[ClientKey, str]]]:
        """Return a round's result without the updates that do harm; whose they are, and why.

        `merged` is what `merge` makes of all the `updates`; of none it makes the model that the
        round began with, whose fits are `before`. `trial` returns what some updates would make of
        the fit of one modality.
        """
        left, blamed, fits = list(updates), [], fits_of(merged)
        while left and (name := harmed(before, fits, self.share)):
            tried = []
            for index in range(len(left)):
                without = merge([*left[:index], *left[index + 1 :]])
                tried.append((index, without, fits_of(without)))
            index, merged, fewer = min(tried, key=lambda one: _total(one[2]))
            blamed.append((left.pop(index).key, _why(name, before, fits, fewer)))
            fits = fewer
        on_trial = [
            uplink.key
            for uplink in left
            if uplink.key.modality in fits
            and (uplink.key in suspected or self._is_known(uplink.key))
        ]
        former = dict(self.evidence)
        while True:
            self._try(on_trial, former, left, fits, trial)
            guilty = [key for key in on_trial if self._is_guilty(key, suspected.get(key, 1.0))]
            if not guilty:
                return merged, blamed
            worst = max(guilty, key=lambda key: self.evidence[key].errors)
            blamed.append((worst, WORSE.format(worst.modality, self.evidence[worst].share)))
            on_trial.remove(worst)
            left = [uplink for uplink in left if uplink.key != worst]
            merged = merge(left)
            fits = fits_of(merged)

    def _try(
        self,
        keys: Sequence[ClientKey],
        former: Mapping[ClientKey, Evidence],
        updates: Sequence[Uplink],
        together: Fits,
        trial: Callable[[Sequence[Uplink], str], Fits],
    ) -> None:
        """Add this round's evidence, from the `updates` without each client's, to the former."""
        for key in keys:
            others, name = [uplink for uplink in updates if uplink.key != key], key.modality
            without = trial(others, name)[name]
            self.evidence[key] = former.get(key, Evidence()).add(together[name], without)

    def _is_known(self, key: ClientKey) -> bool:
        return key in self.evidence and self.evidence[key].errors > TRIED_ODD

    def _is_guilty(self, key: ClientKey, times: float) -> bool:
        share, errors = self.evidence[key].share, self.evidence[key].errors
        if times >= ODD:
            return share > 0 and errors > TRIED_ODD
        return share > self.share and errors > TRIED


def _changes(uplink: Uplink, sent: ModelArrays) -> tuple[Tensor, Tensor]:
    """Return how far encoder and decoder moved, (P,) each."""
    parts = (uplink.encoder, sent.encoders[uplink.key.modality]), (uplink.decoder, sent.decoder)
    encoder, decoder = (part.mean - part.layout.join(start) for part, start in parts)
    return encoder, decoder


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _total(fits: Fits) -> float:
    total = math.fsum(fit.losses.mean().item() for fit in fits.values())
    return total if math.isfinite(total) else math.inf


def _why(name: str, before: Fits, together: Fits, without: Fits) -> str:
    explained = [1 - fits[name].losses.mean() for fits in (together, without, before)]
    with_it, without_it, began = (f"{share:.0%}" for share in explained)
    return (
        f"its updates make predictions worse: of what there is to predict on the coordinator's "
        f"items {name} explains {with_it} with this one and {without_it} without it, and explained "
        f"{began} before the round"
    )


def _fit_line(outputs: Tensor, labels: Tensor) -> tuple[Fit, float]:
    """Fit the best line that does not fall; return the mean loss of none, too."""
    y, p = labels - labels.mean(), outputs - outputs.mean()
    scale = p.square().sum()
    slope = (p @ y / scale).clamp(min=0.0) if scale > 0 else scale
    residuals = y - slope * p
    fit = Fit(residuals.square(), (slope * p)[:, None], 2 * residuals[:, None])
    return fit, y.square().mean().item()


def _fit_logits(outputs: Tensor, labels: Tensor, prior: Tensor, task: Task) -> tuple[Fit, float]:
    """Fit the temperature and the offsets; return the mean loss of no features, too."""
    tried = [
        _log_losses(_offset(temper(outputs, prior, beta, task), labels, task), labels, task)
        for beta in INVERSE_TEMPERATURES
    ]
    return min(tried, key=lambda fit: fit.losses.mean().item()), tried[0].losses.mean().item()


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


def _log_losses(scores: Tensor, labels: Tensor, task: Task) -> Fit:
    if task is Task.classification:
        found = F.one_hot(labels.long(), scores.shape[1]).double()
        losses = F.cross_entropy(scores, labels.long(), reduction="none")
        return Fit(losses, scores, found - scores.softmax(dim=1))
    of_labels = F.binary_cross_entropy_with_logits(scores, labels.double(), reduction="none")
    return Fit(of_labels.sum(dim=1), scores, labels.double() - scores.sigmoid())
