"""Whether a model is worth having is said from the same items, with the noise of whole groups."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from common.data.dataset import MultimodalDataset, Sequences
from common.metrics import COMPARED, compute_metrics, item_scores
from common.task import Task
from server.evaluate import Answer
from server.run.verdict import compare, constant_answer, constant_scores, margin_of_mean


def items(labels: NDArray[np.generic], lacking: int = 0) -> MultimodalDataset:
    """Items of one step in two modalities; the last so many lack audio."""
    count = len(labels)
    ids = np.array([f"i{number}" for number in range(count)])
    lengths = {"language": np.ones(count, int), "audio": np.arange(count) < count - lacking}
    sequences = {
        name: Sequences.ragged(np.zeros((int(own.sum()), 1), np.float32), own.astype(int))
        for name, own in lengths.items()
    }
    return MultimodalDataset(ids, ids, labels, sequences)


@pytest.mark.parametrize("task", Task)
def test_what_is_compared_is_the_metric(task: Task) -> None:
    rng = np.random.default_rng(0)
    truth = {
        Task.regression: rng.normal(size=20),
        Task.classification: rng.integers(0, 3, 20),
        Task.multilabel: rng.integers(0, 2, (20, 3)).astype(np.float32),
    }[task]
    predicted = rng.normal(size=20) if task is Task.regression else rng.dirichlet([1, 1, 1], 20)
    scores = item_scores(task, truth, predicted)
    assert scores.shape == (20,)
    expected = compute_metrics(task, truth, predicted)[COMPARED[task]]
    assert scores.mean() == pytest.approx(expected, rel=1e-6)


def test_margin_is_that_of_a_mean_where_each_item_is_its_own_group() -> None:
    values = np.random.default_rng(0).normal(size=50)
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    own = [str(number) for number in range(50)]
    assert margin_of_mean(values, own) == pytest.approx((high - low) / 2)
    # Items that are copies of each other are no further evidence.
    assert margin_of_mean(np.repeat(values, 4), np.repeat(own, 4)) == pytest.approx(
        margin_of_mean(values, own)
    )
    assert margin_of_mean(values, ["a"] * 50) is None


def test_the_constant_is_the_mean_or_the_most_frequent_class() -> None:
    labels = np.array([1.0, 2.0, 3.0, 6.0])
    scores = constant_scores(Task.regression, torch.tensor([3.0, 4.0]), items(labels), False)
    assert scores["mae"] == 1.5 and scores["corr"] == 0.0 and scores["coverage_90"] == 1.0
    classes, shares = np.array([0, 2, 2, 1]), torch.tensor([0.2, 0.3, 0.5]).log()
    scores = constant_scores(Task.classification, shares, items(classes), False)
    assert scores["accuracy"] == 0.5
    assert scores["log_loss"] == pytest.approx(-np.log([0.2, 0.5, 0.5, 0.3]).mean(), rel=1e-6)
    _, values, std = constant_answer(Task.multilabel, torch.zeros(2), np.zeros((3, 2)))
    assert values.tolist() == [[0.5, 0.5]] * 3 and std is None


def test_the_best_modality_is_compared_on_the_items_that_have_it() -> None:
    labels = np.linspace(-1, 1, 40)
    data, audible = items(labels, lacking=10), np.arange(40) < 30
    answers: dict[str, Answer] = {
        "multimodal": (labels, (labels + 0.1).astype(np.float32), None),
        "language": (labels, (labels + 0.5).astype(np.float32), None),
        "audio": (labels[audible], (labels[audible] + 0.1).astype(np.float32), None),
    }
    mean, best = compare(Task.regression, torch.tensor([0.0, 1.0]), answers, data)
    assert (mean.metric, mean.is_clear) == ("mae", True)
    assert mean.score == pytest.approx(0.1, rel=1e-5)
    assert str(mean).startswith("better than predicting the mean: mae 0.100 against 0.513 (± 0.0")
    assert str(best).startswith("no clear difference from audio alone, the best: mae 0.100 against")
    worse = compare(
        Task.regression,
        torch.tensor([0.0, 1.0]),
        {**answers, "multimodal": (labels, np.full(40, 9.0, np.float32), None)},
        data,
    )
    assert all(str(each).startswith("WORSE than") for each in worse)
    assert worse[0].to_json().keys() >= {"against", "score", "other", "margin", "clear"}
    assert not math.isnan(worse[1].other)


def test_rounding_is_no_difference() -> None:
    labels = np.linspace(-1, 1, 40)
    other = (labels + 0.1).astype(np.float32)
    answers: dict[str, Answer] = {
        "multimodal": (labels, other - np.float32(1e-5), None),
        "language": (labels, other, None),
        "audio": (labels, other + 1, None),
    }
    _, best = compare(Task.regression, torch.tensor([0.0, 1.0]), answers, items(labels))
    assert str(best).startswith("no clear difference from language alone")


def test_more_accuracy_is_better() -> None:
    labels = np.array([0, 1] * 20)
    right = np.eye(2, dtype=np.float32)[labels]
    answers: dict[str, Answer] = {
        "multimodal": (labels, right, None),
        "audio": (labels, right, None),
    }
    (only,) = compare(
        Task.classification, torch.log(torch.tensor([0.4, 0.6])), answers, items(labels)
    )
    assert str(only).startswith("better than predicting the most frequent class: accuracy 1.000")
