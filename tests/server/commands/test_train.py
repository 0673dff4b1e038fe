"""`utmp-train` straight from a file of any format, and what it says of it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from forked_command import Run
from tiny_runs import SMALL
from writers import make_utterances, write_multibench

COMMAND = "utmp-train"
LOADS = """
import server.runtimes.local
from server.commands.train import main
"""
ROUND = (*SMALL, "rounds=1", "run_dir=run", "clients.default=1")


def write_calls(folder: Path, **columns: list[object]) -> None:
    """Write a table of calls and, beside it, two modalities in which the rating can be seen."""
    ratings = np.array(columns["rating"])
    rng = np.random.default_rng(0)
    kinds = np.unique(ratings, return_inverse=True)[1]
    for name, width in (("language", 3), ("audio", 2)):
        noise = rng.normal(size=(len(ratings), 4, width))
        np.save(folder / f"{name}.npy", (noise + kinds[:, None, None]).astype("f4"))
    with (folder / "calls.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns])
        writer.writerows(zip(range(len(ratings)), *columns.values(), strict=True))


def test_a_published_pickle_is_one_command(loaded: Run, tmp_path: Path) -> None:
    write_multibench(tmp_path / "mosei_raw.pkl", make_utterances(1, count=96, videos=24))
    shown = loaded("experiment=mosei_raw", "dataset.path=mosei_raw.pkl", *ROUND).shown
    first, *lines = shown.splitlines()
    assert first.startswith("data: mosei_raw.pkl, read as multibench (")
    assert first.endswith("; split as it says")
    assert "training hierarchical on 1 language, 1 audio, 1 vision clients" in lines
    assert [line for line in lines if line.startswith("verdict: ")] != []
    assert lines[-2:] == [
        f"next: utmp-report runs={tmp_path}/run out={tmp_path}/run/report",
        f"      utmp-serve model={tmp_path}/run",
    ]
    assert json.loads((tmp_path / "run/summary.json").read_text())["rounds"] == 1


def test_ratings_have_no_metric_of_sentiment(loaded: Run, tmp_path: Path) -> None:
    write_calls(tmp_path, rating=[1 + item % 5 for item in range(60)])
    shown = loaded("dataset.path=calls.csv", "dataset.label=rating", *ROUND).shown
    assert "to predict: numbers from 1 to 5" in shown
    assert " the mean " in shown and " mae " in shown
    for name in ("acc2", "acc5", "acc7", "f1", "sentiment"):
        assert name not in shown
    test = json.loads((tmp_path / "run/summary.json").read_text())["test_constant"]
    assert set(test) == {"mae", "rmse", "r2", "corr", "ccc", "coverage_50", "coverage_90"}


def test_classes_may_be_words(loaded: Run, tmp_path: Path) -> None:
    moods = [("bad", "good", "mixed")[item % 3] for item in range(60)]
    write_calls(tmp_path, rating=moods, label=moods)
    shown = loaded("dataset.path=calls.csv", "dataset.task=classification", *ROUND).shown
    assert "to predict: one of 3 classes: bad, good, mixed" in shown
    assert "predicting the most frequent class: accuracy" in shown
    assert " mae " not in shown


def test_shards_are_recognised_also_under_the_settings_of_an_experiment(
    loaded: Run, tmp_path: Path
) -> None:
    from common.config import PrepareConfig, compose
    from server.preparation.preparation import prepare

    write_multibench(tmp_path / "mosei_raw.pkl", make_utterances(1, count=96, videos=24))
    given = [f"path={tmp_path}/mosei_raw.pkl", f"out={tmp_path}/shards", "clients.default=1"]
    prepare(compose(PrepareConfig, given), lambda *_: None, lambda _: {})
    shown = loaded("experiment=mosei_raw", "dataset.path=shards", *ROUND).shown
    assert shown.startswith("data: shards, shards of utmp-prepare (multibench)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset.path=none.csv"], "none.csv does not exist"),
        (["dataset.path=sub"], "sub is empty; expected data"),
        (["dataset.path=."], "calls.csv has no column 'label' (dataset.label=…); it has id, rati"),
        (["dataset.path=calls.csv", "dataset.label=mood"], "calls.csv has no column 'mood'"),
        (
            ["dataset.path=calls.csv", "dataset.label=a", "dataset.labels=[b]"],
            "dataset.label=a and dataset.labels=[b]: give one of the two",
        ),
        (["dataset.path=calls.csv", "dataset.label=word"], "calls.csv: column 'word' "),
    ],
)
def test_a_mistake_is_one_line(
    loaded: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "sub").mkdir()
    write_calls(tmp_path, rating=[1, 2, 3, 4, 5, 1], word=list("abcdef"))
    error = loaded(*arguments, *ROUND).error
    assert error.startswith(message), error
    assert not (tmp_path / "run").exists()
