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
    """The results in a place, and the folders of runs that have not ended."""

    results: tuple[Result, ...]
    unfinished: tuple[str, ...]


def find_results(places: Iterable[str]) -> Found:
    """Read every run below some folders.

    Parameters
    ----------
    places
        Folders and globs. A run that lies below several of them is read once.

    Raises
    ------
    UserError
        If a place is not there, there is no run, or a file of a run is damaged.
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


def read_result(folder: Path) -> Result:
    """Read a run folder.

    Raises
    ------
    UserError
        If a file of it is damaged.
    """
    settings = flat_settings(read_settings(folder / CONFIG))
    seed = _seed(folder / CONFIG, settings)
    summary = _read_summary(folder / SUMMARY)
    return Result(
        str(folder),
        settings,
        seed,
        _task(folder, settings, summary["test"].get(TOGETHER, {})),
        summary["test"],
        summary["test_by_fusion"],
        summary["test_by_subset"],
        summary["seconds"],
        _megabytes_up(folder / ROUNDS),
    )


def _folders(places: Iterable[str]) -> Iterator[Path]:
    """Every folder at and below some places, once."""
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
    found = glob.glob(place, recursive=True)  # noqa: PTH207
    folders = sorted(path for path in found if Path(path).is_dir())
    if not folders:
        raise UserError(f"runs={place}: there is no such folder")
    return folders


def _seed(path: Path, settings: Mapping[str, str]) -> int:
    for name in ("seed", "strategy.name", "dataset.task"):
        if name not in settings:
            raise damaged(path, f"there is no {name}")
    try:
        return int(settings["seed"])
    except ValueError as error:
        raise damaged(path, f"seed={settings['seed']} is no whole number") from error


def _task(folder: Path, settings: Mapping[str, str], scores: Metrics) -> Task:
    """Return the task, which a run on shards leaves to them: then the metrics tell it."""
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


def _read_summary(path: Path) -> dict[str, Any]:
    """Return the parts of a summary that are reported, in their types."""
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    try:
        parts: dict[str, Any] = {
            part: _scores(summary.get(part) or {})
            for part in ("test", "test_by_fusion", "test_by_subset")
        }
        parts["seconds"] = _number(summary.get("seconds"))
    except (AttributeError, TypeError, ValueError) as error:
        raise damaged(path, "expected numbers by metric") from error
    return parts


def _scores(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Metrics]:
    return {
        name: {metric: _number(value) for metric, value in metrics.items()}
        for name, metrics in given.items()
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _megabytes_up(path: Path) -> float:
    """Mean over the rounds of what a client sent; NaN where the rounds do not say."""
    if not path.is_file():
        return math.nan
    try:
        with path.open("rb") as rounds:
            sent = [
                record["bytes_up"] / sum(record["clients"].values())
                for record in map(json.loads, rounds)
                if record.get("bytes_up") and record.get("clients")
            ]
    except (OSError, ValueError, ArithmeticError, AttributeError, TypeError) as error:
        raise damaged(path, str(error)) from error
    return sum(sent) / len(sent) / 1e6 if sent else math.nan


def damaged(path: Path, reason: str) -> UserError:
    """Return the error for a file that is not as it should be."""
    return UserError(f"{path} is damaged: {' '.join(reason.split())}")
