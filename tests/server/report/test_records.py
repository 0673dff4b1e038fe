"""Runs are found and read as they are, of any version; what is damaged is named."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from data_checks import refusal
from made_up_runs import change_summary, write_rounds, write_run

from common.errors import UserError
from common.task import Task
from server.report.group_panels import read_curves
from server.report.records import (
    WHOLE_ROUND,
    find_results,
    read_history,
    read_result,
    thinned,
)
from server.run.folder import CONFIG, ROUNDS, SUMMARY, RunFolder


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, place in enumerate(("a/0", "a/1", "b/deep/er", "c")):
        write_run(tmp_path / place, seed=number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*places: str) -> str:
    results, _ = find_results(places)
    return " ".join(result.folder for result in results)


# Runs -------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_by_folders_globs_and_lists(some: Path) -> None:
    assert names(".") == "a/0 a/1 b/deep/er c"
    assert names("b") == names("**/er") == names("b/*") == "b/deep/er"
    assert names("[bc]") == "b/deep/er c"
    assert names("c", "a/1", "a", "*") == "c a/1 a/0 b/deep/er"
    assert names(f"{some}/[c]", f"{some}/a/1") == f"{some}/c {some}/a/1"


def test_a_run_that_has_not_ended_is_left_out(some: Path) -> None:
    RunFolder(some / "d")
    (some / "c" / SUMMARY).unlink()
    results, unfinished = find_results(["."])
    assert (len(results), unfinished) == (3, ["c", "d"])
    with pytest.raises(UserError, match=r"^runs=d: no run there, .*summary\.json.*; 1 unfinished$"):
        find_results(["d"])


@pytest.mark.parametrize("place", ["nope", "nope/*", "*.yaml"])
def test_a_place_that_is_not_there(some: Path, place: str) -> None:
    (some / "a.yaml").touch()
    message = refusal(lambda: find_results(["a", place]))
    assert message == f"runs={place}: there is no such folder"


def test_settings_are_text_by_their_dotted_names(tmp_path: Path) -> None:
    read = read_result(write_run(tmp_path / "a", "clients.audio=4", seed=7))
    assert (read.seed, read.task) == (7, Task.regression)
    assert read.megabytes == 1.5  # 5 and 10 MB of 5 clients
    expected = {
        "clients.default": "null",
        "client.weight_decay": "1e-05",
        "dataset.modalities": "[language,audio,vision]",
        "model.causal": "false",
    }
    assert read.settings.items() >= expected.items()


@pytest.mark.parametrize("value", ["NaN", "null"])
def test_nothing_but_scores_is_needed_and_null_is_nan(tmp_path: Path, value: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / SUMMARY).write_text(f'{{"test": {{"multimodal": {{"corr": {value}}}}}}}')
    clients = ({"audio": 1}, {"audio": 0}, {}, None)
    records = ({"round": n, "bytes_up": n, "clients": c} for n, c in enumerate(clients))
    write_rounds(folder, *records)
    read = read_result(folder)
    assert math.isnan(read.summary.test["multimodal"]["corr"])
    assert math.isnan(read.summary.seconds) and math.isnan(read.megabytes)
    (folder / ROUNDS).unlink()
    assert math.isnan(read_result(folder).megabytes)


@pytest.mark.parametrize(
    ("metrics", "task"),
    [
        ("mae corr f1", Task.regression),
        ("accuracy f1 log_loss", Task.classification),
        ("weighted_accuracy f1", Task.multilabel),
    ],
)
def test_the_metrics_decide_a_task_that_was_left_to_the_shards(
    tmp_path: Path, metrics: str, task: Task
) -> None:
    test = {"multimodal": dict.fromkeys(metrics.split(), 0.5)}
    folder = write_run(tmp_path / "a", "dataset=shards", "dataset.path=x", test=test)
    assert read_result(folder).task is task
    change_summary(folder, test={"multimodal": {"bleu": 1}})
    with pytest.raises(UserError, match=r"summary.json is damaged: .* has no corr or"):
        read_result(folder)


# Rounds -----------------------------------------------------------------------------------------


def test_null_and_nan_are_gaps(tmp_path: Path) -> None:
    folder = write_rounds(
        write_run(tmp_path / "a"),
        {"round": 1, "seconds": 2.5, "train_loss": {"audio": math.nan}},
        {"round": 2, "seconds": None, "validation": {"audio": {"corr": None}}, "clients": None},
    )
    seconds, (scores, losses, _) = read_history(folder).seconds, read_curves(folder, "corr")
    assert seconds[1] == {WHOLE_ROUND: 2.5} and math.isnan(seconds[2][WHOLE_ROUND])
    assert math.isnan(losses["audio"][1]) and math.isnan(scores["audio"][2])


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (6, 5), (3000, 100)])
def test_thinned_places_are_spread_evenly(count: int, most: int) -> None:
    places = thinned(range(count), most)
    assert len(places) == min(count, most) and places == sorted(set(places))
    assert not count or (places[0], places[-1]) == (0, count - 1)
    gaps = [after - before for before, after in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# Damage -----------------------------------------------------------------------------------------

_CONFIG = "{seed: 1, strategy: {name: x}%s}"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (SUMMARY, b"\xff\xfe\x00", "summary: Invalid JSON: "),
        (SUMMARY, "[1]", "summary: Input should be an object"),
        (SUMMARY, '{"test": [1]}', "summary: test: Input should be"),
        (SUMMARY, '{"test": {"multimodal": {"corr": "high"}}}', "summary: test.multimodal.corr: "),
        (SUMMARY, '{"test": {"multimodal": {"f1": 1}}}', "test.multimodal has no corr"),
        (CONFIG, b"\xff\xfe\x00", ""),
        (CONFIG, "a: [", "while parsing"),
        (CONFIG, "a: ${b}", "Interpolation key 'b' not found"),
        (CONFIG, "- 1", "expected settings"),
        (CONFIG, "", "there is no seed"),
        (CONFIG, _CONFIG % "", "there is no dataset.task"),
        (CONFIG, "{seed: 1.5, strategy: {name: x}, dataset: {task: x}}", "seed=1.5 is not an"),
        (CONFIG, _CONFIG % ", dataset: {task: guess}", "dataset.task=guess: expected one of regr"),
        (ROUNDS, '{"round": 1}\n3', "line 2: Input should be an object"),
        (ROUNDS, b"\xff\xfe", "line 1: Invalid JSON: "),
        (ROUNDS, "{}", "line 1: round: Field required"),
        (ROUNDS, '{"round": 1.5}', "line 1: round: Input should be a valid integer"),
        (ROUNDS, '{"round": 1, "bytes_up": "many"}', "line 1: bytes_up: "),
        (ROUNDS, '{"round": 2, "client_losses": {"a-0": "x"}}', "line 1: client_losses.a-0: "),
        (ROUNDS, '{"round": 2, "decoder_weights": {"head": 3}}', "line 1: decoder_weights.head: "),
        (ROUNDS, '{"round": 2, "rejected": 7}', "line 1: rejected: "),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, file: str, content: str | bytes, reason: str
) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    message = refusal(lambda: find_results([str(tmp_path)]))
    assert message.startswith(f"{folder / file} is damaged: {reason}")
