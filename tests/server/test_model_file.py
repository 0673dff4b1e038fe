"""A model on disk predicts as the one in memory; anything else is refused in one line."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import made_up_models
import pytest
import torch
from data_checks import refusal
from made_up_models import RULES, features_for, fusion_for, sequences_for
from safetensors.torch import save

from common.config import FusionRule, ModelConfig
from common.data.batching import pad_all
from common.model.ha_fedformer import HAFedformer, build_model
from common.model.predict import predict
from common.task import Task
from server.model_file import FORMAT, load_model, model_bytes

DROPOUT = {"default": 0.1, "audio": 0.2}
SIZES = ModelConfig(4, 2, 1, decoder_layers=1, causal=True, attention_dropout=DROPOUT)


def model_for(task: Task = Task.regression) -> HAFedformer:
    spec = made_up_models.model_for(task, tabular=["audio"], names=["joy", "fear"]).spec
    model = build_model(replace(spec, model=SIZES), seed=8)
    for buffer in model.buffers():  # the standardisation
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    return model.eval()


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", RULES)
def test_loaded_model_predicts_bit_for_bit(tmp_path: Path, task: Task, rule: FusionRule) -> None:
    model, fusion = model_for(task), fusion_for(task, rule)
    (tmp_path / "model").write_bytes(model_bytes(model, fusion))
    before = torch.get_rng_state()
    loaded, loaded_fusion = load_model(tmp_path / "model")
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
