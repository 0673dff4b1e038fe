"""A model on disk predicts as the one in memory; anything else is refused in one line."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import made_up_models
import pytest
import torch
from broken_runs import damage
from data_checks import refusal
from made_up_checkpoints import write_checkpoint
from made_up_models import RULES, features_for, fusion_for, sequences_for
from safetensors.torch import save

from common.config import FusionRule, ModelConfig
from common.data.batching import pad_all
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, build_model
from common.model.predict import predict
from common.seal import read_sealed, write_sealed
from common.task import Task
from server.model_file import CHECKPOINT, FORMAT, load_model, model_bytes, to_header

DROPOUT = {"default": 0.1, "audio": 0.2}
SIZES = ModelConfig(4, 2, 1, decoder_layers=1, causal=True, attention_dropout=DROPOUT)


def model_for(task: Task = Task.regression) -> HAFedformer:
    spec = made_up_models.model_for(task, tabular=["audio"], names=["joy", "fear"]).spec
    model = build_model(replace(spec, model=SIZES), seed=8)
    for buffer in model.buffers():  # the standardisation
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    return model.eval()


def write_plain(folder: Path, model: HAFedformer, fusion: Fusion) -> Path:
    (folder / "model").write_bytes(model_bytes(model, fusion))
    return folder / "model"


def write_in_checkpoint(folder: Path, model: HAFedformer, fusion: Fusion) -> Path:
    return write_checkpoint(folder / "run", 2, model, fusion)


@pytest.mark.parametrize("write", [write_plain, write_in_checkpoint])
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", RULES)
def test_loaded_model_predicts_bit_for_bit(
    tmp_path: Path, task: Task, rule: FusionRule, write: Callable[..., Path]
) -> None:
    model, fusion = model_for(task), fusion_for(task, rule)
    path = write(tmp_path, model, fusion)
    before = torch.get_rng_state()
    loaded, loaded_fusion = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert loaded.spec == model.spec
    assert loaded_fusion == fusion
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    features = features_for({"language": [4, 2, 1], "audio": [3, 0, 3], "vision": [1, 0, 5]})
    inputs = {name: pad_all(each) for name, each in sequences_for(features).items()}
    one, two = predict(model, fusion, inputs), predict(loaded, loaded_fusion, inputs)
    assert torch.equal(one.values, two.values)
    assert one.std is two.std is None or torch.equal(one.std, two.std)


@pytest.mark.parametrize("task", list(Task))
def test_numbers_of_a_model_that_does_not_say_what_they_are_are_sentiment(
    tmp_path: Path, task: Task
) -> None:
    model = made_up_models.model_for(task, sentiment=False)
    plain = asdict(model.spec)
    assert plain.pop("sentiment") is False
    fusion = json.dumps(fusion_for(task).to_dict())
    metadata = {"format": FORMAT, "spec": json.dumps(plain), "fusion": fusion}
    (tmp_path / "model").write_bytes(save(dict(model.state_dict()), metadata))
    assert load_model(tmp_path / "model")[0].spec.sentiment is (task is Task.regression)


def refused(path: Path, word: str) -> None:
    refusal(lambda: load_model(path), path.name, word)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_file_that_is_cut_off(tmp_path: Path, keep: int) -> None:
    (tmp_path / "model").write_bytes(model_bytes(model_for(), fusion_for())[:keep])
    refused(tmp_path / "model", "damaged")


def test_what_is_no_model(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "does not exist")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 something else entirely" * 20)
    refused(tmp_path / "zip", "damaged")
    for metadata in (None, {"format": "pt"}, {"format": "ha-fedformer-99"}):
        (tmp_path / "other").write_bytes(save({"w": torch.zeros(2)}, metadata))
        refused(tmp_path / "other", FORMAT)


# Checkpoints --------------------------------------------------------------------------------------


def changed(path: Path, **parts: Any) -> Path:
    """Write a checkpoint again with parts of its header changed, or left out if None."""
    header, tensors, _ = read_sealed(path)
    header = {name: part for name, part in (header | parts).items() if part is not None}
    del header["seal"]
    write_sealed(path, {name: tensor.clone().numpy() for name, tensor in tensors.items()}, header)
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = write_in_checkpoint(tmp_path, model_for(), fusion_for())
    load_model(changed(path))  # it is good
    return path


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_a_checkpoint_that_is_cut_off_or_damaged(kept: Path, keep: int) -> None:
    whole = kept.read_bytes()
    kept.write_bytes(whole[:keep])
    refused(kept, "is damaged: ")
    kept.write_bytes(whole)
    damage(kept)
    refused(kept, "is damaged: its bytes do not match its seal")


def test_a_checkpoint_of_another_version_names_what_can_be_used(kept: Path) -> None:
    former = "ha-fedformer-checkpoint-1"
    refused(changed(kept, format=former), f"is a checkpoint of another version ({former}, and this")
    refused(kept, f"reads {CHECKPOINT}); give its run's model.safetensors")


@pytest.mark.parametrize("form", [None, "pt", FORMAT, 3])
def test_a_sealed_file_of_something_else(kept: Path, form: object) -> None:
    refused(changed(kept, format=form), f"is not a model of this project (format {FORMAT}, or ")


@pytest.mark.parametrize(
    "parts", [{"fusion": None}, {"spec": None}, {"spec": {}}, {"fusion": {"rule": "majority"}}]
)
def test_a_checkpoint_that_rebuilds_nothing(kept: Path, parts: dict[str, Any]) -> None:
    refused(changed(kept, **parts), "is damaged: ")


def test_a_file_that_cannot_be_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    refused(kept, "cannot be read: Permission denied")


# Contents -----------------------------------------------------------------------------------------


def model_sized(**sizes: Any) -> dict[str, Any]:
    return {"spec": asdict(replace(model_for().spec, model=replace(SIZES, **sizes)))}


def fusion_with(**parts: Any) -> dict[str, Any]:
    return {"fusion": fusion_for().to_dict() | parts}


EXPERTS = fusion_for().to_dict()["experts"]
OPINIONS = fusion_for(rule=FusionRule.calibrated).to_dict()["joint"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (model_sized(layers=10**6), "is damaged: a model of 3000001 layers, and "),
        (model_sized(decoder_layers=10**9), "is damaged: a model of 1000000003 layers, and "),
        (model_sized(width=10**8), "has shape "),
        (model_sized(layers=2), "is missing"),
        (model_sized(layers=-2), "is extra"),
        (model_sized(width=0), "is damaged: 2 heads do not divide a width of 0"),
        (model_sized(heads=0), "is damaged: 0 heads do not divide a width of 4"),
        (model_sized(heads=3), "is damaged: 3 heads do not divide a width of 4"),
        (model_sized(layers="x"), "is damaged: model.layers: "),
        (fusion_with(prior=[1.0]), "is damaged: the prior has 1 numbers, expected 2"),
        (fusion_with(prior=[1.0, 0.0]), "is damaged: a variance is 0.0, expected more than 0"),
        (fusion_with(prior=["a", 1.0]), "is damaged: prior.0: "),
        (fusion_with(experts=EXPERTS | {"audio": {"slope": "a"}}), "experts.audio.slope: "),
        (fusion_with(prior=[float("nan"), 1.0]), "is damaged: Out of range float"),
        (fusion_with(task="classification"), "is damaged: a model of regression, and fusion of c"),
        (fusion_with(experts={"audio": {}}), "is damaged: fusion is of other modalities"),
        (fusion_with(rule="calibrated", joint=OPINIONS | {"opinions": {}}), "other modalities"),
        (
            fusion_with(rule="calibrated", joint=OPINIONS | {"correlations": [[0.0] * 3] * 3}),
            "is damaged: ",
        ),
        (
            fusion_with(experts=EXPERTS | {"audio": {"unexplained": -1.0}}),
            "is damaged: a variance is -1.0",
        ),
    ],
)
@pytest.mark.parametrize("write", [write_plain, write_in_checkpoint])
def test_a_file_that_claims_what_it_does_not_hold(
    tmp_path: Path, parts: dict[str, Any], words: str, write: Callable[..., Path]
) -> None:
    path = write(tmp_path, model_for(), fusion_for())
    if write is write_in_checkpoint:
        changed(path, **parts)
    else:
        spec, fusion = asdict(model_for().spec), fusion_for().to_dict()
        header = {"spec": spec, "fusion": fusion} | parts
        metadata = {"format": FORMAT} | {name: json.dumps(each) for name, each in header.items()}
        path.write_bytes(save(dict(model_for().state_dict()), metadata))
    began = time.monotonic()
    refused(path, words)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["decoder.head.weight", "encoders.audio.standardise.scale"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, name: str, value: float) -> None:
    model = model_for()
    model.state_dict()[name].view(-1)[-1] = value
    path = write_plain(tmp_path, model, fusion_for())
    refused(path, f"is damaged: tensor {name!r} holds a value that is not finite")


def test_another_tensor_is_named(tmp_path: Path) -> None:
    spec = {
        name: json.dumps(part) for name, part in to_header(model_for().spec, fusion_for()).items()
    }
    weights = dict(model_for().state_dict()) | {"decoder.surprise": torch.zeros(2)}
    (tmp_path / "model").write_bytes(save(weights, {"format": FORMAT} | spec))
    refused(tmp_path / "model", "is damaged: tensor 'decoder.surprise' is extra")


# Metadata -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("spec", value) for value in (None, "{", "[]", "{}")),
        ("spec", {"model": {}}),
        ("spec", {"features": {"audio": [3]}}),
        ("spec", {"task": "haiku"}),
        ("spec", {"model": {"depth": 2}}),
        *(("fusion", value) for value in (None, "nonsense", "[]")),
        ("fusion", {"rule": "majority"}),
        ("fusion", {"experts": {"audio": {"luck": 1}}}),
    ],
)
def test_metadata_of_no_model(tmp_path: Path, key: str, value: str | dict[str, Any] | None) -> None:
    model = model_for()
    good = {"spec": asdict(model.spec), "fusion": fusion_for().to_dict()}
    metadata = {"format": FORMAT} | {name: json.dumps(each) for name, each in good.items()}
    (tmp_path / "model").write_bytes(save(dict(model.state_dict()), metadata))
    load_model(tmp_path / "model")  # otherwise it is good
    metadata.pop(key)
    if value is not None:
        metadata[key] = value if isinstance(value, str) else json.dumps(good[key] | value)
    (tmp_path / "model").write_bytes(save(dict(model.state_dict()), metadata))
    refused(tmp_path / "model", "damaged")
