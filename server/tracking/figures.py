"""The figures of a round and of a summary, by names that trackers group by their slashes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from common.config import Config
from server.run.folder import flat_settings
from server.run.resume import plain_settings

Record = Mapping[str, Any]


class Outcome(StrEnum):
    """How a run ended, in MLflow's words."""

    finished = "FINISHED"
    failed = "FAILED"
    killed = "KILLED"


#: Scores: ``validation/corr/audio`` rather than ``validation/audio/corr``, so that modalities stand
#: side by side.
_SCORES = ("validation", "test", "test_by_fusion", "test_by_subset")

#: Parts of the summary that are figures of the finished model.
_OF_SUMMARY = ("test", "test_by_fusion", "test_by_subset")

_RENAMED = {"bytes_up": "bytes/up", "bytes_down": "bytes/down"}


def round_figures(record: Record) -> dict[str, float]:
    """Return the figures of a round: numbers as they are, lists by how much they hold.

    What is not a number, or not a finite one, is left out.
    """
    parts = {_RENAMED.get(name, name): part for name, part in record.items() if name != "round"}
    return dict(_below(parts))


def summary_figures(summary: Record) -> dict[str, float]:
    """Return the scores on the test items."""
    return dict(_below({name: summary[name] for name in _OF_SUMMARY if name in summary}))


def parameters(config: Config) -> dict[str, str]:
    """Return the settings that make a run what it is: dotted name to text."""
    flat = flat_settings(plain_settings(config))
    return {
        name: text
        for name, text in flat.items()
        if name != "resume" and not name.startswith("tracking.")
    }


def end_times(records: Sequence[Record], now: float) -> list[float]:
    """Return when each round would have ended, in seconds, had the last ended just now."""
    times, time = [], now
    for record in reversed(records):
        times.append(time)
        time -= record["seconds"]
    return times[::-1]


def _below(part: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    if isinstance(part, Mapping):
        for name, each in part.items():
            yield from _below(each, (*names, str(name)))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        yield "/".join(names), float(len(part))
    elif isinstance(part, int | float) and math.isfinite(part):
        if names[0] in _SCORES and len(names) == 3:
            names = (names[0], names[2], names[1])
        yield "/".join(names), float(part)
