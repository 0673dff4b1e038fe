"""Event files for TensorBoard, in ``tensorboard/`` of the run folder.

They are written by TensorBoard's own record writer, a round at a time and at once: its
``SummaryWriter`` writes from a thread, which prints a traceback where the disk is full.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from common.config import Config
from common.metrics import HEADLINE
from server.run.folder import TENSORBOARD
from server.run.resume import plain_settings
from server.tracking.figures import (
    Outcome,
    Record,
    end_times,
    parameters,
    round_figures,
    summary_figures,
)

#: How TensorBoard knows its files.
_PREFIX = "events.out.tfevents"


class TensorBoardTracker:
    """Follows a run with one event file, which holds what ``rounds.jsonl`` holds.

    Parameters
    ----------
    config
        Of the run.
    folder
        Its run folder.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder / TENSORBOARD
        self._path = self._folder / f"{_PREFIX}.{time.time_ns()}"
        self._told = 0
        self._experiment, self._session, self._end = _hparams(config)

    def rounds(self, records: Sequence[Record]) -> None:
        """Write the rounds that are not in the file; the first time, begin it with them."""
        new = records[self._told :]
        if not new:
            return
        times = end_times(new, time.time())
        events = [_event(record, when) for record, when in zip(new, times, strict=True)]
        if self._told == 0:
            events = [*self._heads(times[0]), *events]
            self._folder.mkdir(parents=True, exist_ok=True)
        self._write(events)
        self._told = len(records)

    def finish(self, summary: Record) -> None:
        """Write the scores of the test items."""
        now = time.time()
        figures = _scalars(summary_figures(summary))
        self._write(
            [
                Event(wall_time=now, step=self._told, summary=figures),
                Event(wall_time=now, summary=self._end),
            ]
        )

    def close(self, outcome: Outcome) -> None:
        """Do nothing: everything is written."""

    def _heads(self, when: float) -> list[Any]:
        """Return what a file begins with.

        At the start of a session TensorBoard forgets what it read in older files of the folder, so
        no round stands twice. They stay: one that is open finds the way to the new file only from a
        file that is there.
        """
        settings = yaml.safe_dump(plain_settings(self._config), sort_keys=False)
        shown = text("config", f"```yaml\n{settings}```")  # type: ignore[no-untyped-call]
        return [
            Event(wall_time=when, file_version="brain.Event:2"),
            Event(wall_time=when, session_log=SessionLog(status=SessionLog.START)),
            Event(wall_time=when, summary=shown),
            Event(wall_time=when, summary=self._experiment),
            Event(wall_time=when, summary=self._session),
        ]

    def _write(self, events: Sequence[Any]) -> None:
        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


def _event(record: Record, when: float) -> Any:
    figures = _scalars(round_figures(record))
    return Event(wall_time=when, step=record["round"], summary=figures)


def _scalars(figures: dict[str, float]) -> Any:
    return Summary(
        value=[Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    )


def _hparams(config: Config) -> tuple[Any, Any, Any]:
    """Return what the table of runs needs: the experiment, and a run's beginning and end."""
    assert config.dataset.task is not None
    metric = HEADLINE[config.dataset.task]
    shown = {f"{side}/{metric}/multimodal": 0.0 for side in ("test", "validation")}
    settings = {name: _typed(value) for name, value in parameters(config).items()}
    found: tuple[Any, Any, Any] = hparams(settings, shown)  # type: ignore[no-untyped-call]
    return found


def _typed(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
