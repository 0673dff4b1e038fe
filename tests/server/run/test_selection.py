"""The best round is the first with the least loss, and patience counts from it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import SELECTION
from common.task import Task
from server.records import RoundRecord
from server.run.selection import best_round, diverged, out_of_patience

losses = st.sampled_from([0.5, 1.0, 1.5, math.inf, math.nan])


def records(losses: list[float], task: Task = Task.regression) -> list[RoundRecord]:
    """Make rounds with these losses of all modalities together, and better ones of another."""
    scores = [
        {"multimodal": {SELECTION[task]: loss, "corr": 1 - 0.1 * n}, "audio": {SELECTION[task]: -n}}
        for n, loss in enumerate(losses)
    ]
    return [RoundRecord(n, validation=each) for n, each in enumerate(scores, start=1)]


@given(st.lists(losses, min_size=1, max_size=6), st.sampled_from(list(Task)))
def test_no_round_is_better_and_none_before_is_as_good(values: list[float], task: Task) -> None:
    best = best_round(records(values, task), task).round - 1
    ordered = [math.inf if math.isnan(each) else min(each, 1e9) for each in values]
    assert ordered[best] == min(ordered) and min(ordered) not in ordered[:best]


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 1.0], 1, True),
        ([1.0, 0.9], 1, False),
        ([1.0, 0.9, 2.0, 0.95], 2, True),
        ([1.0, 0.9, 2.0, 0.95], 3, False),
        ([1.0, 0.9, 2.0, 0.95, 0.9], 3, True),
        ([math.nan, math.nan], 1, True),
        ([math.nan, 5.0], 1, False),
        ([1.0, 2.0, 3.0, 4.0], None, False),
    ],
)
def test_patience_ends_after_so_many_rounds_without_a_better_one(
    values: list[float], patience: int | None, ended: bool
) -> None:
    assert out_of_patience(records(values), Task.regression, patience) is ended


@pytest.mark.parametrize(
    ("losses", "far"),
    [
        ([0.7, 0.6, 0.5], False),
        ([0.4, 0.9], False),
        ([0.9, 1.2], False),  # noise
        ([0.4, 1.2], True),
        ([53.0, 2.1], True),
        ([53.0, 0.9], False),  # it came back
        ([], False),
    ],
)
@pytest.mark.parametrize("task", Task)
def test_training_that_ends_worse_than_it_began_diverged(
    losses: list[float], far: bool, task: Task
) -> None:
    nothing = {Task.regression: 1.0, Task.classification: math.log(5), Task.multilabel: math.log(2)}
    scaled = [loss * nothing[task] for loss in losses]
    rounds = [
        RoundRecord(number, train_loss={"audio": loss, "vision": 0.5 * nothing[task]})
        for number, loss in enumerate(scaled, start=1)
    ]
    assert diverged(rounds, task, outputs=5) == ({"audio": scaled[-1]} if far else {})
