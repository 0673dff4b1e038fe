"""The picture: a PNG that shows the given rounds."""

import io
from typing import Any

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from common.task import Task
from server.records import RoundRecord
from server.run.console import learning_curve


def rounds(count: int, *, metric: str = "corr", **losses: list[float | None]) -> list[RoundRecord]:
    """Make records; `losses` are a modality's, round by round, None where it did not reply."""
    losses = losses or {name: [1 / (n + 1) for n in range(count)] for name in ("audio", "vision")}
    records = []
    for n in range(count):
        told = {name: each[n] for name, each in losses.items() if each[n] is not None}
        scores = {name: {metric: 0.1 * n, "other": 5.0} for name in ("multimodal", *losses)}
        records.append(RoundRecord(n + 1, told, validation=scores))
    return records


Lines = dict[str, list[tuple[list[float], list[float]]]]


@pytest.fixture
def plotted(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Record what is drawn, by label: scores, then losses."""
    drawn: Lines = {}
    plot = matplotlib.axes.Axes.plot

    def record(self: Any, x: list[float], y: list[float], **style: Any) -> Any:
        drawn.setdefault(style["label"], []).append((list(x), list(y)))
        return plot(self, x, y, **style)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", record)
    return drawn


@pytest.mark.parametrize("count", [1, 40])
def test_is_a_png_with_something_on_both_halves(count: int) -> None:
    png = learning_curve(rounds(count), Task.regression)
    pixels = imread(io.BytesIO(png), format="png")[..., :3]
    assert pixels.shape[:2] == (600, 1500)
    for half in (pixels[:, :750], pixels[:, 750:]):
        assert 0.01 < np.mean((half < 0.9).any(axis=2)) < 0.5
    assert png == learning_curve(rounds(count), Task.regression)


@pytest.mark.parametrize(
    ("task", "metric"),
    [(Task.regression, "corr"), (Task.classification, "accuracy"), (Task.multilabel, "f1")],
)
def test_draws_losses_and_scores_of_every_round(plotted: Lines, task: Task, metric: str) -> None:
    learning_curve(rounds(3, metric=metric), task)
    assert set(plotted) == {"multimodal", "audio", "vision"}
    assert plotted["multimodal"] == [([1, 2, 3], [0.0, 0.1, 0.2])]
    assert plotted["audio"] == [([1, 2, 3], [0.0, 0.1, 0.2]), ([1, 2, 3], [1.0, 1 / 2, 1 / 3])]


def test_round_without_a_loss_is_a_gap(plotted: Lines) -> None:
    records = rounds(3, audio=[0.5, None, 0.25], vision=[1.0, 1.0, 1.0], text=[None] * 3)
    records[0].train_loss["vision"] = None
    learning_curve(records, Task.regression)
    np.testing.assert_array_equal(plotted["audio"][1][1], [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(plotted["vision"][1][1], [np.nan, 1.0, 1.0])
    assert len(plotted["text"]) == 1
