"""Track a run with the tool that ``tracking`` selects; a tool that fails never ends a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol
from urllib.parse import urlsplit

from common.config import Config, TrackingConfig, TrackingTool
from common.errors import UserError
from server.run.interruption import InterruptedRunError
from server.tracking.figures import Record, round_figures, summary_figures

#: Tool to the class of its tracker, which is imported when it is used.
TRACKERS = {
    TrackingTool.tensorboard: "server.tracking.tensorboard:TensorBoardTracker",
    TrackingTool.mlflow: "server.tracking.mlflow:MlflowTracker",
}

#: Packages that MLflow needs here, by the names that are imported.
_MLFLOW = ("mlflow", "pandas", "sqlalchemy", "alembic")


class Tracker(Protocol):
    """A tool that tracks one run; made for the first round, and again after a failure or resume."""

    #: Rounds that the tool already has when it is made.
    known: int

    def log(self, figures: Mapping[str, float], step: int, when: float) -> None:
        """Take the figures of a round, or of the end, and the time in seconds."""

    def finish(self) -> None:
        """Take the files of the run folder, which is complete."""

    def close(self, status: str) -> None:
        """End with MLflow's status: FINISHED, FAILED or KILLED."""


class Tracking:
    """Passes a run on to a tracker; use as a context manager while the run lasts.

    If a tracker fails, one line warns, and a new tracker is tried after 1 more round, 2, 4, … and
    at the end, with everything that was missed.

    `start` makes the tracker, at the first round, so that a run without any round leaves no trace;
    None to track nothing.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker] | None, warn: Callable[[str], None]
    ) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._tracker: Tracker | None = None
        self._known = self._failures = self._pause = 0

    def round(self, records: Sequence[Record]) -> None:
        """Track a round, the last of all so far."""
        if self._pause > 0:
            self._pause -= 1
        else:
            self._track(records)

    def finish(self, records: Sequence[Record], summary: Record) -> None:
        """Track the end, when the run folder is complete."""
        self._track(records, summary)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        killed = not isinstance(error, Exception) or isinstance(error, InterruptedRunError)
        status = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.close(status)
            except Exception as fault:
                self._report(fault)

    def _track(self, records: Sequence[Record], summary: Record | None = None) -> None:
        if self._start is None:
            return
        try:
            if self._tracker is None:
                self._tracker = self._start()
                self._known = self._tracker.known
            # The last round ends now, others before it.
            now, new = time.time(), records[self._known :]
            for number, record in enumerate(new, 1):
                since = sum(later["seconds"] for later in new[number:])
                self._tracker.log(round_figures(record), record["round"], now - since)
                self._known = record["round"]
            if summary is not None:
                self._tracker.log(summary_figures(summary), summary["rounds"], now)
                self._tracker.finish()
        except Exception as fault:  # other people's libraries, servers, disks
            self._report(fault)
            self._tracker, self._pause = None, 2**self._failures - 1
            self._failures += 1

    def _report(self, fault: Exception) -> None:
        if self._failures == 0:
            reason = " ".join(str(fault).split())[:300] or type(fault).__name__
            self._warn(f"tracking={self._name} failed, and the run goes on: {reason}")


def make_tracking(config: Config, folder: Path, warn: Callable[[str], None]) -> Tracking:
    """Return the tracking of a run in an absolute folder; `warn` takes a line if that fails."""
    place = TRACKERS.get(config.tracking.name)
    start = None if place is None else lambda: resolve_name(place)(config, folder)
    return Tracking(config.tracking.name, start, warn)


def check_tracking(config: TrackingConfig) -> None:
    """Raise `UserError` if MLflow is not installed, or its URI or experiment is not valid."""
    if config.name is not TrackingTool.mlflow:
        if config.uri is not None:
            raise UserError("tracking.uri is a setting of tracking=mlflow; give that too")
        return
    if missing := [package for package in _MLFLOW if find_spec(package) is None]:
        raise UserError(f"tracking=mlflow needs {missing[0]}: pip install 'ha-fedformer[tracking]'")
    if not config.experiment.strip():
        raise UserError("tracking.experiment is empty; expected the name of an MLflow experiment")
    if config.uri is None:
        return
    uri = urlsplit(config.uri)
    if uri.scheme in ("", "file"):
        raise UserError(
            f"tracking.uri={config.uri}: MLflow no longer keeps runs in a folder; expected a "
            "database, as in sqlite:///mlflow.db, or a server, as in http://127.0.0.1:5000"
        )
    if uri.password is not None:
        # Settings are stored in the run folder, and sent to all sites of a federation.
        raise UserError(
            "tracking.uri holds a password, and settings are no secret; give it in the "
            "environment, as MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
