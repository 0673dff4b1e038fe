"""An evaluation finds what the run found, scores other datasets, and fits any terminal."""

import io
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trained_runs
from data_checks import refusal
from forked_command import rows_of
from made_up_models import dataset_for, features_for, fusion_for, model_for
from rich.console import Console
from trained_runs import NAMES, arrays, write_npz, write_table

from common.config import EvaluateConfig, compose
from common.data.shards import read_shard
from common.task import Task
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.model_file import load_model
from server.prediction.evaluation import Evaluation, evaluate_model, show_evaluation
from server.prediction.predictor import Predictor
from server.prediction.records import records
from server.run.folder import CONFIG, LAST, MODEL
from server.service.answers import scale
from server.terminal import Terminal

torch.set_num_threads(1)

#: The maker of a run on each kind of dataset, and its task.
DATASETS = {
    "synthetic": (trained_runs.on_synthetic, Task.regression),
    "ratings": (trained_runs.on_ratings, Task.regression),
    "npz": (trained_runs.on_npz, Task.classification),
    "shards": (trained_runs.on_shards, Task.multilabel),
}

Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by their dataset, each trained when it is first asked for."""

    @cache
    def run(dataset: str) -> Path:
        return DATASETS[dataset][0](tmp_path_factory.mktemp(dataset) / "run")

    return run


def evaluated(model: Path, *overrides: str) -> Evaluation:
    return evaluate_model(compose(EvaluateConfig, [f"model={model}", *overrides]))


def refused(model: Path, *overrides: str) -> str:
    return refusal(lambda: evaluated(model, *overrides))


# The run's own items ----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_run_s_items_score_as_in_its_summary(runs: Runs, dataset: str) -> None:
    run = runs(dataset)
    summary, found = json.loads((run / "summary.json").read_text()), evaluated(run)
    assert found.task is DATASETS[dataset][1]
    own = {name: result for name, result in found.results.items() if name != "by_class"}
    assert list(own) == ["test", "test_by_fusion", "test_by_subset", "diagnostics"]
    assert ("by_class" in found.results) == (found.task is not Task.regression)
    for name, result in own.items():
        assert result == summary[name]
    assert found.about["dataset"] == "test items of the run"
    assert found.about["model"] == str(run)
    assert evaluated(run / MODEL).results == found.results
    validation = evaluated(run, "side=validation")
    assert validation.results["test"] == summary["validation"]
    assert summary["validation"] != summary["test"]  # so that one cannot pass for the other
    assert validation.about["dataset"] == "validation items of the run"


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_round_that_is_kept_scores_as_in_its_record(runs: Runs, dataset: str) -> None:
    """With the fusion that was fitted in that round, on the data of the run two folders up."""
    run = runs(dataset)
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    kept = sorted((run / "checkpoints").iterdir())
    assert len(kept) == len(rounds) == 2
    for model, record in [*zip(kept, rounds, strict=True), (run / LAST, rounds[-1])]:
        found = evaluated(model, "side=validation").results["test"]
        assert found == record["validation"]
    summary = json.loads((run / "summary.json").read_text())
    delivered = evaluated(kept[summary["delivered_round"] - 1])
    for name in ("test", "test_by_fusion", "test_by_subset", "diagnostics"):
        assert delivered.results[name] == summary[name]
    assert rounds[0]["validation"] != rounds[1]["validation"]


@pytest.mark.parametrize("dataset", ["synthetic", "ratings"])
def test_what_the_labels_are_is_known_from_the_run_on(runs: Runs, dataset: str) -> None:
    run, sentiment = runs(dataset), dataset == "synthetic"
    summary = json.loads((run / "summary.json").read_text())
    rounds = list(map(json.loads, (run / "rounds.jsonl").read_text().splitlines()))
    for scores in (summary["test"]["multimodal"], rounds[0]["validation"]["audio"]):
        assert {"mae", "rmse", "r2", "corr", "ccc", "coverage_50"} <= scores.keys()
        assert ("acc2" in scores) == ("acc7" in scores) == ("mse" in scores) == sentiment
    assert ("confusion" in summary["diagnostics"]["multimodal"]) == sentiment
    predictor = Predictor.load(run)
    shape = predictor.features["audio"]
    (record,) = records(["a"], predictor.predict({"audio": np.zeros((2, shape[-1]))}))
    assert ("seven_class" in record) == ("sign" in record) == sentiment
    assert scale(predictor) == [-3, 3] or not sentiment


def test_some_modalities_alone(runs: Runs) -> None:
    run = runs("synthetic")
    every = evaluated(run).results["test_by_subset"]
    found = evaluated(run, "modalities=[vision,language]").results
    names = ["language", "vision", "language+vision"]
    assert found["test_by_subset"] == {name: every[name] for name in names}
    assert found["test"]["multimodal"] == every["language+vision"]


def test_other_steps_than_in_the_run_are_refused(runs: Runs) -> None:
    run = runs("npz")
    assert evaluated(run, "max_seq_len=5").results == evaluated(run).results
    words = "max_seq_len=1: the model's data were read with max_seq_len=5; leave max_seq_len out"
    refusal(lambda: evaluated(run, "max_seq_len=1", "modalities=[audio]"), words)


# Another dataset --------------------------------------------------------------------------------


def test_shards(runs: Runs) -> None:
    run = runs("shards")
    shards = run.parent / "shards"
    for side in ("test", "validation"):
        own = evaluated(run, f"side={side}")
        for given in (shards, shards / f"{side}.safetensors"):
            found = evaluated(run, f"dataset={given}", f"side={side}")
            assert found.results == own.results
            assert found.about["dataset"] == str(shards / f"{side}.safetensors")
            assert found.about["items"] == own.about["items"]
    # Of one modality.
    items = read_shard(shards / "vision-0.safetensors").items
    found = evaluated(run, f"dataset={shards / 'vision-0.safetensors'}")
    assert found.results["test"] == evaluate(*load_model(run / MODEL), items)
    assert found.about["items"] == len(items)


def test_all_items_of_a_file_count(runs: Runs, tmp_path: Path) -> None:
    run, path = runs("npz"), write_npz(tmp_path / "again.npz")
    found = evaluated(run, f"dataset={path}")
    cleaning = {
        "array not used: video": 1,
        "items without audio": 17,
        "items of audio cut to their last 5 steps (max_seq_len)": 44,
        "audio values not finite, set to the mean": 3,
    }
    about = {"model": str(run), "dataset": str(path), "items": trained_runs.ITEMS}
    assert found.about == about | {"cleaning": cleaning}
    counts = np.array(found.results["diagnostics"]["multimodal"]["confusion"]["counts"])
    assert found.results["by_class"]["items"] == counts.sum(axis=1).tolist()
    true = np.bincount(arrays()["sums"].argmax(axis=1))
    assert counts.sum(axis=1).tolist() == true.tolist()
    # Those that have any of the modalities.
    having = int((np.diff(arrays()["audio_offsets"]) > 0).sum())
    assert 0 < having < trained_runs.ITEMS
    assert evaluated(run, f"dataset={path}", "modalities=[audio]").about["items"] == having


def test_a_table_with_labels_by_name(runs: Runs, tmp_path: Path) -> None:
    """Several labels, in the order that is given."""
    path = write_table(tmp_path / "t")
    found = evaluated(runs("shards"), f"dataset={path}", f"labels=[{','.join(NAMES)}]")
    assert found.label_names == NAMES
    counts = np.array(found.results["diagnostics"]["vision"]["confusion"]["counts"])
    assert counts[:, 1].sum(axis=1).tolist() == (arrays()["sums"] > 0).sum(axis=0).tolist()
    by_label = found.results["by_class"]
    together = np.array(found.results["diagnostics"]["multimodal"]["confusion"]["counts"])
    hits, called = together[:, 1, 1], together[:, :, 1].sum(axis=1)
    true = together[:, 1].sum(axis=1)
    assert by_label["items"] == true.tolist()
    np.testing.assert_allclose(by_label["recall"], hits / np.maximum(true, 1))
    np.testing.assert_allclose(by_label["precision"], hits / np.maximum(called, 1))


def test_a_dataset_need_not_have_every_modality(runs: Runs, tmp_path: Path) -> None:
    run, content = runs("npz"), arrays()
    label = content["sums"].argmax(axis=1)
    np.savez(tmp_path / "a.npz", label=label, vision=content["vision"])
    found = evaluated(run, f"dataset={tmp_path / 'a.npz'}")
    assert list(found.results["test"]) == ["multimodal", "vision"]
    every = write_npz(tmp_path / "b.npz")
    expected = evaluated(run, f"dataset={every}", "modalities=[vision]")
    assert found.results == expected.results
    message = refused(run, f"dataset={tmp_path / 'a.npz'}", "modalities=[audio,vision]")
    assert "has no array 'audio'" in message


# What is refused --------------------------------------------------------------------------------


def test_a_model_without_its_run_or_its_data(runs: Runs, tmp_path: Path) -> None:
    run, file, gone = runs("npz"), tmp_path / MODEL, tmp_path / "gone.npz"
    file.write_bytes((run / MODEL).read_bytes())
    missing = f"{tmp_path / CONFIG} is missing, so the run's data are unknown; give dataset=…"
    assert refused(file) == missing
    items = run.parent / "items.npz"
    assert evaluated(file, f"dataset={items}").about["model"] == str(file)
    settings = (run / CONFIG).read_text().replace(str(items), str(gone))
    (tmp_path / CONFIG).write_text(settings)
    assert refused(tmp_path) == f"{gone} does not exist"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0, 1, 3]}, "a.npz; expected one of the classes 0, 1, 2"),
        ({"label": [0, 1.5, 2]}, "a.npz: label is '1.5' in item 1 of "),
        ({"audio": np.ones((3, 2, 9))}, "audio is 9 wide; the model takes 3"),
        ({"vision": np.ones((3, 5, 2))}, "vision has 5 steps; the model takes 4 at most"),
        ({"audio": None, "vision": None, "smell": np.ones((3, 2))}, "has no array 'audio'"),
        ({"audio": np.ones((0, 3)), "audio_offsets": [0] * 4}, "no item has audio; leave it out"),
    ],
)
def test_a_dataset_that_does_not_fit(
    runs: Runs, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    content = {"label": [0, 1, 2], "audio": np.ones((3, 2, 3)), "vision": np.ones((3, 4, 2))}
    content |= changes
    given = {name: each for name, each in content.items() if each is not None}
    np.savez(tmp_path / "a.npz", **given)
    assert words in refused(runs("npz"), f"dataset={tmp_path / 'a.npz'}")


def test_shards_that_do_not_fit(runs: Runs) -> None:
    test, validation, vision = (
        runs("shards").parent / "shards" / f"{name}.safetensors"
        for name in ("test", "validation", "vision-0")
    )
    for run, given, message in (
        ("npz", f"dataset={test}", f"{test} has labels for multilabel, and the model is for clas"),
        ("shards", f"dataset={vision} modalities=[audio]", f"{vision} has vision, and not audio"),
        ("shards", f"dataset=[{test},{validation}]", "dataset names 2 shards; expected one, or th"),
    ):
        assert refused(runs(run), *given.split()).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities=[smell]", "modalities: there is no modality 'smell'; the model takes audio,"),
        ("dataset=none.npz", "none.npz does not exist"),
        ("dataset=none.safetensors", "shard none.safetensors does not exist"),
        ("dataset=[]", "dataset=[]: expected a path or a list of paths"),
        ("device=meta", "device=meta cannot be used here: "),
    ],
)
def test_settings_that_do_not_fit(runs: Runs, override: str, message: str) -> None:
    assert refused(runs("npz"), override).startswith(message)


def test_the_place_is_checked_before_anything_is_computed(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prediction.evaluation.Predictor.load", partial(pytest.fail, "late"))
    (tmp_path / "a.json").write_text("mine")
    message = refused(runs("npz"), f"out={tmp_path / 'a.json'}")
    assert message.startswith(f"out={tmp_path / 'a.json'} exists already")


# What is shown ------------------------------------------------------------------------------------

COUNT = 12


def evaluation(task: Task, names: tuple[str, ...] = (), sentiment: bool = True) -> Evaluation:
    features = features_for({"language": [3] * COUNT, "audio": [2] * COUNT, "vision": [4] * COUNT})
    items = dataset_for(features, task)
    model, fusion = model_for(task, sentiment=sentiment), fusion_for(task)
    results = {
        "test": evaluate(model, fusion, items),
        "test_by_fusion": evaluate_rules(model, {"reliability": fusion}, items),
        "test_by_subset": evaluate_subsets(model, fusion, items),
        "diagnostics": diagnose(model, fusion, items),
    }
    return Evaluation({"model": "a", "dataset": "b", "items": COUNT}, task, names, results)


def shown(found: Evaluation, width: int | None = None) -> str:
    stream, terminal = io.StringIO(), width is not None
    console = Console(file=stream, force_terminal=terminal, width=width, color_system=None)
    show_evaluation(Terminal(console), found)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 200, None])
def test_no_figure_is_cut_on_a_narrow_terminal_and_all_go_into_a_file(width: int | None) -> None:
    found = evaluation(Task.regression)
    text = shown(found, width)
    rows = rows_of(text)
    columns = ["corr", *(name for name in found.results["test"]["audio"] if name != "corr")]
    if width == 60:
        columns = ["corr"]
    assert ["", *columns] in [row[: len(columns) + 1] for row in rows]
    for subset, scores in found.results["test_by_subset"].items():
        values = [scores[metric] for metric in columns]
        cells = [f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}" for value in values]
        cells = [subset, *cells]
        assert cells in [row[: len(cells)] for row in rows]
    hint = "more metrics on a wider terminal, and all of them with out=….json"
    assert (hint in text) == (width == 60)
    text = text.replace(hint, "")
    assert width is None or max(map(len, text.splitlines())) <= width
    assert "…" not in text


@pytest.mark.parametrize("sentiment", [True, False])
def test_only_sentiment_is_shown_in_seven_classes(sentiment: bool) -> None:
    found = evaluation(Task.regression, sentiment=sentiment)
    text = shown(found)
    assert ("Confusion" in text) == ("acc7" in text) == sentiment
    assert "Calibration" in text and "ccc" in text


@pytest.mark.parametrize("names", [(), ("joy", "fear", "[b]awe")])
def test_classes_are_called_by_their_names(names: tuple[str, ...]) -> None:
    said = names or ("0", "1", "2")
    found = evaluation(Task.classification, names)
    rows = rows_of(shown(found))
    diagnosis = found.results["diagnostics"]["multimodal"]
    assert ["", *said] in rows
    for name, each in zip(said, diagnosis["confusion"]["counts"], strict=True):
        assert [f"true {name}", *map(str, each)] in rows
    # An empty bin has empty cells.
    table = diagnosis["calibration"]
    assert None in table["probability"]
    for upper, count, probability, _ in zip(*table.values(), strict=True):
        if probability is None:
            assert [f"{upper:.3f}", str(count), "", ""] in rows


@pytest.mark.parametrize("names", [(), ("joy", "[b]fear")])
def test_every_label_has_its_confusion(names: tuple[str, ...]) -> None:
    said = names or ("label 0", "label 1")
    found = evaluation(Task.multilabel, names)
    lines = shown(found).splitlines()
    counts = found.results["diagnostics"]["multimodal"]["confusion"]["counts"]
    for name, (absent, present) in zip(said, counts, strict=True):
        first = lines.index(f"Confusion of {name}: rows are true, columns predicted")
        rows = rows_of("\n".join(lines[first : first + 7]))
        assert rows[0] == ["", "0", "1"]
        assert rows[1:3] == [["true 0", *map(str, absent)], ["true 1", *map(str, present)]]
