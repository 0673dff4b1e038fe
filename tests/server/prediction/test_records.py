"""Records and columns against what was predicted, and the classes of numbers against Python's."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_models import features_for, predictor_for

from common.task import Task
from server.prediction.predictor import Predictions
from server.prediction.records import columns, records

LENGTHS = {"language": [4, 0, 0, 3], "audio": [6, 5, 0, 1]}
NAMES = ["a", "b", "c", "d"]
LABELS = ("joy", "fear", "awe")

every_task = pytest.mark.parametrize("task", list(Task))


def numbers(values: list[float], sentiment: bool = True) -> Predictions:
    array = np.array(values, np.float32)
    return Predictions(Task.regression, array, np.abs(array), {}, {}, np.float32(0.5), sentiment)


@given(st.lists(st.floats(-5, 5, width=32) | st.sampled_from([-2.5, -0.5, 0.5, 1.5, -0.0])))
def test_the_class_of_seven_is_rounded_half_to_even(values: list[float]) -> None:
    made = records([""] * len(values), numbers(values))
    assert [each["seven_class"] for each in made] == [round(min(max(v, -3), 3)) for v in values]
    assert [each["sign"] == "positive" for each in made] == [v >= 0 for v in values]
    table = columns([""] * len(values), numbers(values))
    for name in ("prediction", "std", "seven_class", "sign"):
        assert table[name] == [each[name] for each in made]


def test_only_sentiment_has_a_class_of_seven_and_a_sign() -> None:
    found = numbers([3.5, np.nan], sentiment=False)
    assert records(["a", "b"], found) == [
        {"id": "a", "prediction": 3.5, "std": 3.5, "base": 0.5, "modalities": {}},
        {"id": "b", "prediction": None, "std": None, "base": None, "modalities": {}},
    ]
    assert columns(["a", "b"], found) == {
        "id": ["a", "b"],
        "prediction": [3.5, None],
        "std": [3.5, None],
        "base": [0.5, None],
    }
    (record,) = records(["a"], predictor_for(sentiment=False).predict({"audio": np.ones((2, 3))}))
    assert record["modalities"]["audio"].keys() == {"prediction", "contribution"}


def outcome(values: np.ndarray, task: Task, names: tuple[str, ...]) -> dict[str, Any]:
    """What one prediction says."""
    if np.isnan(values).any():
        return {"prediction": None}
    if task is Task.regression:
        return {"prediction": float(values)}
    probabilities = dict(zip(names, values.tolist(), strict=False))
    if task is Task.classification:
        return {"prediction": names[values.argmax()], "probabilities": probabilities}
    chosen = [name for name, value in probabilities.items() if value >= 0.5]
    return {"prediction": chosen, "probabilities": probabilities}


@every_task
@pytest.mark.parametrize("labels", [(), LABELS])
def test_what_was_predicted_is_said(task: Task, labels: tuple[str, ...]) -> None:
    found = predictor_for(task).predict(features_for(LENGTHS))
    names = labels[: found.values.shape[-1]]
    made, table = records(NAMES, found, names), columns(NAMES, found, names)
    called = names or ("0", "1", "2")
    assert [record["id"] for record in made] == table["id"] == NAMES
    there = [list(record["modalities"]) for record in made]
    assert there == [["language", "audio"], ["audio"], [], ["language", "audio"]]
    for item, record in enumerate(made):
        expected = outcome(found.values[item], task, called)
        assert expected.items() <= record.items()
        in_columns(table, item, "", expected)
        for name, values in found.alone.items():
            alone = outcome(values[item], task, called)
            in_columns(table, item, f"_{name}", alone)
            if name in record["modalities"]:
                assert alone.items() <= record["modalities"][name].items()
        adds_up(record, table, item)
        if found.std is None:
            assert "std" not in record and "std" not in table
        else:
            assert record["std"] == table["std"][item] == (None if item == 2 else found.std[item])
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    cells = {type(cell) for column in table.values() for cell in column}
    assert cells <= {str, float, int, type(None)}  # of Python, not of NumPy


def adds_up(record: dict[str, Any], table: dict[str, list[Any]], item: int) -> None:
    """Check that base and contributions sum to what is predicted, in record and columns."""
    if record["base"] is None:
        return
    parts = [record["base"], *(own["contribution"] for own in record["modalities"].values())]
    total, suffixes = record.get("probabilities", {"": record["prediction"]}), {"": ""}
    if "probabilities" in record:
        suffixes = {name: f"_{name}" for name in total}
    for name, suffix in suffixes.items():
        added = [part[name] if name else part for part in parts]
        assert sum(added) == pytest.approx(total[name], abs=1e-5)
        listed = [table[f"{title}{suffix}"][item] for title in ("base", "contribution_language")]
        assert listed[0] == added[0]
        assert listed[1] == (added[1] if "language" in record["modalities"] else 0)


def in_columns(table: dict[str, list[Any]], item: int, suffix: str, said: dict[str, Any]) -> None:
    prediction = said["prediction"]
    joined = ";".join(prediction) if isinstance(prediction, list) else prediction
    assert table[f"prediction{suffix}"][item] == joined
    for name, value in said.get("probabilities", {}).items():
        assert table[f"probability{suffix}_{name}"][item] == value


@every_task
def test_of_an_item_without_anything_nothing_is_said(task: Task) -> None:
    known = ("seven_class", "sign", "std") if task is Task.regression else ("probabilities",)
    nothing = dict.fromkeys(("prediction", *known, "base"))
    found = predictor_for(task).predict({"audio": [None]})
    assert records(["x"], found) == [{"id": "x", **nothing, "modalities": {}}]
    table = columns(["x"], found)
    assert table.pop("id") == ["x"]
    assert all(column == [None] for column in table.values())
    empty = predictor_for(task).predict({"audio": np.empty((0, 2, 3))})
    assert records([], empty) == []
    assert columns([], empty) == {name: [] for name in ("id", *table)}


def test_what_is_infinite_is_not_known() -> None:
    made = records(["a", "b", "c"], numbers([np.inf, -np.inf, 1]))
    assert [each["prediction"] for each in made] == [None, None, 1]
    assert [each["seven_class"] for each in made] == [None, None, 1]
    assert [each["sign"] for each in made] == [None, None, "positive"]
    assert [each["std"] for each in made] == [None, None, 1]
