"""A predictor against `common.model.predict` by hand, whatever is asked together."""

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_checkpoints import write_checkpoint
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
    part,
    predictor_for,
    sequences_for,
    write_model,
)

from common.config import FusionRule
from common.data.batching import pad_all
from common.data.source import Reading
from common.errors import UserError
from common.model.predict import predict
from common.task import Task
from server.prediction.predictor import (
    Predictions,
    Predictor,
    model_path,
    reading_of_run,
    run_of,
)
from server.run.folder import CONFIG, LAST, MODEL

torch.set_num_threads(1)  # more only contend over tensors this small

#: An item for every subset of the modalities, from none to all.
SUBSETS = [names for size in range(4) for names in itertools.combinations(WIDTHS, size)]
RAGGED = {
    name: [2 + number % 5 if name in names else 0 for number, names in enumerate(SUBSETS)]
    for name in WIDTHS
}

every_task = pytest.mark.parametrize("task", list(Task))


def close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def same(found: Predictions, expected: Predictions, tolerance: float = 1e-6) -> None:
    assert found.task is expected.task
    assert list(found.alone) == list(expected.alone) == list(found.contributions)
    close(found.values, expected.values, tolerance)
    assert (found.std is None) == (expected.std is None)
    if expected.std is not None:
        close(found.std, expected.std, tolerance)
    for name, alone in expected.alone.items():
        close(found.alone[name], alone, tolerance)
        close(found.contributions[name], expected.contributions[name], 2 * tolerance)


# Against the functions of the model -------------------------------------------------------------


@every_task
@pytest.mark.parametrize("rule", RULES)
def test_an_item_is_predicted_from_what_it_has(task: Task, rule: FusionRule) -> None:
    predictor, features = predictor_for(task, rule), features_for(RAGGED)
    found = predictor.predict({name: features[name] for name in reversed(WIDTHS)})
    assert found.task is task
    assert list(found.alone) == list(found.contributions) == list(WIDTHS)
    assert found.values.shape == ((8,) if task is Task.regression else (8, OUTPUTS[task]))
    assert found.values.dtype == np.float32
    assert np.nanstd(found.values) > 1e-2  # predictions that are all alike would show nothing
    assert (found.std is not None) == (task is Task.regression)

    def by_hand(item: int, names: tuple[str, ...]) -> Any:
        inputs = {
            name: pad_all(sequences_for({name: [features[name][item]]})[name]) for name in names
        }
        return predict(predictor.model, predictor.fusion, inputs)

    def shapley(name: str, names: tuple[str, ...], item: int) -> Any:
        """Return the value by its definition, over all orders."""

        def value(given: tuple[str, ...]) -> Any:
            kept = tuple(each for each in WIDTHS if each in given)
            return by_hand(item, kept).values[0].numpy() if kept else found.base

        orders = list(itertools.permutations(names))
        places = [order.index(name) for order in orders]
        pairs = zip(orders, places, strict=True)
        return np.mean([value(o[: p + 1]) - value(o[:p]) for o, p in pairs], axis=0)

    for item, names in enumerate(SUBSETS):
        if names:
            expected = by_hand(item, names)
            close(found.values[item], expected.values[0])
            if found.std is not None:
                close(found.std[item], expected.std[0])
        else:
            assert np.isnan(found.values[item]).all()
            assert found.std is None or np.isnan(found.std[item])
        for name in WIDTHS:
            if name in names:
                close(found.alone[name][item], by_hand(item, (name,)).values[0])
                close(found.contributions[name][item], shapley(name, names, item), 1e-5)
            else:
                assert np.isnan(found.alone[name][item]).all()
                assert np.all(found.contributions[name][item] == 0)
        if names:
            total = found.base + sum(found.contributions[name][item] for name in names)
            close(found.values[item], total, 2e-6)


@every_task
@pytest.mark.parametrize("count", [0, 3])
def test_items_of_which_none_has_anything(task: Task, count: int) -> None:
    nothing = sequences_for(features_for({"audio": [0] * count}))
    found = predictor_for(task).predict_sequences(nothing)
    shape = (count,) if task is Task.regression else (count, OUTPUTS[task])
    assert found.values.shape == found.alone["audio"].shape == shape
    assert np.isnan(found.values).all()
    assert not found.contributions["audio"].any() and not found.has("audio").any()


def test_an_expert_who_is_sure_explains_the_prediction() -> None:
    sure = replace(EXPERTS["audio"], unexplained=1e-3, information=999.0, count=1e6)
    fusion = replace(fusion_for(), rule=FusionRule.product_of_experts)
    fusion = replace(fusion, experts={**EXPERTS, "audio": sure})
    predictor = replace(predictor_for(), fusion=fusion)
    found = predictor.predict(features_for({name: [4, 1] for name in WIDTHS}))
    close(found.values, found.alone["audio"], 0.05)
    # However little the others tell, an item that has nothing else is predicted from them.
    alone = predictor.predict({"vision": np.ones((2, 2))})
    close(alone.contributions["vision"], alone.values - alone.base)
    assert np.isfinite(alone.values).all()


def test_what_the_model_takes() -> None:
    predictor = predictor_for(Task.multilabel, tabular=["audio"], names=["joy", "fear"])
    assert predictor.features == {"language": (4,), "audio": (STEPS, 3), "vision": (2,)}
    assert (predictor.task, predictor.outputs) == (Task.multilabel, 2)
    assert predictor.names() == predictor.names(of_data=["no", "yes"]) == ("joy", "fear")
    assert predictor.names(["a", "b"]) == ("a", "b")
    # Names that do not tell the outputs apart are none.
    for names in ((), ("joy",), ("joy", "joy"), ("joy", "fear", "awe")):
        unnamed = predictor_for(Task.multilabel, names=names)
        assert unnamed.names(of_data=names) == ()
        assert unnamed.names(of_data=["no", "yes"]) == ("no", "yes")
    for labels in (["a"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(UserError, match=r"^labels=\[.*: expected 2 different names, one for"):
            predictor.names(labels)
    with pytest.raises(UserError, match=r"^labels=\['a'\]: the model predicts numbers, which have"):
        predictor_for().names(["a"])


def test_values_that_are_not_finite_count_as_the_mean() -> None:
    predictor = predictor_for()
    broken = features_for({"audio": [6]})["audio"][0]
    broken[1] = [np.nan, np.inf, -np.inf]
    complete = broken.copy()
    complete[1] = predictor.model.encoders["audio"].standardise.mean.numpy()
    for dtype in ("f4", "f2"):
        found = predictor.predict({"audio": broken.astype(dtype)})
        same(found, predictor.predict({"audio": complete.astype(dtype)}))
    assert np.isfinite(predictor.predict({"audio": np.full((2, 3), 1e300)}).values).all()


def test_the_last_steps_are_used_as_in_training() -> None:
    features = features_for({"audio": [7, 2, 0]})
    cut = {"audio": [features["audio"][0][-STEPS:], features["audio"][1], None]}
    found = predictor_for(max_seq_len=STEPS).predict(features)
    same(found, predictor_for().predict(cut))
    assert abs(found.values[0] - predictor_for().predict(features).values[0]) > 1e-3
    tabular = predictor_for(max_seq_len=STEPS, tabular=["audio"])
    found = tabular.predict({"audio": features["audio"][:1]})
    same(found, predictor_for(tabular=["audio"]).predict({"audio": cut["audio"][:1]}))


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
    for row, item in enumerate(order):
        own = {name: [items[item]] for name, items in features.items()}
        same(part(found, slice(row, row + 1)), predictor.predict_sequences(sequences_for(own)))


@every_task
def test_threads_share_a_predictor_and_change_nothing(task: Task) -> None:
    predictor = predictor_for(task, FusionRule.product_of_experts)
    before = {name: weight.clone() for name, weight in predictor.model.state_dict().items()}
    asked = [
        features_for({name: np.roll(RAGGED[name], seed).tolist() for name in names}, seed)
        for seed, names in enumerate(SUBSETS[1:] * 3)
    ]
    items = [item for one in asked for each in one.values() for item in each if item is not None]
    for item in items:
        item.flags.writeable = False
    expected = [predictor.predict(each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        for found, one in zip(pool.map(predictor.predict, asked), expected, strict=True):
            same(found, one, tolerance=0)
    for name, weight in predictor.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert not predictor.model.training


# Loading ----------------------------------------------------------------------------------------


@every_task
def test_a_run_and_its_file_load_alike(tmp_path: Path, task: Task) -> None:
    run = write_model(tmp_path / "run", task, dataset={"context": 9})
    assert model_path(run) == model_path(run / MODEL) == run / MODEL
    assert reading_of_run(run) == Reading(context=9)
    assert reading_of_run(tmp_path) == Reading()
    features = features_for(RAGGED)
    expected = predictor_for(task).predict(features)
    for path in (run, str(run), run / MODEL):
        predictor = Predictor.load(path)
        assert not predictor.model.training
        assert predictor.fusion == fusion_for(task)
        same(predictor.predict(features), expected, tolerance=0)


def test_as_many_steps_as_in_the_run(tmp_path: Path) -> None:
    for dataset, expected in ((None, None), ({"max_seq_len": None}, None), ({"max_seq_len": 3}, 3)):
        run = write_model(tmp_path / "run", dataset=dataset)
        assert Predictor.load(run).max_seq_len == expected
        assert Predictor.load(run / MODEL).max_seq_len == expected
        assert Predictor.load(run, max_seq_len=5).max_seq_len == 5


def test_a_checkpoint_finds_its_run_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_model(tmp_path / "run", dataset={"max_seq_len": 3})
    kept = write_checkpoint(run, 2, model_for(), fusion_for())
    (run / LAST).write_bytes((run / MODEL).read_bytes())
    monkeypatch.chdir(kept.parent)
    for path in (kept, kept.name, f"../checkpoints/{kept.name}", run / LAST, f"../{MODEL}", run):
        assert run_of(path).samefile(run)
        assert Predictor.load(path).max_seq_len == 3
    features = features_for(RAGGED)
    same(Predictor.load(kept).predict(features), Predictor.load(run).predict(features), tolerance=0)
    # One that was copied elsewhere has no run.
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copy(kept, tmp_path / "elsewhere")
    assert Predictor.load(copied).max_seq_len is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dataset: {max_seq_len: many}", "dataset in the run's config.yaml: max_seq_len: Input"),
        ("dataset: {max_seq_len: -1}", "config.yaml: Value error, max_seq_len=-1: expected a nu"),
        ("dataset: {context: 1.5}", "dataset in the run's config.yaml: context: Input"),
        ("dataset: mosei", "config.yaml is damaged: expected settings of dataset, not mosei"),
        ("[1, 2]", "config.yaml is damaged"),
        ("{", "config.yaml is damaged"),
    ],
)
def test_settings_of_the_run_that_are_damaged(tmp_path: Path, text: str, words: str) -> None:
    run = write_model(tmp_path / "run", dataset={})
    (run / CONFIG).write_text(text)
    refusal(lambda: Predictor.load(run), words)


def test_there_is_no_model(tmp_path: Path) -> None:
    message = refusal(lambda: Predictor.load(tmp_path / "none"))
    assert message == f"model file {tmp_path / 'none'} does not exist"
    expected = f"{tmp_path} has no {MODEL}: expected the folder of a finished run"
    refusal(lambda: Predictor.load(tmp_path), expected, f"utmp-train resume={tmp_path}")


# What is refused --------------------------------------------------------------------------------

AUDIO = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no modality is given; the model takes language, audio, vision"),
        ({"smell": AUDIO}, "there is no modality 'smell'; the model takes language, audio, vision"),
        (
            {"audio": [AUDIO, AUDIO], "vision": np.ones((3, 1, 2)), "language": np.ones((1, 4))},
            "items differ in number: 2 of audio, 3 of vision, 1 of language; put None where",
        ),
        ({"audio": np.ones((STEPS + 1, 3))}, "audio has 4 steps; the model takes 3 at most"),
    ],
)
@pytest.mark.parametrize("max_seq_len", [None, STEPS + 2])
def test_what_does_not_fit_is_one_line(
    inputs: dict[str, Any], message: str, max_seq_len: int | None
) -> None:
    predictor = predictor_for(tabular=["audio"], max_seq_len=max_seq_len)
    assert refusal(lambda: predictor.predict(inputs)).startswith(message)
    assert np.isfinite(predictor.predict({"audio": np.ones((STEPS, 3))}).values).all()


def test_sequences_of_another_width() -> None:
    vision = sequences_for(features_for({"vision": [1]}))["vision"]
    with pytest.raises(UserError, match="audio is 2 wide; the model takes 3"):
        predictor_for().predict_sequences({"audio": vision})
