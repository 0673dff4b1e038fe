"""An evaluation finds what the run itself found, and scores other datasets as `server.evaluate`."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trained_runs
from trained_runs import NAMES, arrays, write_npz, write_table

from common.config import EvaluateConfig, compose
from common.data.shards import read_shard
from common.errors import UserError
from common.task import Task
from server.evaluate import evaluate
from server.model_file import load_model
from server.prediction.evaluation import Evaluation, evaluate_model, write_evaluation
from server.run.folder import CONFIG, MODEL

torch.set_num_threads(1)

MAKERS = {
    "synthetic": trained_runs.on_synthetic,
    "npz": trained_runs.on_npz,
    "shards": trained_runs.on_shards,
}
TASKS = {
    "synthetic": Task.regression,
    "npz": Task.classification,
    "shards": Task.multilabel,
}
every_dataset = pytest.mark.parametrize("dataset", MAKERS)

Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs by their dataset, each trained when it is first asked for."""

    @cache
    def run(dataset: str) -> Path:
        return MAKERS[dataset](tmp_path_factory.mktemp(dataset) / "run")

    return run


def evaluated(model: Path, *overrides: str) -> Evaluation:
    return evaluate_model(compose(EvaluateConfig, [f"model={model}", *overrides]))


def refused(model: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        evaluated(model, *overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def assert_same(found: Any, expected: Any) -> None:
    """Equal to 1e-6, at any depth."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert found == expected


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


# The run's own items ----------------------------------------------------------------------------

RESULTS = ("test", "test_by_fusion", "test_by_subset", "diagnostics")


@every_dataset
def test_the_test_items_score_as_in_the_summary(runs: Runs, dataset: str) -> None:
    run = runs(dataset)
    found = evaluated(run)
    assert found.task is TASKS[dataset]
    assert list(found.results) == list(RESULTS)
    summary = summary_of(run)
    for name in RESULTS:
        assert_same(found.results[name], summary[name])
    assert found.about["dataset"] == "test items of the run"
    assert found.about["model"] == str(run)
    assert_same(evaluated(run / MODEL).results, found.results)


@every_dataset
def test_the_validation_items_score_as_in_the_summary(runs: Runs, dataset: str) -> None:
    run = runs(dataset)
    found = evaluated(run, "side=validation")
    summary = summary_of(run)
    assert_same(found.results["test"], summary["validation"])
    assert summary["validation"] != summary["test"]  # so that one cannot pass for the other
    assert found.about["dataset"] == "validation items of the run"


def test_the_json_holds_all_of_it(runs: Runs, tmp_path: Path) -> None:
    found = evaluated(runs("shards"))
    write_evaluation(found, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["model", "dataset", "items", *RESULTS]
    assert content == {**found.about, **found.results}
    assert found.label_names == NAMES


def test_some_modalities_alone(runs: Runs) -> None:
    run = runs("synthetic")
    whole = evaluated(run).results["test_by_subset"]
    found = evaluated(run, "modalities=[vision,language]")
    assert list(found.results["test_by_subset"]) == ["language", "vision", "language+vision"]
    for subset, scores in found.results["test_by_subset"].items():
        assert_same(scores, whole[subset])
    assert_same(found.results["test"]["multimodal"], whole["language+vision"])


def test_fewer_steps_than_in_the_run(runs: Runs) -> None:
    run = runs("npz")
    assert_same(evaluated(run, "max_seq_len=5").results, evaluated(run).results)
    short = evaluated(run, "max_seq_len=1", "modalities=[audio]").results["test"]["audio"]
    assert short["log_loss"] != pytest.approx(summary_of(run)["test"]["audio"]["log_loss"])


# Another dataset --------------------------------------------------------------------------------


def test_a_folder_of_shards_is_what_its_run_saw(runs: Runs) -> None:
    run = runs("shards")
    shards = run.parent / "shards"
    for side in ("test", "validation"):
        own = evaluated(run, f"side={side}")
        for given in (shards, shards / f"{side}.safetensors"):
            found = evaluated(run, f"dataset={given}", f"side={side}")
            assert_same(found.results, own.results)
            assert found.about["dataset"] == str(shards / f"{side}.safetensors")
            assert found.about["items"] == own.about["items"]


def test_a_shard_of_one_modality(runs: Runs) -> None:
    run = runs("shards")
    shard = run.parent / "shards" / "vision-0.safetensors"
    found = evaluated(run, f"dataset={shard}")
    items = read_shard(shard).items
    expected = evaluate(*load_model(run / MODEL), items)
    assert_same(found.results["test"], expected)
    assert found.about["items"] == len(items)


def test_all_items_of_a_file_count(runs: Runs, tmp_path: Path) -> None:
    run = runs("npz")
    path = write_npz(tmp_path / "again.npz")
    found = evaluated(run, f"dataset={path}")
    assert found.about == {"model": str(run), "dataset": str(path), "items": trained_runs.ITEMS}
    counts = np.array(found.results["diagnostics"]["multimodal"]["confusion"]["counts"])
    assert counts.sum() == trained_runs.ITEMS
    true = np.bincount(arrays()["sums"].argmax(axis=1))
    assert counts.sum(axis=1).tolist() == true.tolist()


def test_a_table_with_labels_by_name(runs: Runs, tmp_path: Path) -> None:
    """Several labels, in the order that is given."""
    run = runs("shards")
    path = write_table(tmp_path / "t")
    found = evaluated(run, f"dataset={path}", f"labels=[{','.join(NAMES)}]")
    counts = np.array(found.results["diagnostics"]["vision"]["confusion"]["counts"])
    present = (arrays()["sums"] > 0).sum(axis=0)
    assert counts[:, 1].sum(axis=1).tolist() == present.tolist()


def test_a_dataset_need_not_have_every_modality(runs: Runs, tmp_path: Path) -> None:
    run = runs("npz")
    content = arrays()
    label = content["sums"].argmax(axis=1)
    np.savez(tmp_path / "a.npz", label=label, vision=content["vision"])
    found = evaluated(run, f"dataset={tmp_path / 'a.npz'}")
    assert list(found.results["test"]) == ["multimodal", "vision"]
    whole = write_npz(tmp_path / "b.npz")
    expected = evaluated(run, f"dataset={whole}", "modalities=[vision]")
    assert_same(found.results, expected.results)
    message = refused(run, f"dataset={tmp_path / 'a.npz'}", "modalities=[audio,vision]")
    assert "has no array 'audio'" in message


def test_items_without_any_modality_are_left_out(runs: Runs, tmp_path: Path) -> None:
    run = runs("npz")
    path = write_npz(tmp_path / "a.npz")
    having = int((np.diff(arrays()["audio_offsets"]) > 0).sum())
    assert 0 < having < trained_runs.ITEMS
    found = evaluated(run, f"dataset={path}", "modalities=[audio]")
    assert found.about["items"] == having


# What is refused --------------------------------------------------------------------------------


def test_a_model_without_its_run(runs: Runs, tmp_path: Path) -> None:
    file = tmp_path / MODEL
    file.write_bytes((runs("shards") / MODEL).read_bytes())
    assert refused(file) == (
        f"{tmp_path / CONFIG} does not exist, so nobody knows what the model was evaluated on; "
        "give dataset=…"
    )
    shards = runs("shards").parent / "shards"
    found = evaluated(file, f"dataset={shards}")
    assert found.about["model"] == str(file)


def test_a_run_whose_data_are_gone(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "gone.npz"
    for name in (MODEL, CONFIG):
        text = (runs("npz") / name).read_bytes()
        (tmp_path / name).write_bytes(
            text.replace(str(runs("npz").parent / "items.npz").encode(), str(path).encode())
            if name == CONFIG
            else text
        )
    assert refused(tmp_path) == f"dataset file {path} does not exist"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": [0, 1, 3]}, "a.npz has 4 classes or labels, and the model 3"),
        ({"label": [0, 1.5, 2]}, "a.npz: classes must be whole numbers from 0"),
        ({"label": np.eye(3)}, "a.npz: label has 3 columns, but task=classification takes one"),
        ({"label": None}, "a.npz has no array 'label'"),
        ({"audio": np.ones((3, 2, 9))}, "audio is 9 wide; the model takes 3"),
        ({"vision": np.ones((3, 5, 2))}, "vision has 5 steps; the model takes 4 at most"),
        ({"audio": np.ones((3, 2, 3)), "audio_offsets": [0, 6]}, "'audio_offsets' must rise"),
        ({"audio": None, "vision": None, "smell": np.ones((3, 2))}, "has no array 'audio'"),
        ({"audio": np.ones((0, 3)), "audio_offsets": [0] * 4}, "no item has audio; leave it out"),
    ],
)
def test_a_dataset_that_does_not_fit(
    runs: Runs, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    content = {
        **{"label": [0, 1, 2], "audio": np.ones((3, 2, 3)), "vision": np.ones((3, 4, 2))},
        **changes,
    }
    path = tmp_path / "a.npz"
    np.savez(path, **{name: each for name, each in content.items() if each is not None})
    assert words in refused(runs("npz"), f"dataset={path}")


def test_a_dataset_of_another_task(runs: Runs) -> None:
    shard = runs("shards").parent / "shards" / "test.safetensors"
    assert refused(runs("npz"), f"dataset={shard}") == (
        f"{shard} has labels for multilabel, and the model is for classification"
    )


def test_a_dataset_of_none_of_the_modalities(runs: Runs) -> None:
    run = runs("shards")
    shard = run.parent / "shards" / "vision-0.safetensors"
    message = refused(run, f"dataset={shard}", "modalities=[audio]")
    assert message == f"{shard} has vision, and not audio"


def test_several_shards(runs: Runs) -> None:
    run = runs("shards")
    shards = [run.parent / "shards" / f"{side}.safetensors" for side in ("test", "validation")]
    message = refused(run, f"dataset=[{shards[0]},{shards[1]}]")
    assert message == "dataset names 2 shards; expected one, or their folder"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities=[smell]", "modalities: there is no 'smell'; the model takes audio, vision"),
        ("dataset=none.npz", "none.npz does not exist"),
        ("dataset=none.safetensors", "shard none.safetensors cannot be read: No such file or dir"),
        ("dataset=3", "dataset=3: expected a path or a list of paths"),
        ("device=quantum", "device=quantum: "),
        ("device=meta", "device=meta: "),
        ("out=none/a.json", "out=none/a.json cannot be written: there is no folder none"),
    ],
)
def test_settings_that_do_not_fit(runs: Runs, override: str, message: str) -> None:
    assert refused(runs("npz"), override).startswith(message)


def test_what_is_there_is_found_before_anything_is_computed(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prediction.evaluation.Predictor.load", partial(pytest.fail, "late"))
    (tmp_path / "a.json").write_text("mine")
    message = refused(runs("npz"), f"out={tmp_path / 'a.json'}")
    assert message == (
        f"out={tmp_path / 'a.json'} is there already; choose another, or give overwrite=true"
    )


def test_a_place_that_cannot_be_written(runs: Runs) -> None:
    found = evaluated(runs("shards"))
    with pytest.raises(UserError, match=r"^out=/proc/a\.json cannot be written: "):
        write_evaluation(found, Path("/proc/a.json"))
