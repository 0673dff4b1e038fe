"""Tracked runs hold what their folder holds, read back with each tool's own reader."""

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_runs import BreakError, execute, go_on
from tiny_runs import left_in, tiny

from common.errors import UserError
from server.app import prepare
from server.baselines import run_baseline
from server.prediction.predictor import Predictor
from server.run.folder import flat_settings, read_settings
from server.run.run import Run
from server.tracking.figures import round_figures, summary_figures

Steps = dict[str, list[tuple[int, float]]]

URI = "sqlite:///mlflow.db"
MLFLOW = ("tracking=mlflow", f"tracking.uri={URI}")
DOWN = ("tracking=mlflow", "tracking.uri=http://127.0.0.1:9")
TENSORBOARD = ("tracking=tensorboard",)
FILES = {"config.yaml", "model.safetensors", "rounds.jsonl", "summary.json"}

pytestmark = pytest.mark.usefixtures("place", "in_a_task")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of MLflow's database and files."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def begin(folder: Path, *overrides: str) -> Run:
    return prepare(tiny("clients.default=1", "strategy=fedavg", *overrides), folder)


def broken(folder: Path, *overrides: str) -> None:
    """Execute a run that ends when its tracker has round 2, of which there is no checkpoint yet."""
    run = begin(folder, *overrides)
    track = run.tracking.round

    def fails(records: list[dict[str, Any]]) -> None:
        track(records)
        if len(records) == 2:
            raise BreakError

    run.tracking.round = fails  # type: ignore[assignment, method-assign]
    execute(run, before=99)


def finished_in(folder: Path, tracked_by: tuple[str, ...]) -> Path:
    """The folder of a finished run, which the first test that needs it makes."""
    if not folder.exists():
        execute(begin(folder, *tracked_by))
    return folder


@pytest.fixture
def in_mlflow(place: Path) -> Path:
    return finished_in(place / "runs" / "in_mlflow", MLFLOW)


@pytest.fixture
def in_tensorboard(place: Path) -> Path:
    return finished_in(place / "runs" / "in_tensorboard", TENSORBOARD)


def expected(folder: Path) -> Steps:
    """Figure to its steps and values, from ``rounds.jsonl`` and ``summary.json``."""
    figures: Steps = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in round_figures(record).items():
            figures.setdefault(name, []).append((record["round"], pytest.approx(value, rel=1e-6)))
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in summary_figures(summary).items():
        figures[name] = [(summary["rounds"], pytest.approx(value, rel=1e-6))]
    return figures


def reader(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder / "tensorboard")).Reload()


def shown(folder: Path) -> Steps:
    """What TensorBoard shows."""
    found = reader(folder)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(URI)


def run_of(folder: Path) -> Any:
    return client().get_run(json.loads((folder / "tracking.json").read_text())["run_id"])


def logged(folder: Path) -> Steps:
    """What MLflow has."""
    run, asked = run_of(folder), client()
    histories = {name: asked.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(metric.step, metric.value) for metric in history]
        for name, history in histories.items()
    }


def expected_in_mlflow(folder: Path) -> Steps:
    """The figures of a run folder by the names that MLflow allows, which have no +."""
    return {name.replace("+", "-"): steps for name, steps in expected(folder).items()}


# Both -------------------------------------------------------------------------------------------


def test_all_figures_of_the_run_folder_are_tracked(in_tensorboard: Path, in_mlflow: Path) -> None:
    found = shown(in_tensorboard)
    assert found == expected(in_tensorboard)
    assert {
        *("train_loss/audio", "validation/corr/multimodal", "validation/mae/vision"),
        *("fusion_weights/language", "bytes/up", "bytes/down", "seconds", "clients/audio"),
        *("rejected", "refused", "test/corr/multimodal", "test_by_subset/corr/language+audio"),
    } <= set(found)
    assert [step for step, _ in found["seconds"]] == [1, 2]
    assert logged(in_mlflow) == expected_in_mlflow(in_mlflow)
    assert left_in(in_mlflow) == left_in(in_tensorboard)


@pytest.mark.parametrize("settings", [TENSORBOARD, DOWN])
def test_a_tool_that_fails_costs_one_line_and_tracking_changes_no_run(
    tmp_path: Path,
    in_tensorboard: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "tensorboard").write_text("not a folder")
    execute(begin(tmp_path, *settings))
    output = capsys.readouterr().out
    assert output.count(f"warning: {settings[0]} failed, and the run goes on:") == 1
    assert not (tmp_path / "tracking.json").exists()
    execute(begin(tmp_path / "untracked", "tracking=none"))
    assert left_in(tmp_path) == left_in(in_tensorboard) == left_in(tmp_path / "untracked")


# TensorBoard ------------------------------------------------------------------------------------


def test_settings_are_shown(in_tensorboard: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = reader(in_tensorboard)
    (text,) = found.Tensors("config/text_summary")
    assert "strategy:\n  name: fedavg" in text.tensor_proto.string_val[0].decode()
    contents = found.summary_metadata
    parts = {
        tag.rpartition("/")[2]: HParamsPluginData.FromString(contents[tag].plugin_data.content)
        for tag in contents
        if tag.startswith("_hparams_/")
    }
    settings = parts["session_start_info"].session_start_info.hparams
    assert settings["strategy.name"].string_value == "fedavg"
    assert settings["client.lr"].number_value == 0.001
    metrics = [info.name.tag for info in parts["experiment"].experiment.metric_infos]
    assert metrics == ["test/corr/multimodal", "validation/corr/multimodal"]
    assert "session_end_info" in parts


def test_a_repeated_round_is_shown_once(tmp_path: Path) -> None:
    broken(tmp_path, *TENSORBOARD, "rounds=3")
    open_all_along = reader(tmp_path)
    assert [event.step for event in open_all_along.Scalars("seconds")] == [1, 2]
    go_on(tmp_path)
    assert shown(tmp_path) == expected(tmp_path)
    again = open_all_along.Reload().Scalars("seconds")
    assert [event.step for event in again] == [1, 2, 3]
    for before, after in itertools.pairwise(again):
        assert after.wall_time - before.wall_time >= after.value - 0.01


def test_tracking_can_begin_with_a_resume_and_more_rounds_replace_scores(tmp_path: Path) -> None:
    execute(begin(tmp_path, "rounds=1", "tracking=none"))
    assert not (tmp_path / "tensorboard").exists()
    for rounds in (2, 3):
        go_on(tmp_path, f"rounds={rounds}", "tracking=tensorboard")
        assert shown(tmp_path) == expected(tmp_path)
        assert [step for step, _ in shown(tmp_path)["test/corr/multimodal"]] == [rounds]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_was_full_for_a_while_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    write: Callable[..., None] = RecordWriter.write
    failed = []

    def half_written(writer: Any, event: bytes) -> None:
        if Event.FromString(event).step == 2 and not failed:
            failed.append(event)
            writer._writer.write(b"\x20\0\0\0")
            raise OSError(28, "No space left on device")
        write(writer, event)

    monkeypatch.setattr(RecordWriter, "write", half_written)
    execute(begin(tmp_path, *TENSORBOARD, "rounds=3"))
    assert failed and "No space left on device" in capsys.readouterr().out
    assert shown(tmp_path) == expected(tmp_path)


# MLflow -----------------------------------------------------------------------------------------


def test_settings_and_files_are_those_of_the_run_folder(in_mlflow: Path) -> None:
    run = run_of(in_mlflow)
    settings = flat_settings(read_settings(in_mlflow / "config.yaml"))
    assert run.data.params == {
        name: value
        for name, value in settings.items()
        if name != "resume" and not name.startswith("tracking.")
    }
    assert (run.info.status, run.info.run_name) == ("FINISHED", "runs/in_mlflow")
    assert client().get_experiment(run.info.experiment_id).name == "ha-fedformer"
    kept = {path.name: path.read_bytes() for path in Path(run.info.artifact_uri).iterdir()}
    assert kept == {name: (in_mlflow / name).read_bytes() for name in FILES}


def test_the_model_has_a_signature_and_predicts(in_mlflow: Path) -> None:
    import mlflow.pyfunc

    (output,) = run_of(in_mlflow).outputs.model_outputs
    logged_model = client().get_logged_model(output.model_id)
    model = mlflow.pyfunc.load_model(logged_model.artifact_location)
    widths = {"language": 8, "audio": 5, "vision": 6}
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
        name: [item[:count] for item, count in zip(values[name], steps, strict=True)]
        for name, steps in lengths.items()
    }
    alone = Predictor.load(in_mlflow).predict(items)
    assert alone.std is not None
    np.testing.assert_allclose(found["prediction"], alone.values, rtol=1e-6)
    np.testing.assert_allclose(found["std"], alone.std, rtol=1e-6)
    assert np.isnan(found["prediction"]).tolist() == [False, False, True]
    assert set(model.input_example) == set(given)
    assert np.isfinite(model.predict(model.input_example)["prediction"]).all()
    with pytest.raises(UserError, match="lengths from 0 to 61: there are 60 steps"):
        model.predict(given | {"language_lengths": np.array([61, 2, 0])})


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path) -> None:
    broken(tmp_path, *MLFLOW, "rounds=2")
    first = run_of(tmp_path)
    assert first.info.status == "KILLED"
    go_on(tmp_path, "rounds=3")
    run = run_of(tmp_path)
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    found, wanted = logged(tmp_path), expected_in_mlflow(tmp_path)
    assert [(name, [step for step, _ in found[name]]) for name in sorted(found)] == [
        (name, [step for step, _ in wanted[name]]) for name in sorted(wanted)
    ]
    assert found["validation/corr/multimodal"] == wanted["validation/corr/multimodal"]
    assert (run.data.params["rounds"], run.data.tags["resumed.rounds"]) == ("2", "3")


def test_a_resumed_run_goes_on_in_another_experiment_if_asked(tmp_path: Path) -> None:
    execute(begin(tmp_path, *MLFLOW, "rounds=1"))
    first = run_of(tmp_path)
    go_on(tmp_path, "rounds=2", "tracking.experiment=another")
    second = run_of(tmp_path)
    assert second.info.run_id != first.info.run_id
    assert logged(tmp_path) == expected_in_mlflow(tmp_path)


def test_a_baseline_is_tracked_too(tmp_path: Path) -> None:
    run_baseline(begin(tmp_path, *MLFLOW, "strategy=local", "rounds=1"))
    run = run_of(tmp_path)
    assert logged(tmp_path) == expected_in_mlflow(tmp_path)
    assert run.outputs.model_outputs == []
    kept = {path.name for path in Path(run.info.artifact_uri).iterdir()}
    assert kept == FILES - {"model.safetensors"}


def test_telemetry_is_off(in_mlflow: Path) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
    # While tests run MLflow takes it for disabled anyway.
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
