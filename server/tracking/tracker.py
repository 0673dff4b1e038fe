"""Follow a run with what ``tracking`` names; whatever a tracker cannot do ends no run."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from common.config import Config, TrackingConfig, TrackingTool
from common.errors import UserError
from server.run.interruption import InterruptedRunError
from server.tracking.figures import Outcome, Record

#: What MLflow needs here, by the names that are imported.
_MLFLOW = ("mlflow", "pandas", "sqlalchemy", "alembic")


class Tracker(Protocol):
    """One tool that follows one run.

    Made when there is something to tell, anew for a run that is gone on with: what it is told
    first are all rounds so far, and it passes over those that the tool has.
    """

    def rounds(self, records: Sequence[Record]) -> None:
        """Take all rounds so far, objects of ``rounds.jsonl``."""

    def finish(self, summary: Record) -> None:
        """Take the summary; the run folder is complete."""

    def close(self, outcome: Outcome) -> None:
        """End."""


class Tracking:
    """Tells a tracker of a run; use as a context manager while it lasts.

    Where a tracker fails, a line says so once, and it is tried again, with all that it missed,
    after 1 more round, 2, 4, … and at the end.

    Parameters
    ----------
    name
        Of the tool, for the line.
    start
        Makes the tracker; called at the first round, so that a run without any leaves no trace.
    warn
        Takes the line.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker], warn: Callable[[str], None]
    ) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._tracker: Tracker | None = None
        self._failures = 0
        self._pause = 0

    def round(self, records: Sequence[Record]) -> None:
        """Tell of a round, the last of all so far."""
        if self._pause > 0:
            self._pause -= 1
            return
        self._tell(records)

    def finish(self, records: Sequence[Record], summary: Record) -> None:
        """Tell of the end, when everything is in the run folder."""
        self._tell(records, summary)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.close(_outcome(kind))
        except Exception as fault:
            self._say(fault)
        self._tracker = None

    def _tell(self, records: Sequence[Record], summary: Record | None = None) -> None:
        try:
            if self._tracker is None:
                self._tracker = self._start()
            self._tracker.rounds(records)
            if summary is not None:
                self._tracker.finish(summary)
        # Whatever it is: libraries of others, their servers and their disks.
        except Exception as fault:
            self._say(fault)
            self._tracker = None
            self._pause = 2**self._failures - 1
            self._failures += 1

    def _say(self, fault: Exception) -> None:
        if self._failures == 0:
            reason = " ".join(str(fault).split())[:300] or type(fault).__name__
            self._warn(f"tracking={self._name} failed, and the run goes on: {reason}")


def make_tracking(config: Config, folder: Path, warn: Callable[[str], None]) -> Tracking:
    """Return what follows a run.

    Parameters
    ----------
    config
        Of the run.
    folder
        Its run folder, absolute.
    warn
        Takes a line where tracking fails.
    """

    def start() -> Tracker:
        if config.tracking.name is TrackingTool.none:
            return NoTracker()
        if config.tracking.name is TrackingTool.mlflow:
            from server.tracking.mlflow import MlflowTracker

            return MlflowTracker(config, folder)
        from server.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker(config, folder)

    return Tracking(config.tracking.name, start, warn)


class NoTracker:
    """Follows nothing."""

    def rounds(self, records: Sequence[Record]) -> None:
        """Ignore them."""

    def finish(self, summary: Record) -> None:
        """Ignore it."""

    def close(self, outcome: Outcome) -> None:
        """Do nothing."""


def check_tracking(config: TrackingConfig) -> None:
    """Raise `UserError` for a tracker that could not follow anything.

    Raises
    ------
    UserError
        If MLflow is not installed, or its place cannot be what it is said to be.
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
        # Settings are in the run folder, and sent to all sites of a federation.
        raise UserError(
            "tracking.uri holds a password, and settings are no secret; give it in the "
            "environment, as MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )


def _outcome(kind: type[BaseException] | None) -> Outcome:
    if kind is None:
        return Outcome.finished
    killed = issubclass(kind, InterruptedRunError) or not issubclass(kind, Exception)
    return Outcome.killed if killed else Outcome.failed


def no_tracking() -> Tracking:
    """Return what follows nothing."""
    return Tracking(TrackingTool.none, NoTracker, lambda _: None)
