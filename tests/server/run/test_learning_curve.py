"""The picture: a PNG of its size, that shows what is given."""

import io
import struct
from typing import Any

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from common.task import Task
from server.records import RoundRecord
from server.run.learning_curve import learning_curve


def rounds(count: int, *, metric: str = "corr", **losses: list[float | None]) -> list[RoundRecord]:
    """Make records; `losses` are a modality's, round by round, None where it did not reply."""
    names = list(losses) or ["audio", "vision"]
    records = []
    for n in range(count):
        loss = {name: losses[name][n] if losses else 1 / (n + 1) for name in names}
        records.append(
            RoundRecord(
                n + 1,
                {name: value for name, value in loss.items() if value is not None},
                validation={
                    name: {metric: 0.1 * n, "other": 5.0} for name in ["multimodal", *names]
                },
            )
        )
    return records


@pytest.fixture
def plotted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Record what is drawn, by label."""
    drawn: dict[str, list[tuple[list[float], list[float]]]] = {}
    plot = matplotlib.axes.Axes.plot

    def record(self: Any, x: list[float], y: list[float], **style: Any) -> Any:
        drawn.setdefault(style["label"], []).append((list(x), list(y)))
        return plot(self, x, y, **style)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", record)
    return drawn


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[12:16] == b"IHDR"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("count", [1, 40])
def test_is_a_png_of_its_size_with_something_on_it(count: int) -> None:
    png = learning_curve(rounds(count), Task.regression)
    assert size_of(png) == (1500, 600)
    pixels = imread(io.BytesIO(png))[..., :3]
    assert pixels.shape[:2] == (600, 1500)
    # Both halves are drawn on.
    for half in (pixels[:, :750], pixels[:, 750:]):
        assert 0.01 < np.mean((half < 0.9).any(axis=2)) < 0.5


def test_draws_losses_and_scores_of_every_round(
    plotted: dict[str, list[tuple[list[float], list[float]]]],
) -> None:
    learning_curve(rounds(3), Task.regression)
    assert set(plotted) == {"multimodal", "audio", "vision"}
    assert [y for _, y in plotted["multimodal"]] == [[0.0, 0.1, 0.2]]
    scores, losses = plotted["audio"]
    assert scores == ([1, 2, 3], [0.0, 0.1, 0.2])
    assert losses == ([1, 2, 3], [1.0, 1 / 2, 1 / 3])


def test_round_without_a_loss_is_a_gap(
    plotted: dict[str, list[tuple[list[float], list[float]]]],
) -> None:
    png = learning_curve(
        rounds(3, audio=[0.5, None, 0.25], vision=[1.0, 1.0, 1.0]), Task.regression
    )
    assert size_of(png) == (1500, 600)
    np.testing.assert_array_equal(plotted["audio"][1][1], [0.5, np.nan, 0.25])


def test_modality_that_never_replied_does_not_spoil_the_picture() -> None:
    png = learning_curve(rounds(2, audio=[None, None], vision=[1.0, 0.5]), Task.regression)
    assert size_of(png) == (1500, 600)


def test_loss_that_is_given_as_none_is_a_gap() -> None:
    records = rounds(2)
    records[0].train_loss["audio"] = None
    assert size_of(learning_curve(records, Task.regression)) == (1500, 600)


@pytest.mark.parametrize(
    ("task", "metric"),
    [(Task.classification, "accuracy"), (Task.multilabel, "f1")],
)
def test_metric_is_that_of_the_task(
    task: Task,
    metric: str,
    plotted: dict[str, list[tuple[list[float], list[float]]]],
) -> None:
    learning_curve(rounds(2, metric=metric), task)
    assert plotted["multimodal"] == [([1, 2], [0.0, 0.1])]


def test_same_rounds_give_the_same_bytes() -> None:
    assert learning_curve(rounds(2), Task.regression) == learning_curve(rounds(2), Task.regression)
