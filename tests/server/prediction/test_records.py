"""Records against what was predicted, and the rounding of numbers against NumPy's."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_models import features_for, predictor_for

from common.task import Task
from server.prediction.records import records, seven_class, sign

LENGTHS = {"language": [4, 0, 0, 3], "audio": [6, 5, 0, 1]}
NAMES = ["a", "b", "c", "d"]


@given(st.floats(-5, 5, width=32) | st.sampled_from([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -0.0]))
def test_the_class_of_seven_is_rounded_half_to_even(value: float) -> None:
    assert seven_class(value) == np.rint(np.clip(value, -3, 3))
    assert isinstance(seven_class(value), int)
    assert sign(value) == ("positive" if value >= 0 else "negative")


@pytest.mark.parametrize("task", list(Task))
def test_a_record_says_what_was_predicted(task: Task) -> None:
    found = predictor_for(task).predict(features_for(LENGTHS))
    made = records(NAMES, found)
    assert [record["id"] for record in made] == NAMES
    there = [list(record["modalities"]) for record in made]
    assert there == [["language", "audio"], ["audio"], [], ["language", "audio"]]
    for item, record in enumerate(made):
        if item != 2:
            said(record, found.values[item], task)
        for name, own in record["modalities"].items():
            said(own, found.alone[name][item], task)
            assert own["weight"] == found.weights[name][item]
        if task is Task.regression:
            assert record["std"] == (None if item == 2 else found.std[item])
        else:
            assert "std" not in record
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def said(record: dict, values: np.ndarray, task: Task) -> None:
    if task is Task.regression:
        assert record["prediction"] == values
        return
    assert list(record["probabilities"].values()) == values.tolist()
    assert list(record["probabilities"]) == [str(number) for number in range(len(values))]
    if task is Task.classification:
        assert record["prediction"] == str(values.argmax())
    else:
        assert record["prediction"] == [str(each) for each in np.flatnonzero(values >= 0.5)]


@pytest.mark.parametrize(
    ("task", "nothing"),
    [
        (Task.regression, {"prediction": None, "seven_class": None, "sign": None, "std": None}),
        (Task.classification, {"prediction": None, "probabilities": None}),
        (Task.multilabel, {"prediction": None, "probabilities": None}),
    ],
)
def test_of_an_item_without_anything_nothing_is_said(task: Task, nothing: dict) -> None:
    found = predictor_for(task).predict({"audio": [None]})
    assert records(["x"], found) == [{"id": "x", **nothing, "modalities": {}}]


def test_outputs_are_called_by_their_names() -> None:
    found = predictor_for(Task.multilabel).predict(features_for({"audio": [3]}))
    record = records(["x"], found, ("joy", "fear"))[0]
    assert list(record["probabilities"]) == ["joy", "fear"]
    assert set(record["prediction"]) <= {"joy", "fear"}
    assert records([], predictor_for().predict({"audio": np.empty((0, 2, 3))})) == []
