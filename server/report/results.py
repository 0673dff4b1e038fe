"""The results of finished runs, read from their run folders."""

import glob
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.metrics import HEADLINE
from common.task import Task
from server.report.records import Record, damaged, for_each_round, number, reading
from server.run.folder import CONFIG, ROUNDS, SUMMARY, flat_settings, read_settings

#: Name of a metric to its value.
Metrics = dict[str, float]

TOGETHER = "multimodal"


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes
    ----------
    folder
        As it was given.
    settings
        Dotted name to value, as text.
    seed, task
        Of the configuration.
    test
        ``multimodal`` and each modality to its metrics.
    by_fusion, by_subset
        Metrics of all modalities under each fusion rule, and of each subset; may be empty.
    seconds
        Of the whole run; NaN where it is not known.
    megabytes
        10^6 bytes that a client sends in a round, on average; NaN where it is not known.
    """

    folder: str
    settings: Mapping[str, str]
    seed: int
    task: Task
    test: Mapping[str, Metrics]
    by_fusion: Mapping[str, Metrics]
    by_subset: Mapping[str, Metrics]
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Found:
    """Results of finished runs, and the folders of runs that have not ended."""

    results: tuple[Result, ...]
    unfinished: tuple[str, ...]


def find_results(places: Iterable[str]) -> Found:
    """Read every run in and below some folders.

    Parameters
    ----------
    places
        Folders and globs. A run that lies below several of them is read once.

    Raises
    ------
    UserError
        If a place does not exist, holds no run, or a file of a run is damaged.
    """
    named = list(places)
    finished, unfinished = [], []
    for folder in _folders(named):
        if (folder / SUMMARY).is_file() and (folder / CONFIG).is_file():
            finished.append(folder)
        elif (folder / ROUNDS).is_file():
            unfinished.append(str(folder))
    if not finished:
        more = f"; {len(unfinished)} unfinished" if unfinished else ""
        raise UserError(
            f"runs={','.join(named)}: no run there, which is a folder with {SUMMARY} and "
            f"{CONFIG}{more}"
        )
    return Found(tuple(map(read_result, finished)), tuple(unfinished))


def _folders(places: Iterable[str]) -> Iterator[Path]:
    """Yield every folder in and below some places, once."""
    seen = set()
    for place in places:
        for top in _tops(place):
            for name, below, _ in os.walk(top):
                below.sort()
                path = Path(name)
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    yield path


def _tops(place: str) -> list[str]:
    if Path(place).is_dir():
        return [place]
    # Not Path.glob, which takes no absolute pattern.
    matches = glob.glob(place, recursive=True)  # noqa: PTH207
    folders = sorted(path for path in matches if Path(path).is_dir())
    if not folders:
        raise UserError(f"runs={place}: there is no such folder")
    return folders


def read_result(folder: Path) -> Result:
    """Read a run folder; raise `UserError` if a file of it is damaged."""
    settings = flat_settings(read_settings(folder / CONFIG))
    seed = _seed(folder / CONFIG, settings)
    with reading(folder / SUMMARY, "expected numbers by metric"):
        summary = json.loads((folder / SUMMARY).read_bytes())
        test, by_fusion, by_subset = (
            _scores(summary.get(part) or {})
            for part in ("test", "test_by_fusion", "test_by_subset")
        )
        seconds = number(summary.get("seconds"))
    task = _task(folder, settings, test.get(TOGETHER, {}))
    megabytes = _megabytes_up(folder)
    return Result(str(folder), settings, seed, task, test, by_fusion, by_subset, seconds, megabytes)


def _seed(path: Path, settings: Mapping[str, str]) -> int:
    for name in ("seed", "strategy.name", "dataset.task"):
        if name not in settings:
            raise damaged(path, f"there is no {name}")
    try:
        return int(settings["seed"])
    except ValueError as error:
        raise damaged(path, f"seed={settings['seed']} is not an integer") from error


def _task(folder: Path, settings: Mapping[str, str], scores: Metrics) -> Task:
    """Return the task. A run on shards takes it from them, so here the metrics decide."""
    given = settings["dataset.task"]
    if given == "null":
        task = next((task for task, headline in HEADLINE.items() if headline in scores), None)
        if task is None:
            raise damaged(folder / SUMMARY, f"there is no headline metric in test.{TOGETHER}")
        return task
    if given not in list(Task):
        raise damaged(folder / CONFIG, f"dataset.task={given}: expected one of {', '.join(Task)}")
    if HEADLINE[Task(given)] not in scores:
        raise damaged(folder / SUMMARY, f"there is no test.{TOGETHER}.{HEADLINE[Task(given)]}")
    return Task(given)


def _scores(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Metrics]:
    return {
        name: {metric: number(value) for metric, value in metrics.items()}
        for name, metrics in given.items()
    }


def _megabytes_up(folder: Path) -> float:
    sent = []

    def use(record: Record) -> None:
        if record.get("bytes_up") and record.get("clients"):
            sent.append(record["bytes_up"] / sum(record["clients"].values()))

    for_each_round(folder, use)
    return sum(sent) / len(sent) / 1e6 if sent else math.nan
