"""Scores against the definitions, for all modalities together, each alone, rules and subsets."""

import itertools
from collections import Counter
from dataclasses import replace
from threading import Lock

import numpy as np
import pytest
import torch
from made_up_models import RULES, WIDTHS, dataset_for, features_for, fusion_for, model_for

import server.evaluate
from common.config import FusionRule
from common.data.batching import pad_all
from common.data.dataset import LabelArray, MultimodalDataset
from common.diagnostics import diagnostics
from common.metrics import compute_metrics
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, build_model
from common.model.predict import predict
from common.task import Task
from server.evaluate import (
    JOIN_OUTPUTS,
    diagnose,
    evaluate,
    evaluate_rules,
    evaluate_subsets,
    opinions,
)

COUNT = 15

every_rule = pytest.mark.parametrize("rule", RULES)


def items(task: Task = Task.regression, **without: list[int]) -> MultimodalDataset:
    """Make ragged items; `without` says which lack a modality."""
    lengths = np.random.default_rng(0).integers(1, 5, (len(WIDTHS), COUNT))
    for row, name in enumerate(WIDTHS):
        lengths[row, without.get(name, [])] = 0
    return dataset_for(features_for(dict(zip(WIDTHS, lengths.tolist(), strict=True))), task)


#: Question to the modalities that may answer it.
QUESTIONS = {"multimodal": list(WIDTHS)} | {name: [name] for name in WIDTHS}


def singly(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> tuple[LabelArray, np.ndarray, np.ndarray | None]:
    """Predict each item that has any of the modalities alone, so that nothing can be mixed up."""
    model.eval()
    having = np.flatnonzero(dataset.present(names))
    found = [
        predict(model, fusion, {n: pad_all(dataset.sequences[n].select(item)) for n in names})
        for item in having[:, None]
    ]
    values = np.concatenate([each.values.numpy() for each in found])
    std = None if found[0].std is None else np.concatenate([each.std.numpy() for each in found])
    return dataset.labels[having], values, std


def expected_scores(
    model: HAFedformer, fusion: Fusion, dataset: MultimodalDataset, names: list[str]
) -> dict[str, float]:
    found, spec = singly(model, fusion, dataset, names), model.spec
    metrics = compute_metrics(spec.task, *found, sentiment=spec.sentiment)
    return pytest.approx(metrics, rel=1e-4, abs=1e-4)


@every_rule
@pytest.mark.parametrize("batch", [1, 4, 256])
@pytest.mark.parametrize(
    ("task", "sentiment"), [*((task, False) for task in Task), (Task.regression, True)]
)
def test_an_item_counts_for_the_modalities_that_it_has_in_any_batches(
    rule: FusionRule, batch: int, task: Task, sentiment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", batch)
    # In batches of 1 and of 4 some hold no item with audio, and some items are left out.
    dataset = items(task, language=[9], audio=[0, 1, 2, 3, 9], vision=[8, 9, 10])
    model, fusion = model_for(task, sentiment=sentiment), fusion_for(task, rule)
    scores, diagnosed = evaluate(model, fusion, dataset), diagnose(model, fusion, dataset)
    assert list(scores) == list(diagnosed) == list(QUESTIONS)
    for title, names in QUESTIONS.items():
        assert scores[title] == expected_scores(model, fusion, dataset, names)
        given = singly(model, fusion, dataset, names)
        expected = diagnostics(task, *given, sentiment=sentiment)
        assert diagnosed[title].keys() == expected.keys()
        assert diagnosed[title].get("confusion") == expected.get("confusion")
        for column, numbers in expected["calibration"].items():
            found = diagnosed[title]["calibration"][column]  # None where a bin is empty
            np.testing.assert_allclose(*(np.array(each, float) for each in (found, numbers)), 1e-4)


def test_dropout_does_not_show_and_constants_score_no_correlation_without_a_warning() -> None:
    model, fusion = model_for().train(), fusion_for(rule=FusionRule.mean)
    first = evaluate(model, fusion, items())
    assert not model.training
    assert evaluate(model, fusion, items()) == first
    torch.nn.init.zeros_(model.decoder.head.weight)
    for name in model.spec.linear:
        model.encoder(name).linear.weight.zero_()
    scores = evaluate(model, fusion, items())
    assert {metrics["corr"] for metrics in scores.values()} == {0.0}


@every_rule
@pytest.mark.parametrize("task", list(Task))
def test_what_was_seen_of_the_items_gives_the_same_scores(
    rule: FusionRule, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = items(task, language=[9], audio=[0, 1, 9], vision=[8, 9])
    model, fusion = model_for(task), fusion_for(task, rule)
    expected = evaluate(model, fusion, dataset)
    seen = opinions(model, torch.tensor(fusion.prior, dtype=torch.float64), dataset)
    encoded: list[int] = []
    encode = server.evaluate.encode
    monkeypatch.setattr(
        server.evaluate, "encode", lambda *given: encoded.append(1) or encode(*given)
    )
    found = evaluate(model, fusion, dataset, seen)
    assert bool(encoded) == (rule not in JOIN_OUTPUTS)
    assert found == {title: pytest.approx(scores, rel=1e-5) for title, scores in expected.items()}


def test_a_modality_that_no_item_has_is_named() -> None:
    dataset = items(vision=list(range(15)))
    with pytest.raises(ValueError, match="no item has any of vision"):
        evaluate(model_for(), fusion_for(rule=FusionRule.mean), dataset)


@every_rule
def test_encoders_see_every_item_once(rule: FusionRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.evaluate, "BATCH", 4)
    model, fusion, dataset = model_for(), fusion_for(rule=rule), items()
    seen: Counter[str] = Counter()
    lock = Lock()  # batches come from several threads
    for name, encoder in model.encoders.items():

        def count(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            with lock:
                seen[name] += len(inputs[0])

        encoder.register_forward_pre_hook(count)
    rules = {str(each): fusion_for(rule=each) for each in RULES}
    asked = ((evaluate, fusion), (evaluate_rules, rules), (evaluate_subsets, fusion))
    for ask, by in (*asked, (diagnose, fusion)):
        ask(model, by, dataset)
        assert seen == dict.fromkeys(WIDTHS, COUNT)
        seen.clear()


def test_rules_score_as_each_does_by_itself() -> None:
    model, dataset = model_for(), items(language=[5], audio=[2, 5], vision=[5, 6])
    fusions = {f"by {rule}": fusion_for(rule=rule) for rule in RULES}
    found = evaluate_rules(model, fusions, dataset)
    assert list(found) == list(fusions)
    for title, fusion in fusions.items():
        assert found[title] == evaluate(model, fusion, dataset)["multimodal"]
    assert len({metrics["mae"] for metrics in found.values()}) == len(RULES)


# ---- subsets -----------------------------------------------------------------------------------


@every_rule
def test_subsets_are_scored_on_complete_items_or_else_on_their_own(
    rule: FusionRule,
) -> None:
    model, fusion = model_for(), fusion_for(rule=rule)
    gaps = items(language=[3], audio=[0, 3, 9], vision=[3, 4])
    complete = gaps.select(np.setdiff1d(np.arange(COUNT), [0, 3, 4, 9]))
    none = items(language=list(range(6)), audio=list(range(6)), vision=list(range(6, 15)))
    for dataset, scored in ((gaps, complete), (none, none)):
        found = evaluate_subsets(model, fusion, dataset)
        assert len(found) == 7
        for title, metrics in found.items():
            assert metrics == expected_scores(model, fusion, scored, title.split("+"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_which_subsets_are_scored(count: int) -> None:
    widths = dict.fromkeys("zyxwv"[:count], 2)
    experts = {name: Expert(1.0, 0.0, 0.9, 0.1, 9.0) for name in widths}
    fusion = Fusion(FusionRule.product_of_experts, Task.regression, (0.1, 1.0), experts)
    spec = replace(model_for().spec, features={name: (width,) for name, width in widths.items()})
    dataset, one = items(), items().sequences["vision"]
    dataset = replace(dataset, sequences=dict.fromkeys(widths, one))
    found = evaluate_subsets(build_model(spec, seed=3), fusion, dataset)
    # Every one of up to four; of more each alone, all but one, and all.
    sizes = (1, 4, 5) if count == 5 else range(1, count + 1)
    subsets = [each for size in sizes for each in itertools.combinations(widths, size)]
    assert list(found) == list(map("+".join, subsets))
