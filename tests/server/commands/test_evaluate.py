"""`utmp-evaluate` as its users meet it; what it computes is in test_evaluation.py."""

import json
import re
from pathlib import Path

import pytest
import trained_runs
from forked_command import Run, rows_of
from trained_runs import NAMES

from server.run.folder import MODEL
from server.terminal import rounded

COMMAND = "utmp-evaluate"
LOADS = """
import torch
torch.set_num_threads(1)
import server.prediction.evaluation
from server.commands.evaluate import main
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on labels with names, in shards."""
    return trained_runs.on_shards(tmp_path_factory.mktemp("shards") / "run")


def test_what_is_shown(loaded: Run, run: Path, tmp_path: Path) -> None:
    shown = loaded(f"model={run}", "out=a.json").shown
    lines, rows = shown.splitlines(), rows_of(shown)
    found = json.loads((tmp_path / "a.json").read_text())
    results = ["test", "test_by_fusion", "test_by_subset", "diagnostics", "by_class"]
    assert list(found) == ["model", "dataset", "items", "cleaning", *results]
    assert lines[0] == f"model {run} on test items of the run, {found['items']} items"
    assert lines[-1] == "evaluation: a.json"
    assert lines[-2] == f"all modalities together: f1 {found['test']['multimodal']['f1']:.3f}"
    assert ["", "multimodal", "audio", "vision"] in rows
    for metric in found["test"]["audio"]:
        scores = [f"{values[metric]:.3f}" for values in found["test"].values()]
        assert [metric, *scores] in rows
    for subset, scores in (found["test_by_subset"] | found["test_by_fusion"]).items():
        assert [subset, f"{scores['f1']:.3f}"] in [row[:2] for row in rows]
    by_class = found["by_class"]
    assert ["", *by_class] == ["", "precision", "recall", "f1", "items"] in rows
    for name, *scores, count in zip(NAMES, *by_class.values(), strict=True):
        assert [name, *(rounded(score) for score in scores), str(count)] in rows
    for name in NAMES:
        assert f"Confusion of {name}: rows are true, columns predicted" in lines
    assert list(found["diagnostics"]["multimodal"]["calibration"]) in rows
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    again = loaded(f"model={run}", "out=a.json")
    assert again.error.startswith("out=a.json exists already; choose another")
    assert loaded(f"model={run}", "out=a.json", "overwrite=true").shown == shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "model is required; give it as model=…: a run folder, a model file or a checkpoint"),
        (["model=none"], "model file none does not exist"),
        (["model=."], f". has no {MODEL}: expected the folder of a finished run"),
        (["model=a", "side=train"], "side=train: Invalid value 'train', expected one of [validat"),
        (["model=a", "out=b.csv"], "out=b.csv: expected a file that ends in .json"),
        (["model=a", "out=none/b.json"], "out=none/b.json cannot be written: there is no folder "),
    ],
)
def test_a_mistake_is_one_line(loaded: Run, tmp_path: Path, given: list[str], message: str) -> None:
    assert loaded(*given).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(loaded: Run, run: Path) -> None:
    """The scores are shown all the same."""
    answer = loaded(f"model={run}", "out=/proc/a.json")
    assert answer.status == 2
    assert re.fullmatch(r"error: out=/proc/a\.json cannot be written: [^\n]+\n", answer.stderr)
    assert "all modalities together: f1 " in answer.stdout
