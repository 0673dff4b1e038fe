"""Whole runs that take a second, in this process, and what they leave."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity
from safetensors import safe_open

from common.config import Config, compose

#: A model and training that take a moment, heard by nobody.
SMALL = (
    "runtime=sequential",
    "rounds=2",
    "clients.default=2",
    "model.width=4",
    "model.heads=2",
    "model.layers=1",
    "model.decoder_layers=1",
    "client.local_epochs=1",
    "client.device=cpu",
    "tracking=none",
)
SYNTHETIC = ("dataset.num_items=120", "dataset.num_speakers=24")
TINY = (*SMALL, *SYNTHETIC)


def tiny(*overrides: str) -> Config:
    return compose(Config, [*TINY, *overrides])


@contextmanager
def in_task() -> Iterator[None]:
    """Let messages be made outside a Flower process, and put back whose they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


def untimed(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rounds and the summary of a run, without how long it took."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    for record in [*rounds, summary]:
        assert record.pop("seconds") >= 0
        record.pop("phases", None)
    return rounds, summary


def left_in(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Read the same, and what each file of a model holds."""
    models = {path.name: model_in(path) for path in sorted(folder.glob("*.safetensors"))}
    assert "model.safetensors" in models
    return *untimed(folder), models


def model_in(path: Path) -> dict[str, Any]:
    """Read the metadata and weights of a model."""
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        return {"metadata": file.metadata(), **weights}


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within 20 seconds."""
    return any(condition() or time.sleep(0.05) for _ in range(400))
