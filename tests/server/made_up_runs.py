"""Run folders and results that no run left."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.config import Config, compose
from common.task import Task
from server.report.records import Result, Summary
from server.run.folder import ROUNDS, SUMMARY, RunFolder


@cache
def config_of(overrides: tuple[str, ...]) -> Config:
    return compose(Config, [*overrides, "run_dir=elsewhere"])


def _write(
    folder: Path, overrides: tuple[str, ...], seed: int, records: Any, summary: dict[str, Any]
) -> Path:
    run = RunFolder(folder)
    run.write_config(dataclasses.replace(config_of(overrides), seed=seed))
    for record in records:
        run.append_round(record)
    run.write_summary({"seed": seed, **summary})
    return folder


def write_run(
    folder: Path, *overrides: str, seed: int = 1, corr: float | None = 0.5, **summary: Any
) -> Path:
    """Leave the least that a run of regression leaves for a report."""
    clients = {"language": 3, "audio": 2}
    records = ({"round": n, "clients": clients, "bytes_up": 5e6 * n} for n in (1, 2))
    test = {"multimodal": {"corr": corr, "mae": 1.0}, "audio": {"corr": 0.25, "mae": 1.5}}
    parts = {"test": test, "seconds": 10.0 * seed, **summary}
    return _write(folder, overrides, seed, records, parts)


def write_rounds(folder: Path, *records: dict[str, Any]) -> Path:
    """Replace the rounds of a run."""
    (folder / ROUNDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def change_summary(folder: Path, **parts: Any) -> Path:
    summary = json.loads((folder / SUMMARY).read_text())
    (folder / SUMMARY).write_text(json.dumps(summary | parts))
    return folder


def result(
    method: str,
    seed: int = 1,
    score: float = 0.5,
    *,
    settings: Mapping[str, str] | None = None,
    task: Task = Task.regression,
    **parts: Any,
) -> Result:
    """One result, of a folder named after it."""
    metric = {"regression": "corr", "classification": "accuracy", "multilabel": "f1"}[task]
    given = {"strategy.name": method, "dataset.task": str(task), **(settings or {})}
    folder = "/".join([*given.values(), str(seed)])
    megabytes = parts.pop("megabytes", 1.0)
    test = {"multimodal": {metric: score}, "audio": {metric: score / 2}}
    summary = Summary(**{"test": test, "seconds": 10.0, **parts})
    return Result(folder, {"seed": str(seed), **given}, seed, task, summary, megabytes)


MODALITIES = ("language", "audio", "vision")
CLIENTS = tuple(f"{name}-{part}" for name in ("audio", "language", "vision") for part in (0, 1))


def full_record(number: int, seed: int = 1, **parts: Any) -> dict[str, Any]:
    """What a run records of a round; every value tells which it is."""
    titles = ("multimodal", *MODALITIES)
    return {
        "round": number,
        "train_loss": {name: place + 2 / number for place, name in enumerate(MODALITIES)},
        "client_losses": {name: place + 1 / number for place, name in enumerate(CLIENTS)},
        "validation": {
            name: {"corr": 0.1 * number + 0.01 * seed - 0.05 * place, "mae": 1.0}
            for place, name in enumerate(titles)
        },
        "fusion_weights": {"language": 0.5, "audio": 0.2, "vision": 0.3},
        "clients": dict.fromkeys(MODALITIES, 2),
        "reused": [],
        "rejected": [],
        "decoder_weights": {
            "head.weight": {"audio": 0.25, "language": 0.35, "vision": 0.4},
            "head.bias": {"audio": 0.5, "language": 0.3, "vision": 0.2},
        },
        "posterior_widths": {
            name: {"encoder.embed": 0.5 * number, "encoder.norm": 2.0 + place}
            for place, name in enumerate(CLIENTS)
        },
        "bytes_down": 1,
        "bytes_up": 6e6,
        "seconds": 1.0,
        "phases": {"configure": 0.1, "wait": 0.6, "merge": 0.2, "evaluate": 0.1},
        **parts,
    }


def write_full_run(
    folder: Path, *overrides: str, seed: int = 1, rounds: int = 3, **parts: Any
) -> Path:
    """Leave all that a run leaves, as far as a report reads it; `parts` are of every round."""
    titles = ("multimodal", *MODALITIES)
    test = {
        name: {"corr": 0.5 + seed / 100 - place / 10, "mae": 1.0}
        for place, name in enumerate(titles)
    }
    shares = {"nominal": [0.1, 0.5, 0.9], "observed": [0.2, 0.4, 0.8], "width": [1, 2, 4]}
    confusion = {"classes": [-1, 0, 1], "counts": [[8, 2, 0], [1, 9, 0], [0, 0, 0]]}
    diagnostics = {"confusion": confusion, "calibration": shares}
    summary = {
        "test": test,
        "test_by_fusion": {"mean": test["multimodal"]},
        "test_by_subset": {"language+audio": test["multimodal"]},
        "diagnostics": dict.fromkeys(titles, diagnostics),
        "seconds": 10.0,
        "delivered_round": 2,
        "fusion": "reliability",
        "items": {"train": 100, "validation": 10, "test": 20},
        "parameters": 1234,
        "label_skew": 0.125,
        "privacy": None,
    }
    records = (full_record(number, seed, **parts) for number in range(1, rounds + 1))
    return _write(folder, overrides, seed, records, summary)
