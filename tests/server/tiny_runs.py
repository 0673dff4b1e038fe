"""Whole runs that take a second, in this process, and what they leave."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from common.config import Config, compose_config

TINY = (
    "runtime=sequential",
    "rounds=2",
    "clients.default=2",
    "dataset.num_items=120",
    "dataset.num_speakers=24",
    "model.width=4",
    "model.heads=2",
    "model.layers=1",
    "model.decoder_layers=1",
    "client.local_epochs=1",
    "client.device=cpu",
    "tracking=none",
)


def tiny(*overrides: str) -> Config:
    return compose_config("config", [*TINY, *overrides])


def left_in(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Read the rounds, the summary and the weights of a run, without how long it took."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    for record in [*rounds, summary]:
        assert record.pop("seconds") >= 0
        record.pop("phases", None)
    weights = load_file(folder / "model.safetensors")
    return rounds, summary, {name: array.tolist() for name, array in weights.items()}
