"""Whether a model is worth having: against the labels' mean, and against its best modality alone.

What is compared is a mean over items, see `common.metrics.COMPARED`, on the same test items. Items
of one group, a speaker or a video, are not independent, so the interval of a difference is that of
a mean over groups: ``1.96 sqrt(G / (G - 1) sum_g (sum_{i in g} (d_i - mean d))^2) / N``.

Notation: N items, G groups.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.data.dataset import MultimodalDataset
from common.metrics import COMPARED, Array, ConstantPredictions, compute_metrics, item_scores
from common.task import Task
from server.evaluate import Answer

#: What predicts from no features at all, by the name of its scores, and in words.
CONSTANT = {
    Task.regression: ("the mean", "predicting the mean"),
    Task.classification: ("most frequent", "predicting the most frequent class"),
    Task.multilabel: ("frequencies", "predicting each label's frequency"),
}

#: Of a normal distribution, deviations from the mean within which 95 % lie.
_NINETY_FIVE = 1.959963984540054

#: The least difference that is worth a word.
_VISIBLE = 5e-4


@dataclass(frozen=True)
class Comparison:
    """All modalities together against something else."""

    against: str
    metric: str
    score: float
    other: float
    #: Half the width of the 95 % interval of the difference; None where there is one group only.
    margin: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than noise, and can be seen in its three digits."""
        least = None if self.margin is None else max(self.margin, _VISIBLE)
        return least is not None and abs(self.score - self.other) > least

    def __str__(self) -> str:
        more_is_better = self.metric == COMPARED[Task.classification]
        better = (self.score > self.other) == more_is_better
        said = "no clear difference from"
        if self.is_clear:
            said = "better than" if better else "WORSE than"
        noise = "one group only" if self.margin is None else f"± {self.margin:.3f}"
        figures = f"{self.metric} {self.score:.3f} against {self.other:.3f} ({noise})"
        return f"{said} {self.against}: {figures}"

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Comparison":
        """Return that of a summary; a damaged one raises the error of the wrong access."""
        return cls(*(plain[each.name] for each in fields(cls)))

    def to_json(self) -> dict[str, Any]:
        """Return the object in a summary."""
        return asdict(self) | {"clear": self.is_clear}


def constant_answer(task: Task, prior: Tensor, labels: Array) -> Answer:
    """Predict labels (N,) or (N, K) from the prior of the train labels alone."""
    count = len(labels)
    if task is Task.regression:
        mean, variance = prior.tolist()
        return labels, np.full(count, mean), np.full(count, variance**0.5)
    scores = prior.softmax(dim=0) if task is Task.classification else prior.sigmoid()
    return labels, np.tile(scores.numpy(), (count, 1)), None


def constant_scores(
    task: Task, prior: Tensor, items: MultimodalDataset, sentiment: bool
) -> dict[str, float]:
    """Score `constant_answer` on the items that have any modality."""
    labels = items.labels[items.present()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantPredictions)  # which is what these are
        return compute_metrics(task, *constant_answer(task, prior, labels), sentiment=sentiment)


def compare(
    task: Task, prior: Tensor, answers: Mapping[str, Answer], items: MultimodalDataset
) -> list[Comparison]:
    """Compare ``multimodal`` with the prior, and with the best other answer; `items` are theirs."""
    own: dict[str, Array] = {}
    for title, (truth, predicted, _) in answers.items():
        present = items.present() if title == "multimodal" else items.present([title])
        own[title] = np.full(len(items), np.nan)
        own[title][present] = item_scores(task, truth, predicted)
    together = own.pop("multimodal", None)
    if together is None:
        return []
    constant = item_scores(task, *constant_answer(task, prior, items.labels)[:2])
    compared = [_comparison(CONSTANT[task][1], task, together, constant, items.groups)]
    if len(own) > 1:
        sign = 1 if task is Task.classification else -1
        best = max(own, key=lambda name: sign * np.nanmean(own[name]))
        title = f"{best} alone, the best"
        compared.append(_comparison(title, task, together, own[best], items.groups))
    return compared


def _comparison(
    against: str, task: Task, score: Array, other: Array, groups: NDArray[np.str_]
) -> Comparison:
    there = np.isfinite(score) & np.isfinite(other)
    score, other = score[there], other[there]
    margin = margin_of_mean(score - other, groups[there])
    return Comparison(against, COMPARED[task], float(score.mean()), float(other.mean()), margin)


def margin_of_mean(values: Array, groups: Sequence[str] | NDArray[np.str_]) -> float | None:
    """Return half the width of the 95 % interval of the mean of (N,) values in groups."""
    numbers = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(numbers, weights=values - values.mean())
    if (count := len(sums)) < 2:
        return None
    spread = np.sqrt(count / (count - 1) * (sums**2).sum())
    return float(_NINETY_FIVE * spread / len(values))
