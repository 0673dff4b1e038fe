"""MLflow: parameters, metrics a round, the files of the run folder, and the model to predict with.

Only the client is used, which keeps no global state. ``tracking.json`` in the run folder says which
MLflow run is this one's, so that it goes on there.
"""

import os

# Before MLflow is imported. No telemetry; no link printed between the rounds; and a server that is
# away holds up a round by half a minute, not by ten.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

import json
import logging
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModelOutput, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from common.atomic import atomic_file
from common.config import Config
from server.run.folder import CONFIG, CURVE, MODEL, ROUNDS, SUMMARY, TRACKING
from server.tracking.figures import (
    Outcome,
    Record,
    end_times,
    parameters,
    round_figures,
    summary_figures,
)

T = TypeVar("T")

_ARTEFACTS = (CONFIG, ROUNDS, SUMMARY, CURVE, MODEL)

#: In every record; tells which rounds MLflow has.
_COUNTED = "seconds"

#: What servers take at once, and how long a value may be for older ones too.
_METRICS_AT_ONCE, _PARAMETERS_AT_ONCE, _LONGEST = 1000, 100, 500


class MlflowTracker:
    """Follows a run with an MLflow run.

    Parameters
    ----------
    config
        Of the run.
    folder
        Its run folder.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with _quiet():
            self._client = MlflowClient(config.tracking.uri)
        self._experiment = _experiment(self._client, config.tracking.experiment)
        self._run = self._former_run() or self._new_run()
        self._log_parameters()
        self._told = self._last_round()

    def rounds(self, records: Sequence[Record]) -> None:
        """Log the figures of the rounds that MLflow does not have."""
        new = records[self._told :]
        for record, when in zip(new, end_times(new, time.time()), strict=True):
            self._log_metrics(round_figures(record), record["round"], when)
            self._told = record["round"]

    def finish(self, summary: Record) -> None:
        """Log the scores of the test items, the files of the run folder, and the model."""
        self._log_metrics(summary_figures(summary), summary["rounds"], time.time())
        for name in _ARTEFACTS:
            if (self._folder / name).is_file():
                self._client.log_artifact(self._run, str(self._folder / name))
        if (self._folder / MODEL).is_file():
            self._log_model(summary["rounds"])

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, outcome)

    def _former_run(self) -> str | None:
        """Return the run that the folder names, where MLflow has it here, and go on with it."""
        path = self._folder / TRACKING
        if not path.is_file():
            return None
        name = str(json.loads(path.read_text())["run_id"])
        try:
            run = self._client.get_run(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        here = run.info.experiment_id == self._experiment.experiment_id
        if not here or run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(name, RunStatus.to_string(RunStatus.RUNNING))
        return name

    def _new_run(self) -> str:
        title = f"{self._folder.parent.name}/{self._folder.name}"
        tags = {"mlflow.source.name": "utmp-train", "run_folder": str(self._folder)}
        run = self._client.create_run(self._experiment.experiment_id, tags=tags, run_name=title)
        name = str(run.info.run_id)
        with atomic_file(self._folder / TRACKING) as aside:
            content = {"run_id": name, "experiment_id": self._experiment.experiment_id}
            aside.write_text(json.dumps(content) + "\n")
        return name

    def _log_parameters(self) -> None:
        """Log the settings; MLflow lets none change, so what a run is gone on with tags it."""
        wanted = {name: value[:_LONGEST] for name, value in parameters(self._config).items()}
        there = self._client.get_run(self._run).data.params
        new = [Param(name, value) for name, value in wanted.items() if name not in there]
        for some in _parts(new, _PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=some)
        changed = {name for name, value in there.items() if wanted.get(name, value) != value}
        tags = [RunTag(f"resumed.{name}", wanted[name]) for name in sorted(changed)]
        self._client.log_batch(self._run, tags=tags)

    def _last_round(self) -> int:
        history = self._client.get_metric_history(self._run, _COUNTED)
        return max((int(metric.step) for metric in history), default=0)

    def _log_metrics(self, figures: Mapping[str, float], step: int, when: float) -> None:
        stamp = int(when * 1000)
        metrics = [
            Metric(re.sub(r"[^/\w.\- ]", "-", name), value, stamp, step)
            for name, value in figures.items()
        ]
        for some in _parts(metrics, _METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=some)

    def _log_model(self, step: int) -> None:
        """Log the model as a pyfunc, with a signature."""
        with _quiet():
            from server.tracking.served_model import save_served

        model = self._client.create_logged_model(
            self._experiment.experiment_id, name="model", source_run_id=self._run
        )
        self._client.log_outputs(self._run, [LoggedModelOutput(model.model_id, step)])
        with TemporaryDirectory() as folder:
            served = Path(folder) / "model"
            save_served(served, self._folder, self._run, model)
            self._client.log_model_artifacts(model.model_id, str(served))
        self._client.finalize_logged_model(model.model_id, "READY")


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what MLflow's own code is warned of when it is imported and opens a database."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        yield


def _experiment(client: MlflowClient, name: str) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        return client.get_experiment(client.create_experiment(name))
    except MlflowException:
        # Another run of a sweep may just have made it.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
