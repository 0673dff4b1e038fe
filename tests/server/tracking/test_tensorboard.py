"""Event files say what ``rounds.jsonl`` says, read back with TensorBoard's own reader."""

import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_runs import BreakError, execute, files
from tiny_runs import left_in, tiny

from server.app import prepare
from server.run.run import Run
from server.tracking.figures import round_figures, summary_figures

pytestmark = pytest.mark.usefixtures("in_a_task")

ONE = ("clients.default=1", "strategy=fedavg")


def reader(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder / "tensorboard")).Reload()


def told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to its steps and values."""
    found = reader(folder)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from the run folder."""
    tags: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in round_figures(record).items():
            tags.setdefault(name, []).append((record["round"], pytest.approx(value, rel=1e-6)))
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in summary_figures(summary).items():
        tags[name] = [(summary["rounds"], pytest.approx(value, rel=1e-6))]
    return tags


def breaking(run: Run, number: int) -> Run:
    """Have a run break off when its tracker knows a round, of which there is no checkpoint yet."""
    tell = run.tracking.round

    def breaks(records: list[dict[str, Any]]) -> None:
        tell(records)
        if len(records) == number:
            raise BreakError

    run.tracking.round = breaks  # type: ignore[assignment, method-assign]
    return run


def begin(folder: Path, *overrides: str) -> Run:
    return prepare(tiny(*ONE, "tracking=tensorboard", *overrides), folder)


def resumed(folder: Path, *overrides: str) -> Run:
    given = [f"resume={folder}", *overrides]
    return prepare(tiny(*given), folder.parent / "elsewhere", given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    execute(begin(folder))
    return folder


@pytest.mark.usefixtures("in_a_task")
def test_all_figures_of_rounds_and_summary_are_there(finished: Path) -> None:
    found = told(finished)
    assert found == expected(finished)
    assert {
        *("train_loss/audio", "validation/corr/multimodal", "validation/mae/vision"),
        *("fusion_weights/language", "bytes/up", "bytes/down", "seconds", "clients/audio"),
        *("rejected", "refused", "test/corr/multimodal", "test_by_subset/corr/language+audio"),
    } <= set(found)
    assert [step for step, _ in found["seconds"]] == [1, 2]


def test_settings_can_be_read_and_compared(finished: Path) -> None:
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
    metrics = [each.name.tag for each in parts["experiment"].experiment.metric_infos]
    assert metrics == ["test/corr/multimodal", "validation/corr/multimodal"]
    assert "session_end_info" in parts


def test_a_round_that_is_done_again_stands_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(breaking(begin(folder, "rounds=3"), 2), before=99)
    open_all_along = reader(folder)
    assert [event.step for event in open_all_along.Scalars("seconds")] == [1, 2]
    execute(resumed(folder))
    assert told(folder) == expected(folder)
    again = open_all_along.Reload().Scalars("seconds")
    assert [event.step for event in again] == [1, 2, 3]


def test_more_rounds_replace_the_scores_of_fewer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(begin(folder, "rounds=1"))
    execute(resumed(folder, "rounds=2"))
    assert told(folder) == expected(folder)
    assert [step for step, _ in told(folder)["test/corr/multimodal"]] == [2]


def test_a_run_that_was_not_tracked_can_be_from_where_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(begin(folder, "rounds=1", "tracking=none"))
    assert not (folder / "tensorboard").exists()
    execute(resumed(folder, "rounds=2", "tracking=tensorboard"))
    assert told(folder) == expected(folder)


def test_before_the_first_round_there_is_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(begin(folder), before=1)
    assert list(files(folder)) == ["config.yaml"]


def test_times_are_those_of_the_rounds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(breaking(begin(folder, "rounds=3"), 2), before=99)
    execute(resumed(folder))
    events = reader(folder).Scalars("seconds")
    for before, after in itertools.pairwise(events):
        assert after.wall_time - before.wall_time >= after.value - 0.01


def test_a_place_that_cannot_be_written_costs_a_line(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tensorboard").write_text("not a folder")
    execute(begin(folder))
    shown = capsys.readouterr().out
    assert shown.count("warning: tracking=tensorboard failed, and the run goes on:") == 1
    assert left_in(folder) == left_in(finished)


def test_a_run_is_the_same_tracked_or_not(tmp_path: Path, finished: Path) -> None:
    execute(begin(tmp_path / "run", "tracking=none"))
    assert left_in(tmp_path / "run") == left_in(finished)


def test_a_disk_that_was_full_for_a_while_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.tracking.tensorboard import TensorBoardTracker

    write: Callable[..., None] = TensorBoardTracker._write

    def half_written(tracker: TensorBoardTracker, events: list[Any]) -> None:
        if events[0].step == 2:
            with tracker._path.open("ab") as file:
                file.write(b"\x20\0\0\0")
            raise OSError(28, "No space left on device")
        write(tracker, events)

    monkeypatch.setattr(TensorBoardTracker, "_write", half_written)
    folder = tmp_path / "run"
    execute(begin(folder, "rounds=3"))
    assert told(folder) == expected(folder)
