"""Figures of a round by name."""

import pytest
from tiny_runs import tiny

from server.tracking.figures import end_times, parameters, round_figures, summary_figures

RECORD = {
    "round": 3,
    "train_loss": {"audio": 1.5},
    "validation": {
        "multimodal": {"corr": 0.5, "mae": float("nan")},
        "audio": {"corr": 0.25, "mae": None},
    },
    "decoder_weights": {"head.weight": {"audio": 0.4, "vision": 0.6}},
    "rejected": ["audio-0 (node 3): its disk is full", "late"],
    "reused": [],
    "posterior_widths": {},
    "privacy": None,
    "bytes_down": 20,
    "bytes_up": 10,
    "seconds": 0.5,
    "phases": {"wait": 0.25},
}


def test_names_are_paths_and_scores_stand_by_metric() -> None:
    assert round_figures(RECORD) == {
        "train_loss/audio": 1.5,
        "validation/corr/multimodal": 0.5,
        "validation/corr/audio": 0.25,
        "decoder_weights/head.weight/audio": 0.4,
        "decoder_weights/head.weight/vision": 0.6,
        "rejected": 2.0,
        "reused": 0.0,
        "bytes/down": 20.0,
        "bytes/up": 10.0,
        "seconds": 0.5,
        "phases/wait": 0.25,
    }


def test_noise_is_told_with_its_price() -> None:
    assert round_figures({"round": 1, "privacy": {"epsilon": 2.0, "note": "per client"}}) == {
        "privacy/epsilon": 2.0
    }


def test_of_a_summary_the_scores_count() -> None:
    summary = {
        "test": {"audio": {"corr": 0.5}},
        "test_by_subset": {"audio+vision": {"corr": 0.75}},
        "items": {"train": 9},
        "seconds": 3.0,
    }
    assert summary_figures(summary) == {
        "test/corr/audio": 0.5,
        "test_by_subset/corr/audio+vision": 0.75,
    }


def test_parameters_are_all_settings_but_where_they_are_tracked() -> None:
    found = parameters(tiny("strategy=fedavg", "tracking=mlflow", "tracking.uri=sqlite:///a.db"))
    assert (found["strategy.name"], found["client.lr"], found["clients.default"]) == (
        "fedavg",
        "0.001",
        "2",
    )
    assert "resume" not in found
    assert not any(name.startswith("tracking") for name in found)


def test_rounds_end_when_those_after_them_begin() -> None:
    records = [{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 4.0}]
    assert end_times(records, 100.0) == pytest.approx([94.0, 96.0, 100.0])
    assert end_times([], 100.0) == []
