"""A folder of ONNX files and their description, or nothing."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from data_checks import refusal
from made_up_checkpoints import write_checkpoint

from common.config import ExportConfig, FusionRule, ModelConfig
from common.data.source import Reading
from common.errors import UserError
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.task import Task
from server.export import comparison, files
from server.export.files import chosen_subsets, export_model
from server.export.graph import subset_graph
from server.model_file import model_bytes
from server.prediction.predictor import Predictor

NAMES = ("audio", "vision")


def model_of(*names: str) -> tuple[HAFedformer, Fusion]:
    sizes, task = ModelConfig(width=4, heads=2, layers=0, decoder_layers=1), Task.classification
    spec = ModelSpec(dict.fromkeys(names, (3,)), 2, task, sizes, ("no", "yes"))
    experts = dict.fromkeys(names, Expert(1.0, information=1.0, count=9))
    return build_model(spec, seed=0).eval(), Fusion(FusionRule.mean, task, (-0.7, -0.7), experts)


@cache
def exported(names: tuple[str, ...]) -> onnx.ModelProto:
    return subset_graph(Predictor(*model_of(*NAMES), Reading(7)), names)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose subsets are exported once for all tests, since that takes seconds."""
    monkeypatch.setattr(files, "subset_graph", lambda *given: exported(tuple(given[-1])))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(model_bytes(*model_of(*NAMES)))
    (folder / "config.yaml").write_text("dataset:\n  name: synthetic\n  max_seq_len: 7\n")
    return folder


def export(run: Path, **settings: Any) -> list[str]:
    lines: list[str] = []
    given = {"model": str(run), "out": str(run.parent / "onnx"), **settings}
    export_model(ExportConfig(**given), lines.append)
    return lines


def refused(run: Path, **settings: Any) -> str:
    return refusal(lambda: export(run, **settings))


def test_every_subset_has_a_file_and_an_entry(run: Path) -> None:
    export(run)
    out = run.parent / "onnx"
    about = json.loads((out / "export.json").read_text())
    names = [entry["file"] for entry in about["files"]]
    assert names == ["audio.onnx", "vision.onnx", "audio+vision.onnx"]
    assert {path.name for path in out.iterdir()} == {*names, "export.json"}
    for entry in about["files"]:
        content = (out / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert 0 <= entry["max_difference"] < 1e-6
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        ports = [*session.get_inputs(), *session.get_outputs()]
        described = [(port["name"], port["shape"]) for port in entry["inputs"] + entry["outputs"]]
        assert described == [(port.name, port.shape) for port in ports]
    assert entry["modalities"] == ["audio", "vision"]
    assert entry["inputs"] == [
        {"name": "audio", "dtype": "float32", "shape": ["batch", "audio_steps", 3]},
        {"name": "audio_lengths", "dtype": "int64", "shape": ["batch"]},
        {"name": "vision", "dtype": "float32", "shape": ["batch", "vision_steps", 3]},
        {"name": "vision_lengths", "dtype": "int64", "shape": ["batch"]},
    ]
    assert entry["outputs"] == [{"name": "prediction", "dtype": "float32", "shape": ["batch", 2]}]
    model = (run / "model.safetensors").read_bytes()
    opsets = {opset.domain: opset.version for opset in onnx.load(out / names[0]).opset_import}
    expected = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "task": "classification",
        "fusion": "mean",
        "label_names": ["no", "yes"],
        "last_steps": 7,
        "context": 0,
        "torch": torch.__version__,
        "opset": opsets[""],
    }
    assert {name: about[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("modalities", "asked", "expected"),
    [
        ("abc", [], "a b c a+b a+c b+c a+b+c"),
        ("abc", ["c + a", "b"], "a+c b"),
        ("abc", ["a+b", "b+a"], "a+b"),
        ("abcde", ["a+e"], "a+e"),
    ],
)
def test_subsets_are_in_the_models_order(modalities: str, asked: list[str], expected: str) -> None:
    assert ["+".join(names) for names in chosen_subsets(modalities, asked)] == expected.split()


def test_five_modalities_have_too_many_subsets() -> None:
    assert len(set(chosen_subsets("abcd", []))) == 15
    with pytest.raises(UserError, match=r"5 modalities, which have 31 subsets; say which"):
        chosen_subsets("abcde", [])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("audio+smell", "subsets has 'audio+smell', and the model takes audio, vision"),
        ("", "subsets has ''"),
        ("audio+", "subsets has 'audio+'"),
        ("audio+audio", "names a modality twice"),
    ],
)
def test_unknown_subsets_are_refused(run: Path, asked: str, reason: str) -> None:
    assert reason in refused(run, subsets=[asked])
    assert not (run.parent / "onnx").exists()


def test_a_folder_is_replaced_only_when_asked_and_a_run_never(run: Path) -> None:
    out, mine = run.parent / "onnx", run.parent / "mine"
    kept = write_checkpoint(run, 2, *model_of(*NAMES))
    export(run, model=str(kept), subsets=["audio"])
    about = json.loads((out / "export.json").read_text())
    assert about["last_steps"] == 7
    assert about["model_sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    export(run, model=str(run / "model.safetensors"), subsets=["audio"], overwrite=True)
    assert "exists already" in refused(run, subsets=["vision"])
    export(run, subsets=["vision"], overwrite=True)
    assert {path.name for path in out.iterdir()} == {"vision.onnx", "export.json"}
    export(run, subsets=["vision"], out=str(run.parent / "again"))
    first, again = ((folder / "export.json").read_text() for folder in (out, run.parent / "again"))
    assert first == again  # the sums of the files are in it
    mine.mkdir()
    (mine / "notes.txt").write_text("")
    assert "holds no export.json" in refused(run, out=str(mine), overwrite=True)
    (run / "export.json").write_text("{}")
    for place in (run, run.parent):
        assert "holds the model" in refused(run, out=str(place), overwrite=True)
    assert (run / "model.safetensors").exists()


def test_a_difference_to_torch_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "TOLERANCE", -1.0)
    assert "ONNX predicts another prediction than torch" in refused(run)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_there_must_be_a_model(run: Path) -> None:
    (run / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(run)
    assert "does not exist" in refused(run / "elsewhere")
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("names", [("audio", "audio_lengths"), ("prediction", "audio")])
def test_names_that_the_files_use_otherwise(run: Path, names: tuple[str, str]) -> None:
    (run / "model.safetensors").write_bytes(model_bytes(*model_of(*names)))
    assert "cannot be exported" in refused(run)
    assert not (run.parent / "onnx").exists()
