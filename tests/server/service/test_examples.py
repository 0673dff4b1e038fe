"""Items to pick: those of the run, of a shard, or none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import refusal
from made_up_models import OUTPUTS
from service_models import SHAPES, small_predictor
from tiny_runs import tiny

from common.config import Config, ServeConfig, compose
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import count_outputs, load_joint
from common.data.shards import ShardInfo, write_shard
from common.task import Task
from server.model_file import model_bytes
from server.prediction.predictor import Predictor
from server.run.folder import CONFIG, MODEL, RunFolder
from server.service.answers import scale
from server.service.examples import COUNT, Examples, load_examples

LABELS = {
    Task.regression: np.arange(50, dtype=np.float32) / 4,
    Task.classification: np.arange(50, dtype=np.int64) % 3,
    Task.multilabel: np.eye(2, dtype=np.float32)[np.arange(50) % 2],
}


def sequences(shape: tuple[int, ...], items: int = 6) -> Sequences:
    lengths = np.full(items, shape[0] if shape[1:] else 8, dtype=np.int64)
    values = np.random.default_rng(items).normal(size=(int(lengths.sum()), shape[-1]))
    return Sequences.ragged(values.astype(np.float32), lengths, tabular=bool(shape[1:]))


def dataset(task: Task = Task.regression, count: int = 6) -> MultimodalDataset:
    """Some items, of which the second one has no audio."""
    names = np.array([f"item-{number}" for number in range(count)])
    parts = {name: sequences(shape, count) for name, shape in SHAPES.items()}
    parts["audio"].lengths[1] = 0
    return MultimodalDataset(names, names, LABELS[task][:count], parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def shard(
    path: Path,
    items: MultimodalDataset,
    task: Task = Task.regression,
    *names: str,
) -> str:
    outputs = count_outputs(task, names, items.labels)
    tabular = tuple({"vision"} & set(items.sequences))
    info = ShardInfo("test", tuple(items.sequences), task, outputs, names, tabular)
    write_shard(path, items, info)
    return str(path)


def examples(path: str, predictor: Predictor | None = None, **settings: Any) -> Examples:
    config = ServeConfig(model="elsewhere", examples=path, **settings)
    return load_examples(config, predictor or small_predictor())


def keys(found: Examples) -> list[str]:
    """The keys of the first two items."""
    return [" ".join(example.item) for example in found.items[:2]]


def test_of_a_shard(path: Path) -> None:
    items = dataset(count=50)
    found = examples(shard(path, items))
    assert [example.item["id"] for example in found.items] == [f"item-{n}" for n in range(COUNT)]
    assert [example.label for example in found.items[:4]] == [0, 0.25, 0.5, 0.75]
    assert keys(found) == ["id language audio vision", "id language vision"]
    # The last steps, and plain numbers that are the same as 32-bit floats.
    language = found.items[2].item["language"]
    assert np.array_equal(np.array(language, np.float32), items.sequences["language"][2][-6:])
    assert all(len(str(abs(value))) < 16 for value in language[0])


@pytest.mark.parametrize("task", Task)
def test_the_typical_one_has_the_median_error(path: Path, task: Task) -> None:
    items, model = dataset(task, 21), small_predictor(task)
    found = examples(shard(path, items, task), model)
    values = model.predict_sequences(
        {name: own.last_steps(model.max_seq_len) for name, own in items.sequences.items()}
    ).values[:COUNT]
    errors = []
    for item, value in enumerate(values):
        label = items.labels[item]
        truth = np.eye(OUTPUTS[task])[label] if task is Task.classification else label
        errors.append(float(np.mean(np.abs(truth - value))))
    assert sorted(errors).index(errors[found.typical]) == (COUNT - 1) // 2


def test_what_no_request_could_carry_is_left_out(path: Path) -> None:
    items = dataset()
    items.sequences["language"].values[3, 1] = np.nan  # a step of the first item
    assert keys(examples(shard(path, items), max_steps=5)) == ["id vision"] * 2
    assert keys(examples(str(path))) == ["id audio vision", "id language vision"]


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_names_of_classes_and_labels(path: Path, task: Task) -> None:
    model, count = small_predictor(task), OUTPUTS[task]

    def labels(examples: Examples) -> list[Any]:
        given = [example.label for example in examples.items[:2]]
        return [[label] if task is Task.classification else label for label in given]

    unnamed = examples(shard(path, dataset(task), task), model)
    assert (unnamed.label_names, labels(unnamed)) == ((), [["0"], ["1"]])
    names, data = tuple("xyz"[:count]), shard(path, dataset(task), task, *"xyz"[:count])
    if task is Task.classification:  # a class means the same in both, or the data are refused
        refusal(lambda: examples(data, model), "'x' for class 0, which is '0' in the model")
        model = small_predictor(task, names=names)
    named = examples(data, model)
    assert (named.label_names, labels(named)) == (names, [["x"], ["y"]])
    assert labels(examples(str(path), model, labels=[*"abc"[:count]])) == [["a"], ["b"]]


def test_none() -> None:
    assert examples("none") == Examples()


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, Task.classification, " has labels for classification, and the model is for regress"),
        ({"sequences": {"smell": sequences((2,))}}, Task.regression, " has none of language, au"),
        ({"sequences": {"audio": sequences((5,))}}, Task.regression, ": audio is 5 wide; the mo"),
        ({"sequences": {"vision": sequences((5, 2))}}, Task.regression, ": vision has 5 steps; th"),
        ({"labels": np.arange(6)}, Task.classification, " has 6 classes or labels, and the mo"),
        ({"labels": np.eye(6, 3, dtype="f4")}, Task.multilabel, " has 3 classes or labels, and"),
    ],
)
def test_a_shard_of_another_model(
    path: Path, changes: dict[str, Any], task: Task, message: str
) -> None:
    shard(path, replace(dataset(task), **changes), task)
    model = small_predictor(task if "labels" in changes else Task.regression)
    assert refusal(lambda: examples(str(path), model)).startswith(f"{path}{message}")


def test_those_of_the_run(tmp_path: Path) -> None:
    config = tiny("dataset.modalities=[language,audio]", f"run_dir={tmp_path / 'run'}")
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config)
    test = load_joint(config).test
    model = small_predictor()
    wide = {name: (sequences.width,) for name, sequences in test.sequences.items()}
    spec = replace(model.model.spec, features=wide)
    predictor = replace(model, model=model.model.__class__(spec))
    (folder.path / MODEL).write_bytes(model_bytes(predictor.model, predictor.fusion))
    found = load_examples(ServeConfig(model=str(folder.path)), predictor).items
    assert [example.item["id"] for example in found] == test.ids[: len(found)].tolist()
    assert found[0].label == pytest.approx(float(test.labels[0]))
    rows = test.sequences["audio"][0]
    assert np.array_equal(np.array(found[0].item["audio"], np.float32), rows[-6:])


def test_data_that_are_gone(tmp_path: Path) -> None:
    config = compose(Config, ["dataset=file", "dataset.path=gone.npz", "run_dir=elsewhere"])
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config)
    (folder.path / MODEL).touch()
    served = ServeConfig(model=str(folder.path))
    refusal(lambda: load_examples(served, small_predictor()), "gone.npz")
    with (folder.path / CONFIG).open("a") as file:
        file.write("nonsense: 1\n")
    wrong = f"{CONFIG} cannot be used: nonsense: Key 'nonsense'"
    refusal(lambda: load_examples(served, small_predictor()), wrong)
    (folder.path / CONFIG).unlink()
    refusal(lambda: load_examples(served, small_predictor()), "so the run's data are unknown")


@pytest.mark.parametrize(
    ("sentiment", "prior", "ends"),
    [
        (True, (0.1, 1.3), [-3, 3]),
        (True, (-1.5, 0.25), [-3, 3]),
        (False, (0.0, 1.0), [-3, 3]),
        (False, (0.0, 0.25), [-1.5, 1.5]),
        (False, (10.0, 4.0), [4, 16]),
    ],
)
def test_the_scale_of_numbers(
    sentiment: bool, prior: tuple[float, float], ends: list[float]
) -> None:
    predictor = small_predictor(sentiment=sentiment)
    fitted = replace(predictor, fusion=replace(predictor.fusion, prior=prior))
    assert scale(fitted) == pytest.approx(ends)
