"""Which round of a run is the best, whether further ones are worth it, whether it diverged."""

import math
from collections.abc import Sequence

from common.metrics import SELECTION
from common.task import Task
from server.records import RoundRecord


def best_round(records: Sequence[RoundRecord], task: Task) -> RoundRecord:
    """Return the round whose model predicts the validation items from all modalities best.

    That is the one with the least loss of `SELECTION`, of equals the first; NaN is the greatest.
    There is at least one round.
    """

    def rank(record: RoundRecord) -> tuple[bool, float]:
        loss = record.validation["multimodal"][SELECTION[task]]
        return math.isnan(loss), loss

    return min(records, key=rank)


def out_of_patience(records: Sequence[RoundRecord], task: Task, patience: int | None) -> bool:
    """Whether that many rounds, or more, came after the best of all rounds so far; None: never."""
    if patience is None or not records:
        return False
    return len(records) - best_round(records, task).round >= patience


def diverged(records: Sequence[RoundRecord], task: Task, outputs: int) -> dict[str, float]:
    """Return the modalities whose training diverged, each with its train loss at the end.

    There the loss is above that of a model that learned nothing, 1 deviation of a number, log 2 of
    a label, the log of the number of classes: by half, or after it was less than half as large.
    """
    nothing = {
        Task.regression: 1.0,
        Task.classification: math.log(max(outputs, 2)),
        Task.multilabel: math.log(2),
    }[task]
    losses: dict[str, list[float]] = {}
    for record in records:
        for name, loss in record.train_loss.items():
            losses.setdefault(name, []).append(loss)
    return {
        name: each[-1]
        for name, each in losses.items()
        if each[-1] > nothing and each[-1] > min(1.5 * nothing, 2 * min(each))
    }
