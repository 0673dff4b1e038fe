"""A predictor against `common.model.predict` by hand, whatever is asked together."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_models import (
    EXPERTS,
    OUTPUTS,
    RULES,
    STEPS,
    WIDTHS,
    Features,
    features_for,
    fusion_for,
    model_for,
    predictor_for,
    sequences_for,
    write_model,
)

from common.config import FusionRule
from common.data.batching import pad_all
from common.errors import UserError
from common.model.predict import predict
from common.task import Task
from server.prediction.predictor import Predictions, Predictor, dataset_settings, model_path
from server.run.folder import CONFIG, MODEL

torch.set_num_threads(1)  # more only contend over tensors this small

SUBSETS = [list(each) for size in (1, 2, 3) for each in itertools.combinations(WIDTHS, size)]
LENGTHS = {"language": [4, 1, 2, 3, 9], "audio": [6, 5, 1, 1, 2], "vision": [1, 3, 8, 2, 7]}
#: The third item has nothing at all.
RAGGED = {"language": [4, 0, 0, 3, 0], "audio": [6, 5, 0, 1, 0], "vision": [0, 3, 0, 2, 7]}

every_task = pytest.mark.parametrize("task", list(Task))
every_rule = pytest.mark.parametrize("rule", RULES)


def by_hand(
    predictor: Predictor, features: Features, names: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predict items that have all of some modalities, in one batch."""
    inputs = {name: pad_all(sequences_for(features)[name]) for name in names}
    found = predict(predictor.model, predictor.fusion, inputs)
    return found.values.numpy(), None if found.std is None else found.std.numpy()


def close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def same(found: Predictions, expected: Predictions, tolerance: float = 1e-6) -> None:
    assert found.task is expected.task
    assert list(found.alone) == list(expected.alone)
    assert list(found.weights) == list(expected.weights)
    close(found.values, expected.values, tolerance)
    if expected.std is None:
        assert found.std is None
    else:
        close(found.std, expected.std, tolerance)
    for name, alone in expected.alone.items():
        close(found.alone[name], alone, tolerance)
        close(found.weights[name], expected.weights[name], tolerance)


# Against the functions of the model -------------------------------------------------------------


@every_task
@every_rule
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_predictions_are_those_of_the_model(task: Task, rule: FusionRule, names: list[str]) -> None:
    predictor, features = predictor_for(task, rule), features_for(LENGTHS)
    found = predictor.predict({name: features[name] for name in names})
    values, std = by_hand(predictor, features, names)
    assert found.task is task
    assert len(found) == 5
    assert found.values.dtype == np.float32
    assert found.values.shape == ((5,) if task is Task.regression else (5, OUTPUTS[task]))
    assert values.std() > 1e-2  # predictions that are all alike would show nothing
    close(found.values, values)
    if task is Task.regression:
        assert found.std is not None and found.std.dtype == np.float32
        close(found.std, std)
    else:
        assert found.std is None is std
    assert list(found.alone) == names
    for name in names:
        close(found.alone[name], by_hand(predictor, features, [name])[0])


@every_rule
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_weights_are_shares_of_what_is_there(rule: FusionRule, names: list[str]) -> None:
    predictor, features = predictor_for(rule=rule), features_for(LENGTHS)
    found = predictor.predict({name: features[name] for name in names})
    known = predictor.fusion.weights
    for name in names:
        close(found.weights[name], [known[name] / sum(known[each] for each in names)] * 5)
    close(sum(found.weights.values()), np.ones(5))


@every_task
@every_rule
def test_an_item_is_predicted_from_what_it_has(task: Task, rule: FusionRule) -> None:
    predictor, features = predictor_for(task, rule), features_for(RAGGED)
    found = predictor.predict(features)
    known = predictor.fusion.weights
    for item in (0, 1, 3, 4):
        there = [name for name, counts in RAGGED.items() if counts[item]]
        own = {name: [features[name][item]] for name in there}
        values, std = by_hand(predictor, own, there)
        close(found.values[item], values[0])
        if std is not None and found.std is not None:
            close(found.std[item], std[0])
        for name in WIDTHS:
            if name in there:
                close(found.alone[name][item], by_hand(predictor, own, [name])[0][0])
                share = known[name] / sum(known[each] for each in there)
                close(found.weights[name][item], share)
            else:
                assert np.isnan(found.alone[name][item]).all()
                assert found.weights[name][item] == 0


@every_task
def test_of_an_item_without_anything_nothing_is_said(task: Task) -> None:
    found = predictor_for(task).predict(features_for(RAGGED))
    assert np.isnan(found.values[2]).all()
    assert np.isfinite(np.delete(found.values, 2, axis=0)).all()
    assert found.std is None or np.isnan(found.std[2])
    assert [weights[2] for weights in found.weights.values()] == [0, 0, 0]


@every_task
@pytest.mark.parametrize("count", [0, 3])
def test_items_of_which_none_has_anything(task: Task, count: int) -> None:
    predictor = predictor_for(task)
    found = predictor.predict_sequences(sequences_for(features_for({"audio": [0] * count})))
    shape = (count,) if task is Task.regression else (count, OUTPUTS[task])
    assert found.values.shape == found.alone["audio"].shape == shape
    assert np.isnan(found.values).all()
    assert found.weights["audio"].tolist() == [0] * count
    assert (found.std is None) == (task is not Task.regression)


def test_what_the_model_takes() -> None:
    predictor = predictor_for(Task.multilabel, tabular=["audio"], names=["joy", "fear"])
    assert predictor.features == {"language": (4,), "audio": (STEPS, 3), "vision": (2,)}
    assert (predictor.task, predictor.outputs) == (Task.multilabel, 2)
    assert predictor.label_names == ("joy", "fear")


@pytest.mark.parametrize("names", [(), ("joy",), ("joy", "joy"), ("joy", "fear", "awe")])
def test_names_that_do_not_tell_the_outputs_apart_are_none(names: tuple[str, ...]) -> None:
    assert predictor_for(Task.multilabel, names=names).label_names == ()


def test_modalities_come_in_the_order_of_the_model() -> None:
    features = features_for(LENGTHS)
    found = predictor_for().predict({name: features[name] for name in reversed(WIDTHS)})
    assert list(found.alone) == list(found.weights) == list(WIDTHS)


def test_values_that_are_not_finite_count_as_the_mean() -> None:
    predictor, features = predictor_for(), features_for(LENGTHS)
    broken = features["audio"][0].copy()
    broken[1] = [np.nan, np.inf, -np.inf]
    whole = broken.copy()
    whole[1] = predictor.model.encoders["audio"].standardise.mean.numpy()
    for dtype in ("f4", "f2"):
        found, expected = (
            predictor.predict({"audio": each.astype(dtype)}) for each in (broken, whole)
        )
        same(found, expected)
    assert np.isfinite(predictor.predict({"audio": np.full((2, 3), 1e300)}).values).all()


# Company does not matter ------------------------------------------------------------------------


@st.composite
def asked(draw: st.DrawFn) -> tuple[Predictor, Features, list[int], int]:
    """A predictor, items, an order of them, and how many go through it together."""
    count = draw(st.integers(1, 7))
    lengths = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    names = draw(st.lists(st.sampled_from(list(WIDTHS)), min_size=1, unique=True))
    seed, dtype = draw(st.integers(0, 9)), draw(st.sampled_from(["f2", "f4"]))
    features = features_for({name: draw(lengths) for name in names}, seed, dtype)
    task, rule = draw(st.sampled_from(list(Task))), draw(st.sampled_from(RULES))
    order = draw(st.permutations(range(count)))
    return predictor_for(task, rule), features, order, draw(st.integers(1, count))


@settings(max_examples=150, deadline=None)
@given(asked())
def test_neither_company_nor_order_nor_batches_matter(
    asked: tuple[Predictor, Features, list[int], int],
) -> None:
    predictor, features, order, batch_size = asked
    shuffled = {name: [items[item] for item in order] for name, items in features.items()}
    found = predictor.predict_sequences(sequences_for(shuffled), batch_size)
    for place, item in enumerate(order):
        own = {name: [items[item]] for name, items in features.items()}
        alone = predictor.predict_sequences(sequences_for(own))
        same(_item(found, place), alone)


def _item(found: Predictions, place: int) -> Predictions:
    chosen = slice(place, place + 1)
    return Predictions(
        found.task,
        found.values[chosen],
        None if found.std is None else found.std[chosen],
        {name: each[chosen] for name, each in found.alone.items()},
        {name: each[chosen] for name, each in found.weights.items()},
    )


@every_task
def test_threads_share_a_predictor(task: Task) -> None:
    predictor = predictor_for(task, FusionRule.product_of_experts)
    asked = [
        features_for({name: np.roll(RAGGED[name], seed).tolist() for name in names}, seed)
        for seed, names in enumerate([*SUBSETS, *SUBSETS, *SUBSETS])
    ]
    expected = [predictor.predict(each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        for found, one in zip(pool.map(predictor.predict, asked), expected, strict=True):
            same(found, one, tolerance=0)


def test_nothing_that_is_given_is_changed() -> None:
    predictor, features = predictor_for(), features_for(RAGGED)
    copies = {name: [None if x is None else x.copy() for x in f] for name, f in features.items()}
    for items in features.values():
        for item in items:
            if item is not None:
                item.flags.writeable = False
    before = {name: weight.clone() for name, weight in predictor.model.state_dict().items()}
    predictor.predict(features)
    for name, items in features.items():
        for item, copy in zip(items, copies[name], strict=True):
            np.testing.assert_array_equal(item, copy)
    for name, weight in predictor.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert not predictor.model.training


# Long sequences ---------------------------------------------------------------------------------


def test_the_last_steps_are_used() -> None:
    features = features_for({"audio": [7, 2, 0]})
    cut = {"audio": [features["audio"][0][-3:], features["audio"][1], None]}
    found = predictor_for(max_seq_len=3).predict(features)
    same(found, predictor_for().predict(cut))
    assert abs(found.values[0] - predictor_for().predict(features).values[0]) > 1e-3


def test_a_tabular_modality_is_cut_as_in_training() -> None:
    audio = features_for({"audio": [STEPS + 4]})
    cut = {"audio": [audio["audio"][0][-STEPS:]]}
    predictor = predictor_for(max_seq_len=STEPS, tabular=["audio"])
    same(predictor.predict(audio), predictor_for(tabular=["audio"]).predict(cut))


# Loading ----------------------------------------------------------------------------------------


def fails(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Predictor.load(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@every_task
def test_a_run_and_its_file_load_alike(tmp_path: Path, task: Task) -> None:
    run = write_model(tmp_path / "run", task)
    features = features_for(RAGGED)
    expected = Predictor(model_for(task), fusion_for(task)).predict(features)
    for place in (run, str(run), run / MODEL):
        predictor = Predictor.load(place)
        assert not predictor.model.training
        assert predictor.fusion == fusion_for(task)
        same(predictor.predict(features), expected, tolerance=0)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (None, None),
        ({}, None),
        ({"name": "synthetic"}, None),
        ({"max_seq_len": None}, None),
        ({"max_seq_len": 3}, 3),
    ],
)
def test_as_many_steps_as_in_the_run(
    tmp_path: Path, dataset: dict[str, Any] | None, expected: int | None
) -> None:
    run = write_model(tmp_path / "run", dataset=dataset)
    assert Predictor.load(run).max_seq_len == expected
    assert Predictor.load(run / MODEL).max_seq_len == expected
    assert Predictor.load(run, max_seq_len=5).max_seq_len == 5
    features = features_for({"audio": [7]})
    same(
        Predictor.load(run).predict(features), predictor_for(max_seq_len=expected).predict(features)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dataset: {max_seq_len: many}", "dataset.max_seq_len=many in the run's config.yaml: exp"),
        ("dataset: {max_seq_len: -1}", "dataset.max_seq_len=-1 in the run's config.yaml"),
        ("dataset: mosei", "config.yaml is damaged: expected settings of the dataset"),
        ("[1, 2]", "config.yaml is damaged"),
        ("{", "config.yaml is damaged"),
    ],
)
def test_settings_of_the_run_that_are_damaged(tmp_path: Path, text: str, words: str) -> None:
    run = write_model(tmp_path / "run", dataset={})
    (run / CONFIG).write_text(text)
    assert words in fails(run)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert fails(tmp_path / "none") == f"model file {tmp_path / 'none'} does not exist"
    file = tmp_path / "none.safetensors"
    assert fails(file) == f"model file {file} does not exist"


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("rounds: 5\n")
    (tmp_path / "rounds.jsonl").write_text("{}\n")
    assert fails(tmp_path) == (
        f"{tmp_path} has no {MODEL}: expected the folder of a finished run; one that broke off "
        f"goes on with utmp-train resume={tmp_path}"
    )


@pytest.mark.parametrize("kept", [0, 4, 200, 3000])
def test_a_file_of_which_only_a_part_is_there(tmp_path: Path, kept: int) -> None:
    run = write_model(tmp_path / "run")
    content = (run / MODEL).read_bytes()
    assert len(content) > kept
    (run / MODEL).write_bytes(content[:kept])
    assert fails(run).startswith(f"{run / MODEL} is damaged: ")


def test_another_file(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    assert "is not a model of this project" in fails(tmp_path / "a.safetensors")


def test_where_a_model_lies(tmp_path: Path) -> None:
    run = write_model(tmp_path / "run", dataset={"context": 9})
    assert model_path(run) == model_path(run / MODEL) == run / MODEL
    assert dataset_settings(run) == {"context": 9}
    assert dataset_settings(tmp_path) == {}


# What is refused --------------------------------------------------------------------------------

AUDIO = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no modality is given; the model takes language, audio, vision"),
        ({"smell": AUDIO}, "there is no modality 'smell'; the model takes language, audio, vision"),
        (
            {"audio": [AUDIO, AUDIO], "vision": np.ones((3, 1, 2)), "language": np.ones((1, 4))},
            "items differ in number: 2 of audio, 3 of vision, 1 of language; put None where one "
            "lacks a modality",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        predictor_for().predict(inputs)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no modality is given; the model takes language, audio, vision"),
        ({"smell": [2]}, "there is no modality 'smell'; the model takes language, audio, vision"),
        ({"audio": [1], "vision": [1, 1]}, "items differ in number: 1 of audio, 2 of vision; put"),
    ],
)
def test_sequences_that_do_not_fit(inputs: dict[str, list[int]], message: str) -> None:
    items = sequences_for(features_for({"audio": [1], "vision": [1, 1]}))
    given = {name: items.get(name, items["audio"]) for name in inputs}
    with pytest.raises(UserError) as caught:
        predictor_for().predict_sequences(given)
    assert str(caught.value).startswith(message)


def test_sequences_of_another_width() -> None:
    vision = sequences_for(features_for({"vision": [1]}))["vision"]
    with pytest.raises(UserError) as caught:
        predictor_for().predict_sequences({"audio": vision})
    assert str(caught.value) == "audio is 2 wide; the model takes 3"


@pytest.mark.parametrize("max_seq_len", [None, STEPS + 2])
def test_a_tabular_modality_of_too_many_steps(max_seq_len: int | None) -> None:
    predictor = predictor_for(max_seq_len=max_seq_len, tabular=["audio"])
    with pytest.raises(UserError) as caught:
        predictor.predict({"audio": np.ones((STEPS + 1, 3))})
    assert str(caught.value) == "audio has 4 steps; the model takes 3 at most"
    assert np.isfinite(predictor.predict({"audio": np.ones((STEPS, 3))}).values).all()


def test_an_expert_who_is_sure_has_all_the_weight() -> None:
    sure = replace(EXPERTS["audio"], information=999.0, count=1e6)
    fusion = replace(fusion_for(), experts={**EXPERTS, "audio": sure})
    predictor = replace(predictor_for(), fusion=fusion)
    found = predictor.predict(features_for(LENGTHS))
    assert (found.weights["audio"] > 0.99).all()
    # However little the others tell, an item that has nothing else is predicted from them.
    alone = predictor.predict({"vision": np.ones((2, 2))})
    assert alone.weights["vision"].tolist() == [1]
    assert np.isfinite(alone.values).all()
