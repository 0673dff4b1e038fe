"""An MLflow run holds what the run folder holds, read back with MLflow's own client."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tracked_runs
from broken_runs import BreakError, execute
from tiny_runs import left_in
from tracked_runs import Steps, breaking, resumed

from common.errors import UserError
from server.baselines import run_baseline
from server.prediction.predictor import Predictor
from server.run.folder import flat_settings, read_settings
from server.run.run import Run

Capture = pytest.CaptureFixture[str]
FILES = {"config.yaml", "learning_curve.png", "model.safetensors", "rounds.jsonl", "summary.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of MLflow's database and files."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


pytestmark = pytest.mark.usefixtures("place", "in_a_task")
URI = "sqlite:///mlflow.db"


def begin(folder: Path, *overrides: str) -> Run:
    return tracked_runs.begin(folder, "tracking=mlflow", f"tracking.uri={URI}", *overrides)


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(URI)


def run_of(folder: Path) -> Any:
    return client().get_run(json.loads((folder / "tracking.json").read_text())["run_id"])


def logged(folder: Path) -> Steps:
    """Metric to its steps and values."""
    run, asked = run_of(folder), client()
    histories = {name: asked.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(metric.step, metric.value) for metric in history]
        for name, history in histories.items()
    }


def expected(folder: Path) -> Steps:
    """The same from the run folder; MLflow has no + in names."""
    return {name.replace("+", "-"): steps for name, steps in tracked_runs.expected(folder).items()}


@pytest.fixture
def finished(place: Path) -> Path:
    """The folder of a finished run, which the first test that needs it makes."""
    folder = place / "runs" / "finished"
    if not folder.exists():
        execute(begin(folder))
    return folder


def test_metrics_are_those_of_the_run_folder(finished: Path) -> None:
    found = logged(finished)
    assert found == expected(finished)
    assert [step for step, _ in found["validation/corr/multimodal"]] == [1, 2]
    assert "test_by_subset/corr/language-audio" in found


def test_settings_and_files_are_those_of_the_run_folder(finished: Path) -> None:
    run = run_of(finished)
    settings = flat_settings(read_settings(finished / "config.yaml"))
    assert run.data.params == {
        name: value
        for name, value in settings.items()
        if name != "resume" and not name.startswith("tracking.")
    }
    assert (run.info.status, run.info.run_name) == ("FINISHED", "runs/finished")
    assert client().get_experiment(run.info.experiment_id).name == "ha-fedformer"
    kept = {path.name: path.read_bytes() for path in Path(run.info.artifact_uri).iterdir()}
    assert kept == {name: (finished / name).read_bytes() for name in FILES}


def test_the_model_has_a_signature_and_predicts(finished: Path) -> None:
    import mlflow.pyfunc

    (output,) = run_of(finished).outputs.model_outputs
    logged_model = client().get_logged_model(output.model_id)
    model = mlflow.pyfunc.load_model(logged_model.artifact_location)
    widths = {"language": 24, "audio": 12, "vision": 16}
    signature = model.metadata.signature
    assert {port.name: (str(port.type), port.shape) for port in signature.inputs.inputs} == {
        **{name: ("float32", (-1, -1, width)) for name, width in widths.items()},
        **{f"{name}_lengths": ("int64", (-1,)) for name in widths},
    }
    outputs = [(port.name, port.shape) for port in signature.outputs.inputs]
    assert outputs == [("prediction", (-1,)), ("std", (-1,))]
    random = np.random.default_rng(0)
    values = {name: random.normal(size=(3, 60, wide)).astype("f4") for name, wide in widths.items()}
    lengths = {"language": [60, 2, 0], "audio": [3, 0, 0], "vision": [0, 4, 0]}
    given = values | {f"{name}_lengths": np.array(steps) for name, steps in lengths.items()}
    found = model.predict(given)
    items = {
        name: [values[name][item, :count] if count else None for item, count in enumerate(steps)]
        for name, steps in lengths.items()
    }
    alone = Predictor.load(finished).predict(items)
    assert alone.std is not None
    np.testing.assert_allclose(found["prediction"], alone.values, rtol=1e-6)
    np.testing.assert_allclose(found["std"], alone.std, rtol=1e-6)
    assert np.isnan(found["prediction"]).tolist() == [False, False, True]
    assert set(model.input_example) == set(given)
    assert np.isfinite(model.predict(model.input_example)["prediction"]).all()
    with pytest.raises(UserError, match="lengths from 0 to 61: there are 60 steps"):
        model.predict(given | {"language_lengths": np.array([61, 2, 0])})


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path) -> None:
    execute(breaking(begin(tmp_path, "rounds=2"), 2, BreakError()), before=99)
    first = run_of(tmp_path)
    assert first.info.status == "KILLED"
    execute(resumed(tmp_path, "rounds=3"))
    run = run_of(tmp_path)
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    found, wanted = logged(tmp_path), expected(tmp_path)
    assert [(name, [step for step, _ in found[name]]) for name in sorted(found)] == [
        (name, [step for step, _ in wanted[name]]) for name in sorted(wanted)
    ]
    assert found["validation/corr/multimodal"] == wanted["validation/corr/multimodal"]
    assert (run.data.params["rounds"], run.data.tags["resumed.rounds"]) == ("2", "3")


def test_a_resumed_run_goes_on_in_another_experiment_if_asked(tmp_path: Path) -> None:
    execute(begin(tmp_path, "rounds=1"))
    first = run_of(tmp_path)
    execute(resumed(tmp_path, "rounds=2", "tracking.experiment=another"))
    second = run_of(tmp_path)
    assert second.info.run_id != first.info.run_id
    assert logged(tmp_path) == expected(tmp_path)


def test_a_baseline_is_tracked_too(tmp_path: Path) -> None:
    run_baseline(begin(tmp_path, "strategy=local", "rounds=1"))
    run = run_of(tmp_path)
    assert logged(tmp_path) == expected(tmp_path)
    assert run.outputs.model_outputs == []
    kept = {path.name for path in Path(run.info.artifact_uri).iterdir()}
    assert kept == FILES - {"model.safetensors"}


def test_a_server_that_is_down_costs_one_line(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    execute(begin(tmp_path, "tracking.uri=http://127.0.0.1:9"))
    shown = capsys.readouterr()
    assert shown.out.count("warning: tracking=mlflow failed, and the run goes on:") == 1
    assert left_in(tmp_path) == left_in(finished)
    assert not (tmp_path / "tracking.json").exists()


def test_telemetry_is_off(finished: Path) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
