"""Track a run with the tool that ``tracking`` selects; a tool that fails never ends a run."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from common.config import Config, TrackingConfig, TrackingTool
from common.errors import UserError
from server.run.interruption import InterruptedRunError
from server.tracking.figures import Record

#: Packages that MLflow needs here, by the names that are imported.
_MLFLOW = ("mlflow", "pandas", "sqlalchemy", "alembic")


class Tracker(Protocol):
    """A tool that tracks one run.

    It is made for the first round, and again after a failure or a resume. It is given all rounds
    so far each time, and skips those that the tool already has.
    """

    def rounds(self, records: Sequence[Record]) -> None:
        """Take all rounds so far, objects of ``rounds.jsonl``."""

    def finish(self, summary: Record) -> None:
        """Take the summary; the run folder is complete."""

    def close(self, status: str) -> None:
        """End with MLflow's status: FINISHED, FAILED or KILLED."""


class Tracking:
    """Passes a run on to a tracker; use as a context manager while the run lasts.

    If a tracker fails, one line warns, and a new tracker is tried after 1 more round, 2, 4, … and
    at the end, with everything that was missed.

    Parameters
    ----------
    name
        Name of the tool, for the warning.
    start
        Makes the tracker, at the first round, so that a run without any round leaves no trace;
        None to track nothing.
    warn
        Takes the warning.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker] | None, warn: Callable[[str], None]
    ) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._tracker: Tracker | None = None
        self._failures = 0
        self._pause = 0

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.close(_status(kind))
            except Exception as fault:
                self._report(fault)

    def _track(self, records: Sequence[Record], summary: Record | None = None) -> None:
        if self._start is None:
            return
        try:
            if self._tracker is None:
                self._tracker = self._start()
            self._tracker.rounds(records)
            if summary is not None:
                self._tracker.finish(summary)
        # Anything can fail: other people's libraries, servers, disks.
        except Exception as fault:
            self._report(fault)
            self._tracker = None
            self._pause = 2**self._failures - 1
            self._failures += 1

    def _report(self, fault: Exception) -> None:
        if self._failures == 0:
            reason = " ".join(str(fault).split())[:300] or type(fault).__name__
            self._warn(f"tracking={self._name} failed, and the run goes on: {reason}")


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    killed = issubclass(kind, InterruptedRunError) or not issubclass(kind, Exception)
    return "KILLED" if killed else "FAILED"


def _tensorboard(config: Config, folder: Path) -> Tracker:
    from server.tracking.tensorboard import TensorBoardTracker

    return TensorBoardTracker(config, folder)


def _mlflow(config: Config, folder: Path) -> Tracker:
    from server.tracking.mlflow import MlflowTracker

    return MlflowTracker(config, folder)


#: Tool to what makes its tracker; each is imported when it is used.
TRACKERS: dict[TrackingTool, Callable[[Config, Path], Tracker]] = {
    TrackingTool.tensorboard: _tensorboard,
    TrackingTool.mlflow: _mlflow,
}


def make_tracking(config: Config, folder: Path, warn: Callable[[str], None]) -> Tracking:
    """Return the tracking of a run.

    Parameters
    ----------
    config
        Configuration of the run.
    folder
        Its run folder, absolute.
    warn
        Takes a line if tracking fails.
    """
    make = TRACKERS.get(config.tracking.name)
    start = None if make is None else lambda: make(config, folder)
    return Tracking(config.tracking.name, start, warn)


def check_tracking(config: TrackingConfig) -> None:
    """Refuse settings with which nothing could be tracked.

    Raises
    ------
    UserError
        If MLflow is not installed, or its URI or experiment is not valid.
    """
    if config.name is not TrackingTool.mlflow:
        if config.uri is not None:
            raise UserError("tracking.uri is a setting of tracking=mlflow; give that too")
        return
    for package in _MLFLOW:
        if find_spec(package) is None:
            raise UserError(
                f"tracking=mlflow needs {package}: pip install 'ha-fedformer[tracking]'"
            )
    if not config.experiment.strip():
        raise UserError("tracking.experiment is empty; expected the name of an MLflow experiment")
    if config.uri is not None:
        _check_uri(config.uri)


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        raise UserError(
            f"tracking.uri={uri}: MLflow no longer keeps runs in a folder; expected a database, "
            "as in sqlite:///mlflow.db, or a server, as in http://127.0.0.1:5000"
        )
    if parts.password is not None:
        # Settings are stored in the run folder, and sent to all sites of a federation.
        raise UserError(
            "tracking.uri holds a password, and settings are no secret; give it in the "
            "environment, as MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
