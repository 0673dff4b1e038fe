"""Figures of a round by name."""

from typing import Any

import pytest

from server.tracking.figures import round_figures, summary_figures

SCORES = {"multimodal": {"corr": 0.5, "mae": float("nan")}, "audio": {"corr": 0.25, "mae": None}}
WEIGHTS = {"head.weight": {"audio": 0.4, "vision": 0.6}}


@pytest.mark.parametrize(
    ("record", "figures"),
    [
        ({"round": 3, "train_loss": {"audio": 1.5}}, {"train_loss/audio": 1.5}),
        (
            {"validation": SCORES},
            {"validation/corr/multimodal": 0.5, "validation/corr/audio": 0.25},
        ),
        (
            {"decoder_weights": WEIGHTS},
            {f"decoder_weights/head.weight/{n}": w for n, w in WEIGHTS["head.weight"].items()},
        ),
        ({"rejected": ["audio-0: its disk is full", "late"]}, {"rejected": 2.0}),
        ({"reused": [], "posterior_widths": None}, {"reused": 0.0}),
        ({"privacy": {"epsilon": 2.0, "note": "per client"}}, {"privacy/epsilon": 2.0}),
        ({"bytes_down": 20, "bytes_up": 10}, {"bytes/down": 20.0, "bytes/up": 10.0}),
        ({"seconds": 0.5, "phases": {"wait": 0.25}}, {"seconds": 0.5, "phases/wait": 0.25}),
    ],
)
def test_names_are_paths_and_scores_stand_by_metric(
    record: dict[str, Any], figures: dict[str, float]
) -> None:
    assert round_figures(record) == figures


def test_of_a_summary_the_scores_count() -> None:
    summary = {"test": {"audio": {"corr": 0.5}}, "test_by_subset": {"a+b": {"corr": 0.75}}}
    expected = {"test/corr/audio": 0.5, "test_by_subset/corr/a+b": 0.75}
    assert summary_figures(summary | {"items": {"train": 9}, "seconds": 3.0}) == expected
