"""Run folders and results that no run left."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common.config import Config, compose_config
from common.task import Task
from server.report.results import Result
from server.run.folder import RunFolder


@cache
def config_of(overrides: tuple[str, ...]) -> Config:
    return compose_config("config", [*overrides, "run_dir=elsewhere"])


def write_run(
    folder: Path, *overrides: str, seed: int = 1, corr: float | None = 0.5, **summary: Any
) -> Path:
    """Leave what a run of regression leaves, as far as a report reads it."""
    run = RunFolder(folder)
    run.write_config(dataclasses.replace(config_of(overrides), seed=seed))
    for number in (1, 2):
        run.append_round(
            {"round": number, "clients": {"language": 3, "audio": 2}, "bytes_up": 5e6 * number}
        )
    test = {"multimodal": {"corr": corr, "mae": 1.0}, "audio": {"corr": 0.25, "mae": 1.5}}
    run.write_summary({"test": test, "seconds": 10.0 * seed, "seed": seed, **summary})
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
    fields: dict[str, Any] = {
        "test": {"multimodal": {metric: score}, "audio": {metric: score / 2}},
        "by_fusion": {},
        "by_subset": {},
        "seconds": 10.0,
        "megabytes": 1.0,
        **parts,
    }
    return Result(folder, {"seed": str(seed), **given}, seed, task, **fields)
