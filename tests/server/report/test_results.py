"""Run folders are found and read; what is damaged is named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import write_run

from common.errors import UserError
from common.task import Task
from server.report.results import find_results, read_result
from server.run.folder import CONFIG, ROUNDS, SUMMARY, RunFolder


def names(tmp_path: Path, *places: str) -> list[str]:
    found = find_results([str(tmp_path / place) for place in places])
    return [str(Path(each.folder).relative_to(tmp_path)) for each in found.results]


@pytest.fixture
def some(tmp_path: Path) -> Path:
    for number, place in enumerate(("a/0", "a/1", "b/deep/er", "c")):
        write_run(tmp_path / place, seed=number)
    return tmp_path


def test_runs_are_found_at_any_depth_by_folders_globs_and_lists(some: Path) -> None:
    assert names(some, "") == ["a/0", "a/1", "b/deep/er", "c"]
    assert names(some, "b") == names(some, "**/er") == ["b/deep/er"]
    assert names(some, "[bc]") == ["b/deep/er", "c"]
    assert names(some, "c", "a/1", "a", "*") == ["c", "a/1", "a/0", "b/deep/er"]


def test_places_stay_as_they_were_given(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(some)
    folders = [result.folder for result in find_results(["a", "b/*"]).results]
    assert folders == ["a/0", "a/1", "b/deep/er"]


def test_a_run_that_has_not_ended_is_left_out(some: Path) -> None:
    RunFolder(some / "d")
    (some / "c" / SUMMARY).unlink()
    found = find_results([str(some)])
    assert len(found.results) == 3
    assert found.unfinished == (str(some / "c"), str(some / "d"))


def test_what_is_read(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "test_by_fusion": {"mean": {"corr": 0.1}},
        "test_by_subset": {"audio+vision": {"corr": 0.2}},
    }
    read = read_result(write_run(tmp_path / "a", "clients.audio=4", seed=7, corr=0.75, **parts))
    assert (read.seed, read.task, read.seconds) == (7, Task.regression, 70)
    assert read.test["multimodal"] == {"corr": 0.75, "mae": 1.0}
    assert (read.by_fusion, read.by_subset) == tuple(parts.values())
    assert read.megabytes == 1.5  # 5 and 10 MB of 5 clients
    for name, value in {
        "clients.default": "null",
        "clients.audio": "4",
        "client.weight_decay": "1e-05",
        "dataset.modalities": "[language,audio,vision]",
        "model.causal": "false",
        "strategy.name": "hierarchical",
        "strategy.sampler.num_samples": "4",
    }.items():
        assert read.settings[name] == value


def test_nothing_but_scores_is_needed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / ROUNDS).unlink()
    (folder / SUMMARY).write_text('{"test": {"multimodal": {"corr": 1}}}')
    read = read_result(folder)
    assert math.isnan(read.seconds) and math.isnan(read.megabytes)
    assert (read.by_fusion, read.by_subset) == ({}, {})


@pytest.mark.parametrize("value", ["NaN", "null"])
def test_nan_and_null_are_nan(tmp_path: Path, value: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / SUMMARY).write_text(f'{{"test": {{"multimodal": {{"corr": {value}}}}}}}')
    lines = [{"round": 1}, {"round": 2, "bytes_up": 0, "clients": {"audio": 1}}]
    (folder / ROUNDS).write_text("\n".join(map(json.dumps, lines)))
    read = read_result(folder)
    assert math.isnan(read.test["multimodal"]["corr"]) and math.isnan(read.megabytes)


@pytest.mark.parametrize(
    ("metrics", "task"),
    [
        (["mae", "corr", "f1"], Task.regression),
        (["accuracy", "f1", "log_loss"], Task.classification),
        (["weighted_accuracy", "f1"], Task.multilabel),
    ],
)
def test_the_metrics_tell_a_task_that_was_left_to_the_shards(
    tmp_path: Path, metrics: list[str], task: Task
) -> None:
    test = {"multimodal": dict.fromkeys(metrics, 0.5)}
    folder = write_run(tmp_path / "a", "dataset=shards", "dataset.path=x", test=test)
    read = read_result(folder)
    assert read.settings["dataset.task"] == "null"
    assert read.task is task


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["nope", "nope/*", "*.yaml"])
def test_a_place_that_is_not_there(some: Path, place: str) -> None:
    (some / "a.yaml").touch()
    with pytest.raises(UserError) as raised:
        find_results([str(some / "a"), str(some / place)])
    assert str(raised.value) == f"runs={some / place}: there is no such folder"


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    RunFolder(tmp_path / "d")
    with pytest.raises(UserError) as raised:
        find_results([str(tmp_path)])
    assert str(raised.value) == (
        f"runs={tmp_path}: no run there, which is a folder with summary.json and config.yaml; "
        "1 unfinished"
    )


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (SUMMARY, b"", "JSONDecodeError"),
        (SUMMARY, b"\xff\xfe\x00", "UnicodeDecodeError"),
        (SUMMARY, b"[1]", "AttributeError"),
        (SUMMARY, b'{"test": [1]}', "AttributeError"),
        (SUMMARY, b'{"test": {"multimodal": {"corr": "high"}}}', "ValueError"),
        (SUMMARY, b'{"test": {"multimodal": {"corr": [1]}}}', "TypeError"),
        (SUMMARY, b'{"test": {"multimodal": {"f1": 1}}}', "there is no test.multimodal.corr"),
        (CONFIG, b"\xff\xfe\x00", ""),
        (CONFIG, b"a: [", "while parsing"),
        (CONFIG, b"a: ${b}", "Interpolation key 'b' not found"),
        (CONFIG, b"- 1", "expected settings"),
        (CONFIG, b"", "there is no seed"),
        (CONFIG, b"{seed: 1, strategy: {name: x}}", "there is no dataset.task"),
        (CONFIG, b"{seed: 1.5, strategy: {name: x}, dataset: {task: x}}", "seed=1.5 is not an"),
        (
            CONFIG,
            b"{seed: 1, strategy: {name: x}, dataset: {task: guess}}",
            "dataset.task=guess: expected one of regression, classification, multilabel",
        ),
        (ROUNDS, b'{"round": 1', "line 1: JSONDecodeError"),
        (ROUNDS, b'{"bytes_up": "many", "clients": {"audio": 1}}', "line 1: TypeError"),
        (ROUNDS, b'{"bytes_up": 1, "clients": {"audio": 0}}', "line 1: ZeroDivisionError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError) as raised:
        find_results([str(tmp_path)])
    message = str(raised.value).replace("expected numbers by metric: ", "")
    assert message.startswith(f"{folder / file} is damaged: {reason}") and "\n" not in message


def test_a_task_left_to_the_shards_that_the_metrics_do_not_tell(tmp_path: Path) -> None:
    test = {"multimodal": {"bleu": 1.0}}
    folder = write_run(tmp_path / "a", "dataset=shards", "dataset.path=x", test=test)
    with pytest.raises(UserError, match=r"summary.json is damaged: there is no headline metric"):
        read_result(folder)
