"""Scores against the definitions, for all modalities together, each alone, rules and subsets."""

import itertools
from collections import Counter
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
import torch

import server.evaluate
from common.config import FusionRule, ModelConfig
from common.data.batching import pad_all
from common.data.dataset import LabelArray, MultimodalDataset, Sequences
from common.diagnostics import diagnostics
from common.metrics import compute_metrics
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.model.predict import predict
from common.task import Task
from server.evaluate import diagnose, evaluate, evaluate_rules, evaluate_subsets

WIDTHS = {"audio": 3, "vision": 2}
SMALL = ModelConfig(width=4, heads=2, layers=1, decoder_layers=1)
RULES = [FusionRule.mean, FusionRule.reliability, FusionRule.product_of_experts]

every_rule = pytest.mark.parametrize("rule", RULES)


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


#: Question to the modalities that may answer it.
QUESTIONS = {"multimodal": ["audio", "vision"], "audio": ["audio"], "vision": ["vision"]}


def singly(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> tuple[LabelArray, np.ndarray, np.ndarray | None]:
    """Predict each item that has any of the modalities alone, so that nothing can be mixed up."""
    model.eval()
    having = np.flatnonzero(dataset.present(names))
    found = []
    for item in having:
        index = np.array([item])
        inputs = {name: pad_all(dataset.sequences[name].select(index)) for name in names}
        found.append(predict(model, fusion, inputs))
    values = np.concatenate([each.values.numpy() for each in found])
    std = None if found[0].std is None else np.concatenate([each.std.numpy() for each in found])
    return dataset.labels[having], values, std


def expected_scores(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> dict[str, float]:
    metrics = compute_metrics(fusion.task, *singly(model, fusion, dataset, names))
    return pytest.approx(metrics, rel=1e-4, abs=1e-4)


def test_scores_follow_their_definitions() -> None:
    model, fusion, dataset = model_for(), fusion_for(FusionRule.product_of_experts), items()
    scores = evaluate(model, fusion, dataset)
    assert list(scores) == list(QUESTIONS)
    for title, names in QUESTIONS.items():
        truth, values, _ = singly(model, fusion, dataset, names)
        assert values.std() > 1e-3
        assert scores[title]["mae"] == pytest.approx(np.abs(truth - values).mean(), rel=1e-4)
        assert scores[title]["corr"] == pytest.approx(np.corrcoef(truth, values)[0, 1], abs=1e-4)
        assert scores[title]["acc2"] == np.mean((truth >= 0) == (values >= 0))
        assert list(scores[title])[-2:] == ["coverage_50", "coverage_90"]
        assert 0 < scores[title]["coverage_50"] <= scores[title]["coverage_90"] <= 1
    assert scores["multimodal"]["mae"] != scores["audio"]["mae"]


@every_rule
@pytest.mark.parametrize("batch", [1, 4, 256])
def test_an_item_counts_for_the_modalities_that_it_has_in_any_batches(
    rule: FusionRule, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", batch)
    # In batches of 1 and of 4 some hold no item with audio, and some items are left out.
    dataset = items(without={"audio": [0, 1, 2, 3, 9], "vision": [8, 9, 10]})
    model, fusion = model_for(), fusion_for(rule)
    scores, diagnosed = evaluate(model, fusion, dataset), diagnose(model, fusion, dataset)
    assert list(scores) == list(diagnosed) == list(QUESTIONS)
    for title, names in QUESTIONS.items():
        assert scores[title] == expected_scores(model, fusion, dataset, names)
        expected = diagnostics(Task.regression, *singly(model, fusion, dataset, names))
        assert diagnosed[title]["confusion"] == expected["confusion"]
        for column, numbers in expected["calibration"].items():
            assert diagnosed[title]["calibration"][column] == pytest.approx(numbers, rel=1e-4)


def test_classes_are_scored_by_their_probabilities() -> None:
    labels = np.arange(15) % 3
    dataset = replace(items(), labels=labels)
    model = model_for(Task.classification, outputs=3)
    prior = tuple(np.log([0.5, 0.3, 0.2]))
    fusion = fusion_for(FusionRule.product_of_experts, Task.classification, prior)
    scores, diagnosed = evaluate(model, fusion, dataset), diagnose(model, fusion, dataset)
    for title, names in QUESTIONS.items():
        _, probabilities, _ = singly(model, fusion, dataset, names)
        right = np.mean(probabilities.argmax(axis=1) == labels)
        assert scores[title]["accuracy"] == pytest.approx(right)
        log_loss = -np.log(probabilities[np.arange(15), labels]).mean()
        assert scores[title]["log_loss"] == pytest.approx(log_loss, rel=1e-5)
        counts = np.array(diagnosed[title]["confusion"]["counts"])
        assert (counts.sum(), np.trace(counts) / 15) == (15, pytest.approx(right))


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


def test_a_modality_that_no_item_has_is_named() -> None:
    dataset = items(without={"vision": list(range(15))})
    with pytest.raises(ValueError, match="no item has any of vision"):
        evaluate(model_for(), fusion_for(FusionRule.mean), dataset)


@every_rule
def test_every_encoder_sees_every_item_once(
    rule: FusionRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", 4)
    model, fusion, dataset = model_for(), fusion_for(rule), items()
    seen: Counter[str] = Counter()
    lock = Lock()  # batches come from several threads
    for name, encoder in model.encoders.items():

        def count(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            with lock:
                seen[name] += len(inputs[0])

        encoder.register_forward_pre_hook(count)
    rules = {str(each): fusion_for(each) for each in RULES}
    for ask in (
        lambda: evaluate(model, fusion, dataset),
        lambda: evaluate_rules(model, rules, dataset),
        lambda: evaluate_subsets(model, fusion, dataset),
        lambda: diagnose(model, fusion, dataset),
    ):
        ask()
        assert seen == {"audio": 15, "vision": 15}
        seen.clear()


def test_rules_score_as_each_does_by_itself() -> None:
    model, dataset = model_for(), items(without={"audio": [2, 5], "vision": [5, 6]})
    fusions = {f"by {rule}": fusion_for(rule) for rule in RULES}
    found = evaluate_rules(model, fusions, dataset)
    assert list(found) == list(fusions)
    for title, fusion in fusions.items():
        assert found[title] == evaluate(model, fusion, dataset)["multimodal"]
    assert len({metrics["mae"] for metrics in found.values()}) == 3


# ---- subsets -----------------------------------------------------------------------------------


@every_rule
def test_subsets_are_scored_on_the_items_that_have_everything(rule: FusionRule) -> None:
    dataset = items(without={"audio": [0, 3, 9], "vision": [3, 4]})
    model, fusion = model_for(), fusion_for(rule)
    complete = dataset.select(np.array([i for i in range(15) if i not in (0, 3, 4, 9)]))
    found = evaluate_subsets(model, fusion, dataset)
    assert list(found) == ["audio", "vision", "audio+vision"]
    for title, metrics in found.items():
        assert metrics == expected_scores(model, fusion, complete, title.split("+"))


def test_without_a_complete_item_each_subset_has_its_own() -> None:
    dataset = items(without={"audio": list(range(6)), "vision": list(range(6, 15))})
    model, fusion = model_for(), fusion_for(FusionRule.reliability)
    found = evaluate_subsets(model, fusion, dataset)
    assert list(found) == ["audio", "vision", "audio+vision"]
    for title, metrics in found.items():
        assert metrics == expected_scores(model, fusion, dataset, title.split("+"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_which_subsets_are_scored(count: int) -> None:
    widths = dict.fromkeys("zyxwv"[:count], 2)
    experts = {name: Expert(1.0, 0.0, 0.9, 0.1, 9.0) for name in widths}
    fusion = Fusion(FusionRule.product_of_experts, Task.regression, (0.1, 1.0), experts)
    found = evaluate_subsets(model_for(widths=widths), fusion, items(widths=widths))
    # Every one of up to four; of more each alone, all but one, and all.
    sizes = (1, 4, 5) if count == 5 else range(1, count + 1)
    subsets = [each for size in sizes for each in itertools.combinations(widths, size)]
    assert list(found) == list(map("+".join, subsets))
