"""A model on disk predicts as the one in memory; anything else is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from common.config import FusionRule, ModelConfig
from common.data.batching import Padded
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.model.predict import predict
from common.task import Task
from server.model_file import FORMAT, load_model, model_bytes

WIDTHS = {"audio": 3, "vision_2": 5}
#: Of the statistics; vision_2 is a table of five steps.
SHAPES = {"audio": (3,), "vision_2": (5, 5)}
SMALL = ModelConfig(
    width=4,
    heads=2,
    layers=1,
    decoder_layers=1,
    causal=True,
    attention_dropout={"default": 0.1, "audio": 0.2},
)


def model_for(task: Task) -> HAFedformer:
    model = build_model(ModelSpec(SHAPES, 1 if task is Task.regression else 3, task, SMALL), seed=8)
    for name, shape in SHAPES.items():
        rng = np.random.default_rng(len(shape))
        moments = FeatureMoments(
            np.full(shape, 9.0), rng.normal(size=shape), 9 * rng.uniform(0.5, 2, shape)
        )
        set_standardisation(model, name, moments)
    return model


def fusion_for(task: Task, rule: FusionRule) -> Fusion:
    prior = (0.1, 1.3) if task is Task.regression else (-1.0, -0.5, 0.25)
    experts = {name: Expert(1 / 3, 0.1, 0.6, 0.7 + i, 40.0 + i) for i, name in enumerate(WIDTHS)}
    return Fusion(rule, task, prior, experts)


def inputs() -> dict[str, Padded]:
    generator = torch.Generator().manual_seed(0)
    lengths = {"audio": torch.tensor([4, 2, 1]), "vision_2": torch.tensor([1, 0, 5])}
    return {
        name: Padded(
            torch.randn(3, int(lengths[name].max()), width, generator=generator), lengths[name]
        )
        for name, width in WIDTHS.items()
    }


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", [FusionRule.reliability, FusionRule.product_of_experts])
def test_loaded_model_predicts_bit_for_bit(tmp_path: Path, task: Task, rule: FusionRule) -> None:
    model, fusion = model_for(task).eval(), fusion_for(task, rule)
    (tmp_path / "model").write_bytes(model_bytes(model, fusion))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loaded, loaded_fusion = load_model(tmp_path / "model")
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert loaded.spec == model.spec
    assert loaded_fusion == fusion
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    one, two = predict(model, fusion, inputs()), predict(loaded, loaded_fusion, inputs())
    assert torch.equal(one.values, two.values)
    assert (one.std is None) == (two.std is None)
    assert one.std is None or torch.equal(one.std, two.std)


def refused(path: Path, word: str) -> None:
    with pytest.raises(UserError) as raised:
        load_model(path)
    message = str(raised.value)
    assert path.name in message and word in message and "\n" not in message


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_file_that_is_cut_off(tmp_path: Path, keep: int) -> None:
    content = model_bytes(
        model_for(Task.regression), fusion_for(Task.regression, FusionRule.reliability)
    )
    (tmp_path / "model").write_bytes(content[:keep])
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


SPEC = {
    "features": {"audio": [3]},
    "outputs": 1,
    "task": "regression",
    "model": {"width": 4, "heads": 2, "layers": 1, "decoder_layers": 1},
}
MEAN = {"rule": "mean", "task": "regression", "prior": [0, 1]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", None),
        ("fusion", None),
        ("spec", "{"),
        ("spec", "[]"),
        ("spec", "{}"),
        ("spec", json.dumps(SPEC | {"model": {}})),
        ("spec", json.dumps(SPEC | {"task": "haiku"})),
        ("spec", json.dumps(SPEC | {"features": {}, "model": {"depth": 2}})),
        ("fusion", "nonsense"),
        ("fusion", "[]"),
        ("fusion", json.dumps(MEAN | {"rule": "majority", "prior": [], "experts": {}})),
        ("fusion", json.dumps(MEAN | {"experts": {"audio": {"luck": 1}, "vision_2": {}}})),
    ],
)
def test_metadata_that_rebuilds_no_model(tmp_path: Path, key: str, value: str | None) -> None:
    model, fusion = model_for(Task.regression), fusion_for(Task.regression, FusionRule.mean)
    metadata = {
        "format": FORMAT,
        "spec": json.dumps(SPEC | {"features": SHAPES}),
        "fusion": json.dumps(fusion.to_dict()),
    }
    (tmp_path / "model").write_bytes(save(dict(model.state_dict()), metadata))
    load_model(tmp_path / "model")  # otherwise it is good
    changed = {name: text for name, text in (metadata | {key: value}).items() if text is not None}
    (tmp_path / "model").write_bytes(save(dict(model.state_dict()), changed))
    refused(tmp_path / "model", "damaged")
