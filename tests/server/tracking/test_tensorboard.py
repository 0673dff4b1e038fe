"""Event files hold what ``rounds.jsonl`` holds, read back with TensorBoard's own reader."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tracked_runs
from broken_runs import BreakError, execute
from tiny_runs import left_in
from tracked_runs import Steps, breaking, expected, resumed

from server.run.run import Run

pytestmark = pytest.mark.usefixtures("in_a_task")


def reader(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder / "tensorboard")).Reload()


def shown(folder: Path) -> Steps:
    found = reader(folder)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def begin(folder: Path, *overrides: str) -> Run:
    return tracked_runs.begin(folder, "tracking=tensorboard", *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    execute(begin(folder))
    return folder


def test_all_figures_are_shown(finished: Path) -> None:
    found = shown(finished)
    assert found == expected(finished)
    assert {
        *("train_loss/audio", "validation/corr/multimodal", "validation/mae/vision"),
        *("fusion_weights/language", "bytes/up", "bytes/down", "seconds", "clients/audio"),
        *("rejected", "refused", "test/corr/multimodal", "test_by_subset/corr/language+audio"),
    } <= set(found)
    assert [step for step, _ in found["seconds"]] == [1, 2]


def test_settings_are_shown(finished: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = reader(finished)
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
    execute(breaking(begin(tmp_path, "rounds=3"), 2, BreakError()), before=99)
    open_all_along = reader(tmp_path)
    assert [event.step for event in open_all_along.Scalars("seconds")] == [1, 2]
    execute(resumed(tmp_path))
    assert shown(tmp_path) == expected(tmp_path)
    again = open_all_along.Reload().Scalars("seconds")
    assert [event.step for event in again] == [1, 2, 3]
    for before, after in itertools.pairwise(again):
        assert after.wall_time - before.wall_time >= after.value - 0.01


def test_tracking_can_begin_with_a_resume_and_more_rounds_replace_scores(tmp_path: Path) -> None:
    execute(begin(tmp_path, "rounds=1", "tracking=none"))
    assert not (tmp_path / "tensorboard").exists()
    for rounds in (2, 3):
        execute(resumed(tmp_path, f"rounds={rounds}", "tracking=tensorboard"))
        assert shown(tmp_path) == expected(tmp_path)
        assert [step for step, _ in shown(tmp_path)["test/corr/multimodal"]] == [rounds]


def test_a_folder_that_cannot_be_written_costs_one_line(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("not a folder")
    execute(begin(tmp_path))
    output = capsys.readouterr().out
    assert output.count("warning: tracking=tensorboard failed, and the run goes on:") == 1
    execute(begin(tmp_path / "untracked", "tracking=none"))
    # Nor does tracking change a run.
    assert left_in(tmp_path) == left_in(finished) == left_in(tmp_path / "untracked")


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
    execute(begin(tmp_path, "rounds=3"))
    assert failed and "No space left on device" in capsys.readouterr().out
    assert shown(tmp_path) == expected(tmp_path)
