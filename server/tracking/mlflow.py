"""MLflow: parameters, metrics of each round, the files of the run folder, and the model.

Every call names the MLflow run, so that no run is MLflow's active one. ``tracking.json`` in the run
folder names it too, so that a resumed run goes on in it.
"""

import os

# Set before MLflow is imported: no telemetry, no links printed between rounds, and a server that is
# down delays a round by half a minute rather than ten.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import mlflow

from common.atomic import atomic_file
from common.config import Config
from server.run.folder import CONFIG, MODEL, ROUNDS, SUMMARY, TRACKING
from server.tracking.figures import parameters

_ARTEFACTS = (CONFIG, ROUNDS, SUMMARY, MODEL)

#: A figure of every round; its history shows which rounds MLflow has.
_COUNTED = "seconds"

#: The longest value of a parameter that older servers take.
_LONGEST = 500


class MlflowTracker:
    """Tracks a run with an MLflow run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._folder = folder
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        # About MLflow's own code, at its import and when it opens a database.
        with warnings.catch_warnings(action="ignore"):
            if config.tracking.uri is not None:
                mlflow.set_tracking_uri(config.tracking.uri)
            self._client = mlflow.MlflowClient()
            experiment = mlflow.set_experiment(config.tracking.experiment).experiment_id
        self._run = self._former_run(experiment) or self._new_run(experiment)
        self._log_parameters(parameters(config))
        history = self._client.get_metric_history(self._run, _COUNTED)
        self.known = max((int(metric.step) for metric in history), default=0)

    def log(self, figures: Mapping[str, float], step: int, when: float) -> None:
        """Log figures."""
        metrics = {re.sub(r"[^/\w.\- ]", "-", name): value for name, value in figures.items()}
        mlflow.log_metrics(metrics, step, run_id=self._run, timestamp=int(when * 1000))

    def finish(self) -> None:
        """Log the files of the run folder, and the model."""
        for path in (self._folder / name for name in _ARTEFACTS):
            if path.is_file():
                mlflow.log_artifact(str(path), run_id=self._run)
        if (self._folder / MODEL).is_file():
            with warnings.catch_warnings(action="ignore"):
                from server.tracking.served_model import log_served

                log_served(self._folder, self._run)

    def close(self, status: str) -> None:
        """Set how the run ended."""
        self._client.set_terminated(self._run, status)

    def _former_run(self, experiment: str) -> str | None:
        """Reopen the run that the folder names, if it is in this experiment."""
        path = self._folder / TRACKING
        if not path.is_file():
            return None
        name = str(json.loads(path.read_text())["run_id"])
        if not self._client.search_runs([experiment], f"attributes.run_id = '{name}'"):
            return None
        self._client.update_run(name, "RUNNING")
        return name

    def _new_run(self, experiment: str) -> str:
        title = f"{self._folder.parent.name}/{self._folder.name}"
        tags = {"mlflow.source.name": "utmp-train", "run_folder": str(self._folder)}
        run = self._client.create_run(experiment, tags=tags, run_name=title)
        name = str(run.info.run_id)
        with atomic_file(self._folder / TRACKING) as aside:
            aside.write_text(json.dumps({"run_id": name, "experiment_id": experiment}) + "\n")
        return name

    def _log_parameters(self, settings: Mapping[str, str]) -> None:
        """Log the settings; since MLflow's parameters are constant, a resumed run tags changes."""
        wanted = {name: value[:_LONGEST] for name, value in settings.items()}
        logged = self._client.get_run(self._run).data.params
        new = {name: value for name, value in wanted.items() if name not in logged}
        mlflow.log_params(new, run_id=self._run)
        for name in sorted(logged):
            if wanted.get(name, logged[name]) != logged[name]:
                self._client.set_tag(self._run, f"resumed.{name}", wanted[name])
