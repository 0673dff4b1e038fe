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


def saved(path: Path) -> bytes:
    content = model_bytes(
        model_for(Task.regression), fusion_for(Task.regression, FusionRule.reliability)
    )
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", [FusionRule.reliability, FusionRule.product_of_experts])
def test_loaded_model_predicts_bit_for_bit(tmp_path: Path, task: Task, rule: FusionRule) -> None:
    model, fusion = model_for(task).eval(), fusion_for(task, rule)
    (tmp_path / "model").write_bytes(model_bytes(model, fusion))
    loaded, loaded_fusion = load_model(tmp_path / "model")
    assert loaded_fusion == fusion
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    one, two = predict(model, fusion, inputs()), predict(loaded, loaded_fusion, inputs())
    assert torch.equal(one.values, two.values)
    assert (one.std is None) == (two.std is None)
    if one.std is not None and two.std is not None:
        assert torch.equal(one.std, two.std)


def test_loaded_model_says_what_it_was_built_from(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.spec == model_for(Task.regression).spec


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load_model(tmp_path / "model")
    assert torch.equal(torch.rand(1), expected)


def refused(path: Path, word: str) -> None:
    with pytest.raises(UserError) as raised:
        load_model(path)
    message = str(raised.value)
    assert path.name in message and word in message and "\n" not in message


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "does not exist")


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "folder")


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_file_that_is_cut_off(tmp_path: Path, keep: int) -> None:
    content = saved(tmp_path / "model")
    (tmp_path / "model").write_bytes(content[:keep])
    refused(tmp_path / "model", "damaged")


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"PK\x03\x04 something else entirely" * 20)
    refused(tmp_path / "model", "damaged")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "ha-fedformer-99"}])
def test_safetensors_of_something_else(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    (tmp_path / "model").write_bytes(save({"w": torch.zeros(2)}, metadata))
    refused(tmp_path / "model", FORMAT)


def damaged(path: Path, key: str, value: str | None) -> None:
    """Write a model with one entry of the metadata changed or, with None, left out."""
    model, fusion = model_for(Task.regression), fusion_for(Task.regression, FusionRule.mean)
    spec = {
        "features": SHAPES,
        "outputs": 1,
        "task": "regression",
        "model": {"width": 4, "heads": 2, "layers": 1, "decoder_layers": 1},
    }
    metadata: dict[str, str | None] = {
        "format": FORMAT,
        "spec": json.dumps(spec),
        "fusion": json.dumps(fusion.to_dict()),
    }
    metadata[key] = value
    kept = {name: text for name, text in metadata.items() if text is not None}
    path.write_bytes(save(dict(model.state_dict()), kept))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", None),
        ("fusion", None),
        ("spec", "{"),
        ("spec", "[]"),
        ("spec", "{}"),
        ("spec", '{"features": {"audio": [3]}, "outputs": 1, "task": "regression", "model": {}}'),
        ("spec", '{"features": {"audio": [3]}, "outputs": 1, "task": "haiku", "model": {}}'),
        ("spec", '{"features": {}, "outputs": 1, "task": "regression", "model": {"depth": 2}}'),
        ("fusion", "nonsense"),
        ("fusion", "[]"),
        ("fusion", '{"rule": "majority", "task": "regression", "prior": [], "experts": {}}'),
        (
            "fusion",
            '{"rule": "mean", "task": "regression", "prior": [0, 1], '
            '"experts": {"audio": {"luck": 1}, "vision_2": {}}}',
        ),
    ],
)
def test_metadata_that_rebuilds_no_model(tmp_path: Path, key: str, value: str | None) -> None:
    damaged(tmp_path / "model", key, value)
    refused(tmp_path / "model", "damaged")


def test_metadata_by_hand_is_otherwise_good(tmp_path: Path) -> None:
    damaged(tmp_path / "model", "format", FORMAT)
    load_model(tmp_path / "model")
