"""Figures of a round by name."""

from server.tracking.figures import round_figures, summary_figures

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
    "posterior_widths": None,
    "privacy": {"epsilon": 2.0, "note": "per client"},
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
        "privacy/epsilon": 2.0,
        "bytes/down": 20.0,
        "bytes/up": 10.0,
        "seconds": 0.5,
        "phases/wait": 0.25,
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
