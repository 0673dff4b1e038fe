"""A run on labels a y + b is the run on labels y, in other units; so it is on renamed classes."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from trained_runs import arrays, train

from common.config import FusionRule
from common.model.ha_fedformer import HAFedformer
from server.prediction.predictor import Predictions, Predictor
from server.run.folder import SUMMARY
from server.run.source import initial_model

Array = NDArray[Any]

#: What labels are multiplied with; then a thousand of it is added.
UNITS = (1e-4, 15.0, 1e4)
SETTINGS = ("strategy.weights=agreement", "strategy.local.logit_adjustment=always")
RULES = [rule for rule in FusionRule if rule is not FusionRule.auto]


def run(folder: Path, labels: Array, *overrides: str) -> Path:
    content = arrays()
    del content["sums"]
    path = folder.parent / f"{folder.name}.npz"
    np.savez(path, label=labels, **content)
    settings = f"dataset=file dataset.path={path} dataset.group=video dataset.tabular=[vision]"
    return train(folder, *settings.split(), *overrides)


def numbers() -> Array:
    return arrays()["sums"] @ [1.0, 0.5, -0.2]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return run(folder / "plain", numbers(), *SETTINGS)


def predictions(folder: Path, rule: FusionRule) -> Predictions:
    """Predict items of which each modality is missing somewhere."""
    predictor, rng = Predictor.load(folder), np.random.default_rng(0)
    fitted = replace(predictor, fusion=replace(predictor.fusion, rule=rule))
    audio = [rng.normal(size=(1 + n % 7, 3)).astype(np.float32) for n in range(40)]
    vision = [rng.normal(size=(4, 2)).astype(np.float32) for _ in range(40)]
    return fitted.predict(
        {
            "audio": [None if n % 5 == 1 else own for n, own in enumerate(audio)],
            "vision": [None if n % 5 == 2 else own for n, own in enumerate(vision)],
        }
    )


@pytest.mark.parametrize("unit", UNITS)
def test_labels_in_other_units_give_predictions_in_those(
    folder: Path, plain: Path, unit: float
) -> None:
    shift = 1000 * unit
    scaled = run(folder / f"{unit}", unit * numbers() + shift, *SETTINGS)
    for rule in RULES:
        expected, found = predictions(plain, rule), predictions(scaled, rule)
        assert expected.std is not None and found.std is not None
        spread = unit * numbers().std()
        for name in (None, "audio", "vision"):
            values = expected.values if name is None else expected.alone[name]
            others = found.values if name is None else found.alone[name]
            moved = unit * values.astype(np.float64) + shift
            np.testing.assert_allclose(others, moved, rtol=0, atol=1e-4 * spread)
        np.testing.assert_allclose(found.std, unit * expected.std, rtol=1e-5)
        assert expected.values.std() > 0.01  # it is no constant that is compared
    scores, others = (summary(each)["test"]["multimodal"] for each in (plain, scaled))
    # Predictions are float32, of which a thousandth of the deviation of these is the last digits.
    assert others["corr"] == pytest.approx(scores["corr"], abs=1e-3)
    assert others["mae"] == pytest.approx(unit * scores["mae"], rel=1e-3)
    assert others["coverage_90"] == scores["coverage_90"]
    assert summary(scaled)["label_skew"] == pytest.approx(summary(plain)["label_skew"], abs=1e-9)


@pytest.mark.parametrize("strategy", ["pooled", "centralised", "early_fusion", "local"])
def test_baselines_score_the_same_in_other_units(folder: Path, strategy: str) -> None:
    def scores(title: str, labels: Array) -> dict[str, Any]:
        done = run(folder / f"{strategy}-{title}", labels, f"strategy={strategy}", "rounds=1")
        found: dict[str, Any] = summary(done)["test"]
        return found

    plain = scores("plain", numbers())
    for unit in (1e-4, 1e4):
        scaled = scores(f"{unit}", unit * (numbers() + 1000))
        for name, own in plain.items():
            assert scaled[name]["corr"] == pytest.approx(own["corr"], abs=1e-3)
            assert scaled[name]["mae"] == pytest.approx(unit * own["mae"], rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1e6 / 3])
def test_labels_that_are_all_equal_can_be_trained_on(folder: Path, value: float) -> None:
    found = predictions(
        run(folder / f"constant-{value}", np.full(120, value)), FusionRule.reliability
    )
    assert found.std is not None and np.isfinite(found.std).all()
    # A network that has learnt 0 for two rounds, in units of 1.
    np.testing.assert_allclose(found.values, value, rtol=0, atol=1.5)


ORDER = np.array([2, 0, 1])


def test_classes_in_another_order_give_the_same_predictions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a decoder whose outputs are in that order."""
    labels = arrays()["sums"].argmax(axis=1)
    settings = ("dataset.task=classification", *SETTINGS)
    first = run(folder / "classes", labels, *settings)

    @cache
    def order() -> torch.Tensor:
        return torch.from_numpy(np.argsort(ORDER))

    def reordered(*arguments: Any) -> HAFedformer:
        model = initial_model(*arguments)
        for parameter in model.decoder.head.parameters():
            parameter.data = parameter.data[order()]
        return model

    monkeypatch.setattr("server.run.federation.initial_model", reordered)
    second = run(folder / "reordered", ORDER[labels], *settings)
    for rule in RULES:
        expected, found = predictions(first, rule).values, predictions(second, rule).values
        np.testing.assert_allclose(found[:, ORDER], expected, atol=1e-3)
        assert expected.std(axis=0).min() > 0.001
    assert math.isclose(summary(first)["label_skew"], summary(second)["label_skew"])
