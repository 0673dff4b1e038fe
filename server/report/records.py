"""What a report reads of a run folder: its settings, its summary, and round after round.

Not as `server.records.RoundRecord`: runs of other versions have fewer or further keys and still
have a report. Unknown keys are ignored, missing ones are empty, and null is NaN.
"""

import glob
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, StrictInt, ValidationError

from common.config import list_hint
from common.errors import UserError, first_mistake, reason
from common.metrics import HEADLINE
from common.task import Task
from server.run.folder import CONFIG, ROUNDS, SUMMARY, flat_settings, read_settings

MOST_POINTS = 100  #: the most rounds that a chart shows, evenly spaced
MOST_REJECTIONS = 60  #: the most rejections of a run that are listed one by one

TOGETHER = "multimodal"
LAST_GROUP = "checkpoint"  #: of a ``config.yaml``; one that was cut short lacks it
WHOLE_ROUND = "round"  #: stands for the phases of a run whose version did not measure them

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
_or_empty = BeforeValidator(lambda value: {} if value is None else value)
Numbers = Annotated[dict[str, Number], _or_empty]
Matrix = Annotated[dict[str, Numbers], _or_empty]


class Round(BaseModel):
    """A line of ``rounds.jsonl``; see `server.records.RoundRecord`."""

    round: StrictInt
    train_loss: Numbers = {}
    client_losses: Numbers = {}
    validation: Matrix = {}
    fusion_weights: Numbers = {}
    clients: Numbers = {}
    rejected: list[str] = []
    decoder_weights: Matrix = {}
    posterior_widths: Matrix = {}
    bytes_up: Number = 0.0
    seconds: Number = 0.0
    phases: Numbers = {}


class Summary(BaseModel):
    """``summary.json``; ``model_fields_set`` tells what the run's version recorded."""

    test: Matrix = {}
    test_constant: Numbers = {}
    comparisons: list[dict[str, Any]] = []
    test_by_fusion: Matrix = {}
    test_by_subset: Matrix = {}
    seconds: Number = math.nan
    delivered_round: int | None = None
    items: dict[str, Any] | None = None
    parameters: int | None = None
    fusion: Any = None
    label_skew: Number = math.nan
    privacy: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """One finished run."""

    folder: str  #: as it was given
    settings: Mapping[str, str]  #: dotted name to value, as text
    seed: int
    task: Task
    summary: Summary  #: without the diagnostics, which may be large
    #: 10^6 bytes that a client sends in a round, on average; NaN where it is not known.
    megabytes: float


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {' '.join(reason.split())}")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise `UserError` that names the file and what is read, if its content is unexpected."""
    try:
        yield
    except ValidationError as error:
        raise _damaged(path, f"{what}: {first_mistake(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise _damaged(path, f"{what}: {type(error).__name__}: {error}") from error


def find_results(places: Iterable[str]) -> tuple[list[Result], list[str]]:
    """Read every finished run below some folders and globs once; also name unfinished ones.

    Raises `UserError` if a place does not exist or holds no run, or a file of a run is damaged.
    """
    folders: dict[Path, Path] = {}
    for place in (named := list(places)):
        for folder in _folders_below(place):
            folders.setdefault(folder.resolve(), folder)
    finished, unfinished = [], []
    for path in folders.values():
        if (path / CONFIG).is_file() and (path / SUMMARY).is_file():
            finished.append(path)
        elif (path / ROUNDS).is_file():
            unfinished.append(str(path))
    if not finished:
        more = f"; {len(unfinished)} unfinished" if unfinished else ""
        raise UserError(
            f"runs={','.join(named)}: no run there, which is a folder with {SUMMARY} and "
            f"{CONFIG}{more}"
        )
    return list(map(read_result, finished)), unfinished


def _folders_below(place: str) -> Iterator[Path]:
    # Not Path.glob, which takes no absolute pattern.
    matches = [place] if Path(place).is_dir() else glob.glob(place, recursive=True)  # noqa: PTH207
    if not (tops := sorted(path for path in matches if Path(path).is_dir())):
        raise UserError(f"runs={place}: there is no such folder{list_hint(place)}")
    for top in tops:
        for name, below, _ in os.walk(top, onerror=_unreadable):
            below.sort()
            yield Path(name)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {reason(error)}") from error


def read_result(folder: Path) -> Result:
    """Read a run folder; raise `UserError` if a file of it is damaged."""
    settings = flat_settings(read_settings(folder / CONFIG))
    for name in ("seed", "strategy.name", "dataset.task"):
        if name not in settings:
            raise _damaged(folder / CONFIG, f"there is no {name}")
    with reading(folder / CONFIG, f"seed={settings['seed']} is not an integer"):
        seed = int(settings["seed"])
    summary = read_summary(folder).model_copy(update={"diagnostics": None})
    task = _task(folder, settings["dataset.task"], summary.test.get(TOGETHER, {}))
    if not any(name.startswith(f"{LAST_GROUP}.") for name in settings):
        raise _damaged(folder / CONFIG, f"it ends before {LAST_GROUP}; copy it again")
    sent = [
        record.bytes_up / clients
        for record in read_rounds(folder)
        if record.bytes_up and (clients := sum(record.clients.values()))
    ]
    megabytes = sum(sent) / len(sent) / 1e6 if sent else math.nan
    return Result(str(folder), settings, seed, task, summary, megabytes)


def _task(folder: Path, given: str, scores: Numbers) -> Task:
    """Return the task. A run on shards takes it from them, so here the metrics decide."""
    if given not in ("null", *Task):
        raise _damaged(folder / CONFIG, f"dataset.task={given}: expected one of {', '.join(Task)}")
    possible = list(Task) if given == "null" else [Task(given)]
    for task in possible:
        if HEADLINE[task] in scores:
            return task
    headlines = " or ".join(HEADLINE[task] for task in possible)
    raise _damaged(folder / SUMMARY, f"test.{TOGETHER} has no {headlines}")


def read_summary(folder: Path) -> Summary:
    """Read ``summary.json``; raise `UserError` if it is damaged."""
    with reading(folder / SUMMARY, "summary"):
        return Summary.model_validate_json((folder / SUMMARY).read_bytes())


def read_rounds(folder: Path) -> Iterator[Round]:
    """Yield the rounds of a run, if any; raise `UserError` that names a damaged line."""
    for place, line in enumerate(_lines(folder / ROUNDS), 1):
        with reading(folder / ROUNDS, f"line {place}"):
            record = Round.model_validate_json(line)
        yield record


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with reading(path, "cannot be read"), path.open("rb") as file:
            yield from file


def thinned(rounds: Sequence[int], most: int = MOST_POINTS) -> list[int]:
    """Return at most so many rounds, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(rounds) - 1, min(len(rounds), most)).round().astype(int)
    return [rounds[place] for place in places]


@dataclass
class History:
    """What a run recorded of its rounds."""

    count: int  #: number of all rounds
    #: At most `MOST_POINTS` rounds, evenly spaced, the first and the last among them.
    sample: list[Round]
    #: Of all rounds that measured it: round to phase, or `WHOLE_ROUND`, to seconds.
    seconds: dict[int, Numbers]
    #: Round and message, the first `MOST_REJECTIONS`; and the number of all.
    rejections: list[tuple[int, str]]
    rejected: int

    def of(self, key: str) -> dict[int, Any]:
        """Round to what the sample recorded under a key; rounds without anything are left out."""
        return {one.round: value for one in self.sample if (value := getattr(one, key))}


def read_history(folder: Path) -> History:
    """Read what a run recorded of its rounds; raise `UserError` if a line is damaged."""
    count = sum(1 for _ in _lines(folder / ROUNDS))
    history, chosen = History(count, [], {}, [], 0), set(thinned(range(count)))
    for place, record in enumerate(read_rounds(folder)):
        if place in chosen:
            history.sample.append(record)
        if record.phases or record.seconds:
            history.seconds[record.round] = record.phases or {WHOLE_ROUND: record.seconds}
        room = MOST_REJECTIONS - len(history.rejections)
        history.rejections += [(record.round, message) for message in record.rejected[:room]]
        history.rejected += len(record.rejected)
    return history
