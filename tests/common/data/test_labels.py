"""Warnings of labels from which little can be learned."""

from pathlib import Path

import numpy as np
import pytest

from common.config import Config, compose
from common.data.federation import load_federation
from common.data.labels import label_warnings
from common.task import Task

NUMBERS = np.random.default_rng(0).normal(size=300)
BOTH = np.arange(300) % 2


@pytest.mark.parametrize("labels", [NUMBERS, 2020 + 5 * NUMBERS, 1e-6 * NUMBERS, 1e6 + NUMBERS * 9])
def test_numbers_of_any_size_are_fine(labels: np.ndarray) -> None:
    assert label_warnings(Task.regression, labels) == ()


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        (Task.regression, np.full(9, 2.5), ["all labels are 2.5: nothing can be learned"]),
        (Task.regression, 2.0 * BOTH - 1, ["all labels are -1 or 1", "task=classification"]),
        (Task.regression, 1.7e9 + 5 * NUMBERS, ["around 1.7e+09", "are 128 apart"]),
        (Task.regression, 1e5 + 0.1 * NUMBERS, ["are 0.00781 apart", "subtract a constant"]),
        (Task.classification, np.arange(300), ["300 classes of 300 items", "are the labels ids"]),
        (Task.multilabel, np.stack([BOTH, 0 * BOTH], 1), ["no item has the label sad"]),
        (Task.multilabel, np.stack([BOTH, 0 * BOTH + 1], 1), ["every item has the label sad"]),
    ],
)
def test_what_labels_are_unlikely_to_mean(task: Task, labels: np.ndarray, words: list[str]) -> None:
    (line,) = label_warnings(task, labels, ("joy", "sad") if task is Task.multilabel else ())
    assert all(word in line for word in words)


def test_a_run_warns_of_its_file(tmp_path: Path) -> None:
    """As preparation does, see there."""
    np.savez(tmp_path / "a.npz", audio=NUMBERS[:, None], label=np.full(300, 7))
    given = ["dataset=file", f"dataset.path={tmp_path}/a.npz", "run_dir=new"]
    (line,) = load_federation(compose(Config, given)).warnings
    assert line.startswith("all labels are 7: ")
