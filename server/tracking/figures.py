"""The figures of a round and of a summary, with names that trackers group by their slashes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.config import Config
from server.run.folder import flat_settings, plain_settings

Record = Mapping[str, Any]

#: Scores of the finished model, in the summary.
_TEST_SCORES = ("test", "test_by_fusion", "test_by_subset")

#: Named ``validation/corr/audio`` rather than ``validation/audio/corr``, so that modalities are
#: shown side by side.
_SCORES = ("validation", *_TEST_SCORES)

_RENAMED = {"bytes_up": "bytes/up", "bytes_down": "bytes/down"}


def round_figures(record: Record) -> dict[str, float]:
    """Return the finite numbers of a round, and the lengths of its lists."""
    parts = {_RENAMED.get(name, name): part for name, part in record.items() if name != "round"}
    return dict(_flat(parts))


def summary_figures(summary: Record) -> dict[str, float]:
    """Return the scores on the test items."""
    return dict(_flat({name: summary[name] for name in _TEST_SCORES if name in summary}))


def parameters(config: Config) -> dict[str, str]:
    """Return the settings that define a run: dotted name to text."""
    settings = flat_settings(plain_settings(config))
    return {
        name: text
        for name, text in settings.items()
        if name != "resume" and not name.startswith("tracking.")
    }


def _flat(part: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    if isinstance(part, Mapping):
        for name, below in part.items():
            yield from _flat(below, (*names, str(name)))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        yield "/".join(names), float(len(part))
    elif isinstance(part, int | float) and math.isfinite(part):
        if names[0] in _SCORES and len(names) == 3:
            names = (names[0], names[2], names[1])
        yield "/".join(names), float(part)
