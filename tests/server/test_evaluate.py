"""Scores against the definitions, for all modalities together and for each alone."""

import numpy as np
import pytest
import torch

import server.evaluate
from common.config import FusionRule, ModelConfig
from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset, Sequences
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.model.predict import predict
from common.task import Task
from server.evaluate import evaluate, predictions

WIDTHS = {"audio": 3, "vision": 2}
SMALL = ModelConfig(width=4, heads=2, layers=1, decoder_layers=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def items(count: int = 15, *, without: dict[str, list[int]] | None = None) -> MultimodalDataset:
    """Make ragged items; `without` says which lack a modality."""
    rng = np.random.default_rng(0)
    sequences = {}
    for name, width in WIDTHS.items():
        lengths = rng.integers(1, 5, count)
        lengths[(without or {}).get(name, [])] = 0
        values = rng.normal(size=(max(lengths.sum(), 1), width)).astype(np.float32)
        sequences[name] = Sequences(values, np.cumsum(lengths) - lengths, lengths)
    labels = rng.normal(size=count).astype(np.float32)
    names = np.arange(count).astype(np.str_)
    return MultimodalDataset(names, names, labels, sequences)


def model_for(task: Task = Task.regression, outputs: int = 1) -> HAFedformer:
    return build_model(
        ModelSpec({name: (width,) for name, width in WIDTHS.items()}, outputs, task, SMALL), seed=3
    )


def fusion_for(
    rule: FusionRule, task: Task = Task.regression, prior: tuple[float, ...] = (0.1, 1.0)
) -> Fusion:
    experts = {"audio": Expert(1.5, 0.2, 0.6, 0.7, 40.0), "vision": Expert(0.5, -0.1, 0.9, 0.1, 40)}
    return Fusion(rule, task, prior, experts)


def one_by_one(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> np.ndarray:
    """Predict each item alone, so that nothing can be mixed up."""
    model.eval()
    values = []
    for item in range(len(dataset)):
        index = np.array([item])
        inputs = {name: pad_all(dataset.sequences[name].select(index)) for name in names}
        values.append(predict(model, fusion, inputs).values[0].numpy())
    return np.stack(values)


@pytest.mark.parametrize("rule", [FusionRule.mean, FusionRule.product_of_experts])
@pytest.mark.parametrize("batch", [1, 4, 256])
def test_predictions_are_in_the_order_of_the_items(
    rule: FusionRule, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", batch)
    model, fusion, dataset = model_for(), fusion_for(rule), items()
    for names in (["audio", "vision"], ["vision"]):
        found = predictions(model, fusion, dataset, names)
        assert found.shape == (15,)
        expected = one_by_one(model, fusion, dataset, names)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("rule", [FusionRule.reliability, FusionRule.product_of_experts])
def test_scores_are_those_of_the_predictions(rule: FusionRule) -> None:
    model, fusion, dataset = model_for(), fusion_for(rule), items()
    scores = evaluate(model, fusion, dataset)
    assert list(scores) == ["multimodal", "audio", "vision"]
    subsets = {"multimodal": ["audio", "vision"], "audio": ["audio"], "vision": ["vision"]}
    for title, names in subsets.items():
        predicted = one_by_one(model, fusion, dataset, names).astype(np.float64)
        truth = dataset.labels.astype(np.float64)
        assert scores[title]["mae"] == pytest.approx(np.abs(truth - predicted).mean(), rel=1e-4)
        assert scores[title]["corr"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1], abs=1e-4)
        assert scores[title]["acc2"] == np.mean((truth >= 0) == (predicted >= 0))
    assert scores["multimodal"]["mae"] != scores["audio"]["mae"]


def test_items_without_a_modality_count_for_the_others_only() -> None:
    dataset = items(without={"audio": [0, 3, 9], "vision": [3, 4]})
    model, fusion = model_for(), fusion_for(FusionRule.reliability)
    scores = evaluate(model, fusion, dataset)
    kept = {
        "audio": [i for i in range(15) if i not in (0, 3, 9)],
        "vision": [i for i in range(15) if i not in (3, 4)],
        "multimodal": [i for i in range(15) if i != 3],
    }
    for title, index in kept.items():
        names = ["audio", "vision"] if title == "multimodal" else [title]
        usable = dataset.select(np.array(index))
        predicted = one_by_one(model, fusion, usable, names)
        expected = np.abs(usable.labels - predicted).mean()
        assert scores[title]["mae"] == pytest.approx(expected, rel=1e-4)


def test_classes_are_scored_by_their_probabilities() -> None:
    plain = items()
    labels = np.arange(15) % 3
    dataset = MultimodalDataset(plain.ids, plain.groups, labels, plain.sequences)
    model = model_for(Task.classification, outputs=3)
    prior = tuple(np.log([0.5, 0.3, 0.2]))
    fusion = fusion_for(FusionRule.product_of_experts, Task.classification, prior)
    scores = evaluate(model, fusion, dataset)
    probabilities = predictions(model, fusion, dataset, ["audio", "vision"])
    assert probabilities.shape == (15, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert scores["multimodal"]["accuracy"] == np.mean(probabilities.argmax(axis=1) == labels)
    expected = -np.log(probabilities[np.arange(15), labels]).mean()
    assert scores["multimodal"]["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_constant_predictions_score_no_correlation_without_a_warning() -> None:
    model = model_for()
    torch.nn.init.zeros_(model.decoder.head.weight)
    scores = evaluate(model, fusion_for(FusionRule.mean), items())
    assert [scores[title]["corr"] for title in scores] == [0.0, 0.0, 0.0]


def test_model_is_left_in_evaluation_mode_and_dropout_does_not_show() -> None:
    model, fusion = model_for(), fusion_for(FusionRule.mean)
    model.train()
    first = evaluate(model, fusion, items())
    assert not model.training
    assert evaluate(model, fusion, items()) == first
