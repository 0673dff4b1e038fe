"""Scores against the definitions, for all modalities together, each alone, rules and subsets."""

import itertools
from collections import Counter
from threading import Lock

import numpy as np
import pytest
import torch

import server.evaluate
from common.config import FusionRule, ModelConfig
from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset, Sequences
from common.diagnostics import diagnostics
from common.metrics import compute_metrics
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.model.predict import Prediction, predict
from common.task import Task
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets, predictions

WIDTHS = {"audio": 3, "vision": 2}
SMALL = ModelConfig(width=4, heads=2, layers=1, decoder_layers=1)
RULES = [FusionRule.mean, FusionRule.reliability, FusionRule.product_of_experts]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def items(
    count: int = 15,
    *,
    without: dict[str, list[int]] | None = None,
    widths: dict[str, int] = WIDTHS,
) -> MultimodalDataset:
    """Make ragged items; `without` says which lack a modality."""
    rng = np.random.default_rng(0)
    sequences = {}
    for name, width in widths.items():
        lengths = rng.integers(1, 5, count)
        lengths[(without or {}).get(name, [])] = 0
        values = rng.normal(size=(max(lengths.sum(), 1), width)).astype(np.float32)
        sequences[name] = Sequences(values, np.cumsum(lengths) - lengths, lengths)
    labels = rng.normal(size=count).astype(np.float32)
    names = np.arange(count).astype(np.str_)
    return MultimodalDataset(names, names, labels, sequences)


def model_for(
    task: Task = Task.regression, outputs: int = 1, widths: dict[str, int] = WIDTHS
) -> HAFedformer:
    return build_model(
        ModelSpec({name: (width,) for name, width in widths.items()}, outputs, task, SMALL), seed=3
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
    return np.stack([each.values[0] for each in singly(model, fusion, dataset, names)])


def singly(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> list[Prediction]:
    model.eval()
    found = []
    for item in range(len(dataset)):
        index = np.array([item])
        inputs = {name: pad_all(dataset.sequences[name].select(index)) for name in names}
        found.append(predict(model, fusion, inputs))
    return found


def expected_scores(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> dict[str, float]:
    """Score numbers that were predicted one by one."""
    found = singly(model, fusion, dataset, names)
    values = np.array([each.values.item() for each in found])
    std = np.array([each.std.item() for each in found])
    metrics = compute_metrics(Task.regression, dataset.labels, values, std)
    return pytest.approx(metrics, rel=1e-4, abs=1e-4)


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


# ---- encoded once ------------------------------------------------------------------------------


def count_encoding(model: HAFedformer) -> Counter[str]:
    """Count the items that each encoder sees from now on; batches come from several threads."""
    seen: Counter[str] = Counter()
    lock = Lock()
    for name, encoder in model.encoders.items():

        def count(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            with lock:
                seen[name] += len(inputs[0])

        encoder.register_forward_pre_hook(count)
    return seen


@pytest.mark.parametrize("rule", RULES)
def test_every_encoder_sees_every_item_once(
    rule: FusionRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", 4)
    model, dataset, once = model_for(), items(), {"audio": 15, "vision": 15}
    seen = count_encoding(model)
    evaluate(model, fusion_for(rule), dataset)
    assert seen == once
    seen.clear()
    evaluate_rules(model, {each: fusion_for(each) for each in RULES}, dataset)
    assert seen == once
    seen.clear()
    evaluate_subsets(model, fusion_for(rule), dataset)
    assert seen == once


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [1, 4, 256])
def test_scores_do_not_depend_on_batches(
    rule: FusionRule, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", batch)
    # In batches of 1 and of 4 some hold no item with audio, and some items are left out.
    dataset = items(without={"audio": [0, 1, 2, 3, 9], "vision": [8, 9, 10]})
    model, fusion = model_for(), fusion_for(rule)
    scores = evaluate(model, fusion, dataset)
    kept = {"audio": {0, 1, 2, 3, 9}, "vision": {8, 9, 10}, "multimodal": {9}}
    for title, left_out in kept.items():
        names = ["audio", "vision"] if title == "multimodal" else [title]
        usable = dataset.select(np.array([i for i in range(15) if i not in left_out]))
        assert scores[title] == expected_scores(model, fusion, usable, names)


@pytest.mark.parametrize("rule", RULES)
def test_numbers_are_scored_with_their_deviations(rule: FusionRule) -> None:
    scores = evaluate(model_for(), fusion_for(rule), items())
    for metrics in scores.values():
        assert list(metrics)[-2:] == ["coverage_50", "coverage_90"]
        assert 0 < metrics["coverage_50"] <= metrics["coverage_90"] <= 1


def test_a_modality_that_no_item_has_is_named() -> None:
    dataset = items(without={"vision": list(range(15))})
    with pytest.raises(ValueError, match="no item has any of vision"):
        evaluate(model_for(), fusion_for(FusionRule.mean), dataset)


def test_an_item_without_the_modalities_cannot_be_predicted() -> None:
    dataset = items(without={"audio": [3]})
    with pytest.raises(ValueError, match="item 3 of the batch has none of audio"):
        predictions(model_for(), fusion_for(FusionRule.mean), dataset, ["audio"])


# ---- several rules -----------------------------------------------------------------------------


def test_rules_score_as_each_does_by_itself() -> None:
    model, dataset = model_for(), items(without={"audio": [2, 5], "vision": [5, 6]})
    fusions = {f"by {rule}": fusion_for(rule) for rule in RULES}
    found = evaluate_rules(model, fusions, dataset)
    assert list(found) == list(fusions)
    for title, fusion in fusions.items():
        assert found[title] == evaluate(model, fusion, dataset)["multimodal"]
    assert len({metrics["mae"] for metrics in found.values()}) == 3


# ---- subsets -----------------------------------------------------------------------------------


def letters(count: int) -> dict[str, int]:
    return dict.fromkeys("zyxwvu"[:count], 2)


def of_letters(count: int) -> Fusion:
    experts = {name: Expert(1.0, 0.0, 0.9, 0.1, 9.0) for name in letters(count)}
    return Fusion(FusionRule.product_of_experts, Task.regression, (0.1, 1.0), experts)


@pytest.mark.parametrize("rule", RULES)
def test_subsets_are_scored_on_the_items_that_have_everything(rule: FusionRule) -> None:
    dataset = items(without={"audio": [0, 3, 9], "vision": [3, 4]})
    model, fusion = model_for(), fusion_for(rule)
    found = evaluate_subsets(model, fusion, dataset)
    assert list(found) == ["audio", "vision", "audio+vision"]
    complete = dataset.select(np.array([i for i in range(15) if i not in (0, 3, 4, 9)]))
    for title, metrics in found.items():
        assert metrics == expected_scores(model, fusion, complete, title.split("+"))


def test_without_a_complete_item_each_subset_has_its_own() -> None:
    dataset = items(without={"audio": list(range(6)), "vision": list(range(6, 15))})
    model, fusion = model_for(), fusion_for(FusionRule.reliability)
    found = evaluate_subsets(model, fusion, dataset)
    kept = {"audio": range(6, 15), "vision": range(6), "audio+vision": range(15)}
    assert list(found) == list(kept)
    for title, index in kept.items():
        usable = dataset.select(np.array(index))
        assert found[title] == expected_scores(model, fusion, usable, title.split("+"))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_subset_of_up_to_four_modalities_is_scored(count: int) -> None:
    widths = letters(count)
    found = evaluate_subsets(model_for(widths=widths), of_letters(count), items(widths=widths))
    every = [
        "+".join(subset)
        for size in range(1, count + 1)
        for subset in itertools.combinations(widths, size)
    ]
    assert list(found) == every
    assert len(every) == 2**count - 1


def test_of_more_modalities_those_alone_all_but_one_and_all() -> None:
    widths = letters(5)
    found = evaluate_subsets(model_for(widths=widths), of_letters(5), items(widths=widths))
    all_but_one = ["z+y+x+w", "z+y+x+v", "z+y+w+v", "z+x+w+v", "y+x+w+v"]
    assert list(found) == [*"zyxwv", *all_but_one, "z+y+x+w+v"]


# ---- diagnostics -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_diagnostics_are_of_the_predictions(
    rule: FusionRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", 4)
    dataset = items(without={"audio": [0, 3, 9], "vision": [3, 4]})
    model, fusion = model_for(), fusion_for(rule)
    found = diagnose(model, fusion, dataset)
    assert list(found) == ["multimodal", "audio", "vision"]
    left_out = {"multimodal": {3}, "audio": {0, 3, 9}, "vision": {3, 4}}
    for title, missing in left_out.items():
        names = ["audio", "vision"] if title == "multimodal" else [title]
        usable = dataset.select(np.array([i for i in range(15) if i not in missing]))
        alone = singly(model, fusion, usable, names)
        values = np.array([each.values.item() for each in alone])
        std = np.array([each.std.item() for each in alone])
        expected = diagnostics(Task.regression, usable.labels, values, std)
        assert found[title]["confusion"] == expected["confusion"]
        for column, numbers in expected["calibration"].items():
            assert found[title]["calibration"][column] == pytest.approx(numbers, rel=1e-4)


def test_diagnostics_of_classes_agree_with_the_scores() -> None:
    plain = items()
    dataset = MultimodalDataset(plain.ids, plain.groups, np.arange(15) % 3, plain.sequences)
    model = model_for(Task.classification, outputs=3)
    prior = tuple(np.log([0.5, 0.3, 0.2]))
    fusion = fusion_for(FusionRule.product_of_experts, Task.classification, prior)
    scores = evaluate(model, fusion, dataset)
    for title, parts in diagnose(model, fusion, dataset).items():
        counts = np.array(parts["confusion"]["counts"])
        assert counts.sum() == 15
        assert np.trace(counts) / 15 == pytest.approx(scores[title]["accuracy"])


def test_diagnostics_encode_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", 4)
    model = model_for()
    seen = count_encoding(model)
    diagnose(model, fusion_for(FusionRule.product_of_experts), items())
    assert seen == {"audio": 15, "vision": 15}
