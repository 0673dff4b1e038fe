"""The rounds of a run, read line by line from its folder, so that a long run fits in memory.

Older versions recorded less. What a run did not record is left out, never made up.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from server.run.folder import ROUNDS, SUMMARY

#: The most rounds that a chart shows, evenly spaced.
MOST_POINTS = 100

#: The most rejections of a run that are listed one by one.
MOST_REJECTIONS = 60

#: One object of ``rounds.jsonl``.
Record = Mapping[str, Any]

#: Round to value.
Series = dict[int, float]

#: Name to name to value.
Matrix = dict[str, dict[str, float]]


def damaged(path: Path, reason: str) -> UserError:
    """Return the error for a file that cannot be understood."""
    return UserError(f"{path} is damaged: {' '.join(reason.split())}")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise `UserError` that names the file and what is read, if its content is unexpected."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError) as error:
        raise damaged(path, f"{what}: {type(error).__name__}: {error}") from error


def for_each_round(folder: Path, use: Callable[[Record], None]) -> None:
    """Call a function with each round of a run, if any; raise `UserError` for a damaged line."""
    path = folder / ROUNDS
    for place, line in enumerate(_lines(path), 1):
        with reading(path, f"line {place}"):
            use(json.loads(line))


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with reading(path, "cannot be read"), path.open("rb") as file:
            yield from file


def number(value: Any) -> float:
    """Return a recorded number; NaN for null."""
    return math.nan if value is None else float(value)


def thinned(count: int, most: int) -> list[int]:
    """Return places from 0 to count - 1, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


def merged_rounds(series: Iterable[Mapping[int, Any]]) -> list[int]:
    """Return the rounds of all series in order, at most `MOST_POINTS` of them."""
    rounds = sorted({at for one in series for at in one})
    return [rounds[place] for place in thinned(len(rounds), MOST_POINTS)]


def read_curves(folder: str, metric: str) -> dict[str, dict[str, Series]]:
    """Read the losses, fusion weights and validation scores of a run over its rounds.

    Returns
    -------
    dict
        ``scores`` by ``multimodal`` and modality; ``losses`` and ``weights`` by modality. Empty
        where nothing was recorded.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    curves: dict[str, dict[str, Series]] = {"scores": {}, "losses": {}, "weights": {}}

    def use(record: Record) -> None:
        scores = record.get("validation") or {}
        known = {name: metrics[metric] for name, metrics in scores.items() if metric in metrics}
        _extend(curves["scores"], record, known)
        _extend(curves["losses"], record, record.get("train_loss"))
        _extend(curves["weights"], record, record.get("fusion_weights"))

    for_each_round(Path(folder), use)
    return curves


@dataclass
class Details:
    """What a run recorded beside its scores.

    Of a long run `MOST_POINTS` rounds are kept, evenly spaced, except where the text below says
    that all are.

    Attributes
    ----------
    count
        Number of all rounds.
    recorded
        Keys that the version which made the run recorded.
    fusion, losses
        Modality to its weight, and client to its train loss, over the rounds.
    decoder
        Round to layer to modality to its share.
    widths
        Round to client to layer to the width of its posterior; rounds without any are left out.
    rejections
        Round and message, of all rounds, the first `MOST_REJECTIONS`.
    rejected
        Number of all rejections.
    seconds
        Of all rounds: round to phase to seconds; the phase is empty where none was recorded.
    summary
        ``summary.json`` as it is.
    """

    count: int = 0
    recorded: set[str] = field(default_factory=set)
    fusion: dict[str, Series] = field(default_factory=dict)
    losses: dict[str, Series] = field(default_factory=dict)
    decoder: dict[int, Matrix] = field(default_factory=dict)
    widths: dict[int, Matrix] = field(default_factory=dict)
    rejections: list[tuple[int, str]] = field(default_factory=list)
    rejected: int = 0
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def read_details(folder: str) -> Details:
    """Read what a run recorded; raise `UserError` if a file is damaged."""
    path = Path(folder)
    details = Details(count=sum(1 for _ in _lines(path / ROUNDS)))
    chosen = set(thinned(details.count, MOST_POINTS))
    places = iter(range(details.count))

    def use(record: Record) -> None:
        _add_totals(details, record)
        if next(places) in chosen:
            _add_series(details, record)

    for_each_round(path, use)
    with reading(path / SUMMARY, "summary"):
        details.summary = dict(json.loads((path / SUMMARY).read_bytes()))
    return details


def _add_totals(details: Details, record: Record) -> None:
    at, messages = _round(record), record.get("rejected") or []
    room = MOST_REJECTIONS - len(details.rejections)
    details.rejections += [(at, str(message)) for message in messages[:room]]
    details.rejected += len(messages)
    details.recorded |= record.keys()
    if phases := record.get("phases"):
        details.seconds[at] = _numbers(phases)
    elif "seconds" in record:
        details.seconds[at] = {"": number(record["seconds"])}


def _add_series(details: Details, record: Record) -> None:
    _extend(details.fusion, record, record.get("fusion_weights"))
    _extend(details.losses, record, record.get("client_losses"))
    for matrices, key in (
        (details.decoder, "decoder_weights"),
        (details.widths, "posterior_widths"),
    ):
        if matrix := record.get(key):
            matrices[_round(record)] = {str(name): _numbers(row) for name, row in matrix.items()}


def _extend(series: dict[str, Series], record: Record, values: Mapping[str, Any] | None) -> None:
    at = _round(record)
    for name, value in _numbers(values or {}).items():
        series.setdefault(name, {})[at] = value


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    return {str(name): number(value) for name, value in values.items()}


def _round(record: Record) -> int:
    if not isinstance(at := record["round"], int):
        raise TypeError(f"round {at!r} is not an integer")
    return at
