"""`utmp-predict` as its users meet it."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked_command import Run
from made_up_models import OUTPUTS, STEPS, WIDTHS, Features, dataset_for, features_for, write_model

from common.data.manifest import MANIFEST
from common.data.shards import ShardInfo, write_shard
from common.task import Task
from server.prediction.predictor import Predictor
from server.prediction.records import columns
from tests.common.data.formats import writers

torch.set_num_threads(1)

COMMAND = "utmp-predict"
LOADS = """
import torch
torch.set_num_threads(1)
import server.prediction.files, common.data.formats.table
from server.commands.predict import main
"""

Check = Callable[..., str]

IDS = ["a", "b,c", 'd "e"', "ü", "x\ny"]
#: The third item has nothing at all, the fourth all three.
LENGTHS = {"language": [4, 0, 0, 3, 0], "audio": [6, 5, 0, 1, 0], "vision": [0, 3, 0, 2, 7]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "run")


def write_items(
    path: Path, features: Features, ids: list[str], task: Task = Task.regression, *names: str
) -> Path:
    info = ShardInfo(path.stem, tuple(features), task, OUTPUTS[task], names)
    write_shard(path, dataset_for(features, task, ids, names), info)
    return path


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write_items(tmp_path / "a.safetensors", features_for(LENGTHS), IDS)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def predicts(loaded: Run, tmp_path: Path) -> Callable[..., str]:
    """Compare a file with what the model predicts in Python; return what the command shows."""

    def check(
        ids: Sequence[str], features: Any, *arguments: str, names: Sequence[str] = tuple(WIDTHS)
    ) -> str:
        shown: str = loaded("model=run", "overwrite=true", *arguments).shown
        given = {name: features.get(name, [None] * len(ids)) for name in names}
        table = columns(ids, Predictor.load(tmp_path / "run", max_seq_len=9).predict(given))
        rows = read_csv(tmp_path / "predictions.csv")
        assert list(rows[0]) == list(table)
        for name, values in table.items():
            cells = [row[name] for row in rows]
            if name in ("id", "seven_class", "sign"):
                assert cells == ["" if value is None else str(value) for value in values]
            else:
                numbers = [float(cell or "nan") for cell in cells]
                np.testing.assert_allclose(numbers, np.array(values, float), atol=1e-6, rtol=0)
        return shown

    return check


# What is predicted ------------------------------------------------------------------------------


def test_a_shard_into_every_kind_of_file(
    loaded: Run, predicts: Check, model: Path, items: Path, tmp_path: Path
) -> None:
    shown = predicts(IDS, features_for(LENGTHS), "input=a.safetensors")
    assert shown.startswith("model run: regression; language (4 wide), audio (3 wide), vision (2")
    assert shown.splitlines()[1:] == [
        "input: shard, a; 5 items",
        "data: 3 items without language",
        "data: 2 items without audio",
        "data: 2 items without vision",
        "data: 1 item without any modality",
        "1 item from audio+vision",
        "1 item from language+audio",
        "1 item from language+audio+vision",
        "1 item from vision",
        "warning: 1 item without any modality: no prediction",
        "predictions: predictions.csv",
    ]
    assert {each.name for each in tmp_path.iterdir()} == {"predictions.csv", "run", items.name}
    for suffix in ("json", "jsonl", "parquet"):
        assert loaded("model=run", "input=a.safetensors", f"out=p.{suffix}").status == 0
    listed = json.loads((tmp_path / "p.json").read_text())
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert list(map(json.loads, lines)) == listed
    for name in ("id", "prediction", "std", "seven_class", "sign"):
        assert [row[name] for row in table] == [record[name] for record in listed]


@pytest.mark.parametrize("names", [["language", "audio"], ["vision"]])
def test_some_modalities(predicts: Check, model: Path, tmp_path: Path, names: list[str]) -> None:
    features = features_for({name: [3, 4, 5] for name in WIDTHS})
    write_items(tmp_path / "a.safetensors", features, [*"abc"])
    given = ("input=a.safetensors", f"modalities=[{','.join(names)}]")
    assert f"3 items from {'+'.join(names)}\n" in predicts("abc", features, *given, names=names)


def test_several_shards_of_one_modality_each(predicts: Check, model: Path, tmp_path: Path) -> None:
    audio, vision = features_for({"audio": [3, 4], "vision": [1, 2]}).values()
    write_items(tmp_path / "b.safetensors", {"audio": audio}, ["1", "2"])
    write_items(tmp_path / "a.safetensors", {"vision": vision}, ["3", "4"])
    joined = {"audio": [*audio, None, None], "vision": [None, None, *vision]}
    shown = predicts("1234", joined, "input=[b.safetensors,a.safetensors]")
    assert "input: shard, b, a; 4 items\n" in shown


@pytest.mark.parametrize("batch_size", [100, 3000])
def test_more_items_than_are_read_together(
    predicts: Check, model: Path, tmp_path: Path, batch_size: int
) -> None:
    """Without labels or ids, in a table and in a file that is read whole."""
    count, rng = 4500, np.random.default_rng(0)
    audio = rng.normal(size=(count, 2, 3)).astype(np.float32)
    vision = rng.normal(size=(count, 2)).astype(np.float32)
    np.save(tmp_path / "audio.npy", audio)
    np.save(tmp_path / "vision.npy", vision)
    (tmp_path / "calls.csv").write_text("note\n" + "x\n" * count)
    np.savez(tmp_path / "calls.npz", audio=audio, vision=vision)
    features, size = {"audio": audio, "vision": vision[:, None]}, f"batch_size={batch_size}"
    shown = predicts([*map(str, range(count))], features, "input=calls.csv", size)
    assert f"input: table, a table, CSV; {count} items\n" in shown
    ids = [f"calls.npz#{item}" for item in range(count)]
    shown = predicts(ids, features, "input=calls.npz", size)
    assert f"input: npz, a zip archive of 2 arrays; {count} items\n" in shown


def test_arrays_elsewhere(loaded: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    np.save(tmp_path / "far" / "sound.npy", np.ones((2, 4, 3)))
    (tmp_path / "calls.csv").write_text("id\na\nb\n")
    shown = loaded("model=run", "input=calls.csv", "arrays.audio=far/sound.npy").shown
    assert "2 items from audio\n" in shown
    error = loaded("model=run", "input=calls.csv", "arrays.adio=far/sound.npy", "out=b.csv").error
    assert error == "arrays: there is no modality 'adio'; the model takes language, audio, vision"


def test_what_is_cleaned_and_what_is_not_finite(loaded: Run, model: Path, tmp_path: Path) -> None:
    audio = np.ones((2, 4, 3), np.float32)
    audio[0, 1], audio[1, 2, 0] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", audio=audio)
    shown = loaded("model=run", "input=a.npz").shown
    assert "warning: 4 values of audio are not finite and count as the mean\n" in shown
    items = writers.make_utterances(0, widths=WIDTHS, zero_text=3)
    writers.write_multibench(tmp_path / "a.pkl", items)
    shown = loaded("model=run", "input=a.pkl", "out=b.csv").shown
    assert "input: multibench, a pickle of splits train, valid, test with " in shown
    for line in ("; 30 items", "data: 3 items without language", "3 items from audio+vision"):
        assert f"{line}\n" in shown


# As the run read its data -----------------------------------------------------------------------


def test_as_many_steps_as_in_the_run(predicts: Check, tmp_path: Path) -> None:
    write_model(tmp_path / "run", dataset={"max_seq_len": 2})
    features = features_for({"audio": [5]})
    write_items(tmp_path / "a.safetensors", features, ["a"])
    np.savez(tmp_path / "a.npz", audio=np.stack(features["audio"]), id=["a"])
    for steps, given in ((2, []), (3, ["max_seq_len=3"])):
        for source in ("a.safetensors", "a.npz"):
            cut = {"audio": [features["audio"][0][-steps:]]}
            predicts("a", cut, f"input={source}", *given)


def test_context_as_in_the_run(loaded: Run, predicts: Check, tmp_path: Path) -> None:
    write_model(tmp_path / "run", dataset={"context": 1, "group": "video"})
    audio = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", audio=audio, video=["x", "x", "y"], id=["a", "b", "c"])
    predicts("abc", {"audio": [audio[:1], audio[:2], audio[2:]]}, "input=a.npz")
    predicts("abc", {"audio": audio[:, None]}, "input=a.npz", "context=0")
    np.savez(tmp_path / "b.npz", audio=audio)
    error = loaded("model=run", "input=b.npz", "out=b.csv").error
    assert error.startswith("b.npz has no array 'video' (group)")


def test_a_tabular_modality(predicts: Check, tmp_path: Path) -> None:
    """Its zeros are values, and no padding."""
    write_model(tmp_path / "run", tabular=["audio"])
    audio = np.zeros((2, STEPS, 3), np.float32)
    audio[0, 1] = 1
    np.save(tmp_path / "audio.npy", audio)
    (tmp_path / "calls.csv").write_text("id\na\nb\n")
    predicts("ab", {"audio": audio}, "input=calls.csv")


@pytest.mark.parametrize(("given", "expected"), [("", "jf"), ("+-", "+-")])
def test_what_labels_are_called(loaded: Run, tmp_path: Path, given: str, expected: str) -> None:
    write_model(tmp_path / "run", Task.multilabel)
    features = features_for({"audio": [3, 1, 4]})
    write_items(tmp_path / "a.safetensors", features, [*"abc"], Task.multilabel, *"jf")
    loaded("model=run", "input=a.safetensors", f"labels=[{','.join(given)}]")
    values = Predictor.load(tmp_path / "run").predict(features).values
    for row, probabilities in zip(read_csv(tmp_path / "predictions.csv"), values, strict=True):
        found = [float(row[f"probability_{name}"]) for name in expected]
        assert found == pytest.approx(probabilities, abs=1e-6)
        chosen = [name for name, each in zip(expected, probabilities, strict=True) if each >= 0.5]
        assert row["prediction"] == ";".join(chosen)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=none", "model file none does not exist"),
        ("model=a.safetensors", "a.safetensors is not a model of this project"),
        ("input=[a.safetensors,3]", "input=['a.safetensors', 3]: expected a path or a list of"),
        ("input=.", ". is a folder of shards; give one or several of them: a.safetensors"),
        ("modalities=[smell]", "modalities: there is no modality 'smell'; the model takes langu"),
        ("device=quantum", "device=quantum cannot be used here: "),
        ("out=none/a.csv", "out=none/a.csv cannot be written: there is no folder none"),
    ],
)
def test_a_mistake_is_one_line(
    loaded: Run, model: Path, items: Path, tmp_path: Path, argument: str, message: str
) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    before = sorted(tmp_path.iterdir())
    error = loaded("model=run", "input=a.safetensors", argument).error
    assert error.startswith(message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_on_the_way_changes_nothing(loaded: Run, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", audio=np.ones((2, 4, 9)))
    np.savez(tmp_path / "a.npz", audio=np.random.default_rng(0).normal(size=(5000, 1, 3)))
    np.save(tmp_path / "audio.npy", np.ones((5000, 1, 3), np.float32))
    (tmp_path / "calls.csv").write_text("id\n" + "x\n" * 4999)
    (tmp_path / "p.csv").write_text("mine")
    before = sorted(tmp_path.iterdir())
    given = ("model=run", "out=p.csv")
    error = loaded(*given, "input=wide.npz").error
    assert error.startswith("out=p.csv exists already; choose another, or give overwrite=true")
    for source, largest_file, message in (
        ("wide.npz", 0, "audio is 9 wide; the model takes 3"),
        # After a part that went well.
        ("calls.csv", 0, "audio.npy has 5000 items and the table 4999; expected as many"),
        ("a.npz", 30_000, "out=p.csv cannot be written: "),
    ):
        answer = loaded(*given, f"input={source}", "overwrite=true", largest_file=largest_file)
        answer.stdout = ""  # what was read is shown
        assert answer.error.startswith(message)
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == before


def test_without_pyarrow(loaded: Run, model: Path, items: Path, tmp_path: Path) -> None:
    missing = ("pyarrow", "pyarrow.parquet", "pyarrow.csv")
    error = loaded("model=run", "input=a.safetensors", "out=a.parquet", missing=missing).error
    assert error == "a .parquet file needs pyarrow: pip install pyarrow"
    np.save(tmp_path / "audio.npy", np.ones((1, 1, 3)))
    (tmp_path / "calls.csv").write_text("id\na\n")
    assert loaded("model=run", "input=calls.csv", missing=missing).status == 0
    (tmp_path / "calls.parquet").write_bytes(b"PAR1")
    error = loaded("model=run", "input=calls.parquet", "out=b.csv", missing=missing).error
    assert error == "calls.parquet needs pyarrow: pip install pyarrow"
    assert loaded("model=run", "input=a.safetensors", "out=c.csv", missing=missing).status == 0


def test_names_are_shown_as_they_were_typed(loaded: Run, tmp_path: Path) -> None:
    name = "[b]a:key:b[red]" + "a" * 150 + " " + "b" * 40
    write_model(tmp_path / name)
    np.savez(tmp_path / f"{name}.npz", audio=np.ones((1, 1, 3)))
    shown = loaded(f'model="{name}"', f'input="{name}.npz"', f'out="{name}.csv"').shown
    assert f"model {name}: regression; " in shown
    assert f"predictions: {name}.csv\n" in shown
