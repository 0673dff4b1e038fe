"""The rounds of a run as its folder has them, read line by line, so that a long run fits in memory.

Versions before this page existed recorded less; what is not there is left out, never made up.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from server.report.results import damaged
from server.report.view import thinned
from server.run.folder import ROUNDS, SUMMARY

T = TypeVar("T")

#: The most rounds that are drawn, evenly spaced.
MOST_POINTS = 100

#: The most rejections of a run that are told one by one.
MOST_REJECTIONS = 60

#: One object of ``rounds.jsonl``.
Record = Mapping[str, Any]

#: Round to value.
Series = dict[int, float]

#: Name to name to value.
Table = dict[str, dict[str, float]]


@dataclass
class Details:
    """What a run left beside its scores.

    Of a long run `MOST_POINTS` rounds are here, evenly spaced, where nothing else is said.

    Attributes
    ----------
    count
        Of all rounds.
    recorded
        Names of what the version that made the run recorded.
    fusion, losses
        Modality to its weight, and client to its train loss, over the rounds.
    decoder
        Round to layer to modality to its share.
    widths
        Round to client to layer to the width of its posterior; rounds with none are left out.
    rejections
        Round and line, of all rounds, the first `MOST_REJECTIONS`.
    rejected
        How many there are.
    seconds
        Of all rounds: round to phase to seconds; the phase is empty where none was recorded.
    summary
        As it is.
    """

    count: int = 0
    recorded: set[str] = field(default_factory=set)
    fusion: dict[str, Series] = field(default_factory=dict)
    losses: dict[str, Series] = field(default_factory=dict)
    decoder: dict[int, Table] = field(default_factory=dict)
    widths: dict[int, Table] = field(default_factory=dict)
    rejections: list[tuple[int, str]] = field(default_factory=list)
    rejected: int = 0
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(self, record: Record, *, drawn: bool) -> None:
        """Take up a round."""
        at = record["round"]
        for line in record.get("rejected") or []:
            self.rejected += 1
            if self.rejected <= MOST_REJECTIONS:
                self.rejections.append((at, str(line)))
        if phases := record.get("phases"):
            self.seconds[at] = _numbers(phases)
        elif "seconds" in record:
            self.seconds[at] = {"": number(record["seconds"])}
        self.recorded |= record.keys()
        if drawn:
            _extend(self.fusion, at, record.get("fusion_weights"))
            _extend(self.losses, at, record.get("client_losses"))
            _put(self.decoder, at, record.get("decoder_weights"))
            _put(self.widths, at, record.get("posterior_widths"))


@dataclass(frozen=True)
class Curves:
    """Losses, validation scores and weights of a run over its rounds.

    Attributes
    ----------
    losses
        Modality to its series.
    scores
        ``multimodal`` and each modality to theirs.
    weights
        Modality to its weight in the fusion.
    """

    losses: dict[str, Series] = field(default_factory=dict)
    scores: dict[str, Series] = field(default_factory=dict)
    weights: dict[str, Series] = field(default_factory=dict)


def read_curves(folder: str, metric: str) -> Curves:
    """Read the curves of a run; empty where there are none.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    curves = Curves()

    def add(record: Record) -> None:
        scores = record.get("validation") or {}
        _extend(curves.losses, record["round"], record.get("train_loss"))
        _extend(curves.weights, record["round"], record.get("fusion_weights"))
        found = {name: each[metric] for name, each in scores.items() if metric in each}
        _extend(curves.scores, record["round"], found)

    _each_round(Path(folder), add)
    return curves


def read_details(folder: str) -> Details:
    """Read what a run left.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    path = Path(folder)
    details = Details(count=sum(1 for _ in _lines(path / ROUNDS)))
    chosen = set(thinned(details.count, MOST_POINTS))
    places = iter(range(details.count))
    _each_round(path, lambda record: details.add(record, drawn=next(places) in chosen))
    details.summary = reading(
        path / SUMMARY, "summary", lambda: dict(json.loads((path / SUMMARY).read_bytes()))
    )
    return details


def number(value: Any) -> float:
    """Return a recorded number; NaN for none."""
    return math.nan if value is None else float(value)


def reading(path: Path, what: str, read: Callable[[], T]) -> T:
    """Do something with what a file holds, and name the file where it is not as it should be.

    Raises
    ------
    UserError
        In that case.
    """
    try:
        return read()
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise damaged(path, f"{what}: {type(error).__name__}: {error}") from error


def merged_rounds(series: Iterable[Mapping[int, Any]]) -> list[int]:
    """Return the rounds of some series, in order, of many `MOST_POINTS` of them."""
    rounds = sorted({each for one in series for each in one})
    return [rounds[place] for place in thinned(len(rounds), MOST_POINTS)]


def _each_round(folder: Path, add: Callable[[Record], None]) -> None:
    path = folder / ROUNDS
    for place, line in enumerate(_lines(path), 1):
        reading(path, f"line {place}", partial(_add, add, line))


def _add(add: Callable[[Record], None], line: bytes) -> None:
    record = json.loads(line)
    if not isinstance(record["round"], int):
        raise TypeError(f"round {record['round']!r} is no whole number")
    add(record)


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        try:
            with path.open("rb") as file:
                yield from file
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    return {str(name): number(value) for name, value in values.items()}


def _extend(series: dict[str, Series], at: int, values: Mapping[str, Any] | None) -> None:
    for name, value in _numbers(values or {}).items():
        series.setdefault(name, {})[at] = value


def _put(tables: dict[int, Table], at: int, table: Mapping[str, Any] | None) -> None:
    if table:
        tables[at] = {str(name): _numbers(row) for name, row in table.items()}
