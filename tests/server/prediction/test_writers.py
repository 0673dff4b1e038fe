"""Every kind of file holds the records or columns of the predictions, complete or not at all."""

import csv
import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_checks import refusal
from made_up_models import features_for, part, predictor_for, sequences_for

from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictions
from server.prediction.records import columns, records
from server.prediction.writers import FORMULA, check_place, write_predictions

#: What quoting, lines and encodings may trip over.
ODD = ["a,b", 'say "a"', "two\nlines", "a\rb", "\r\n", "Grüße 你好 🎧", "", " a ", "=1+1", "\t;|"]

every_task = pytest.mark.parametrize("task", list(Task))
every_suffix = pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])


def predictions(task: Task, count: int = 5) -> Predictions:
    """Predict items of which the second lacks audio, and the fourth everything."""
    steps = {"audio": [3, 0, 2, 0, 1], "vision": [1, 4, 1, 0, 2]}
    features = features_for({name: np.resize(each, count).tolist() for name, each in steps.items()})
    return predictor_for(task).predict_sequences(sequences_for(features))


def ids(count: int = 5) -> np.ndarray:
    return np.array([f"item {number}" for number in range(count)], dtype=np.str_)


def write(path: Path, found: Predictions, names: Any, labels: Sequence[str] = ()) -> Path:
    write_predictions(path, [(np.array(names, dtype=np.str_), found)], labels)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return json.load(file) if path.suffix == ".json" else list(map(json.loads, file))


def check(path: Path, found: Predictions, names: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Compare a file with the records or columns of predictions."""
    expected = records(names, found, labels)
    if not path.suffix.startswith(".json"):
        table = columns(names, found, labels)
        expected = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if path.suffix == ".csv":
        expected = [{name: cell(value) for name, value in row.items()} for row in expected]
    assert read(path) == expected


def cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and FORMULA.match(text) else text


@every_task
@every_suffix
def test_parts_make_the_file_of_the_whole(tmp_path: Path, task: Task, suffix: str) -> None:
    found, names = predictions(task, 7), ids(7)
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    write(whole, found, names)
    check(whole, found, names.tolist())

    def parts() -> Iterator[tuple[np.ndarray, Predictions]]:
        for chosen in (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 7)):
            assert not path.exists()  # before the end
            yield names[chosen], part(found, chosen)

    write_predictions(path, parts())
    assert read(path) == read(whole)
    if suffix != ".parquet":
        assert path.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [path, whole]


@every_suffix
def test_every_float32_comes_back_exactly(tmp_path: Path, suffix: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    values = bits.view(np.float32)
    edges = [np.finfo(np.float32).tiny, 1e-45, np.finfo(np.float32).max, 16777217, 0.1, 1 / 3, -0.0]
    values = np.concatenate([values[np.isfinite(values)], np.array(edges, np.float32)])
    found = Predictions(Task.regression, values, np.abs(values), {}, {}, np.float32(0))
    rows = read(write(tmp_path / f"a{suffix}", found, ids(len(values))))
    read_back = np.array([row["prediction"] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(read_back.view("u4"), values.view("u4"))


@every_suffix
def test_odd_ids_and_names_come_back(tmp_path: Path, suffix: str) -> None:
    labels = ["a,b", 'say "a"', "größe\n"]
    found = predictions(Task.classification, len(ODD))
    check(write(tmp_path / f"a{suffix}", found, ODD, labels), found, ODD, labels)


RUN = [
    "=1+1",
    "-2+3|x",
    "+x",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
    "'=1",
    "''-x",
    "-3g5yACwYnA",
    "-1\n",
]
NOT_RUN = ["a=1", "-1", "-", "+-", "'--", "'a", "'", "", "1-2", " =1", "ä"]


def test_a_spreadsheet_runs_no_text_of_a_csv_file(tmp_path: Path) -> None:
    names, labels = [*RUN, *NOT_RUN], ["=cmd|'/c calc'!A0", "+b", "c"]
    found = predictions(Task.classification, len(names))
    rows = read(write(tmp_path / "a.csv", found, names, labels))
    written = [row["id"] for row in rows]
    assert written == ["'" + name for name in RUN] + NOT_RUN
    assert [name[1:] if FORMULA.match(name) else name for name in written] == names
    assert {row["prediction"] for row in rows if row["prediction"]} <= {"'" + labels[0], "'+b", "c"}


def test_a_negative_number_is_not_text(tmp_path: Path) -> None:
    found = Predictions(Task.regression, np.float32([-1.5]), np.float32([1]), {}, {}, np.float32(0))
    (row,) = read(write(tmp_path / "a.csv", found, ids(1)))
    assert row["prediction"] == "-1.5"


@every_task
@every_suffix
def test_no_items(tmp_path: Path, task: Task, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", predictions(task, 0), [])
    header = list(columns(ids(), predictions(task)))
    if suffix == ".csv":
        assert path.read_text() == ",".join(header) + "\n"
    elif suffix == ".parquet":
        assert (pq.read_schema(path).names, read(path)) == (header, [])
    else:
        assert path.read_text() == {".json": "[]\n", ".jsonl": ""}[suffix]


# Each kind --------------------------------------------------------------------------------------


def test_the_text_of_a_csv_file(tmp_path: Path) -> None:
    found = Predictions(
        Task.regression,
        np.array([1.25, np.nan], np.float32),
        np.array([0.1, np.nan], np.float32),
        {"audio": np.array([-2, np.nan], np.float32)},
        {"audio": np.array([1, 0], np.float32)},
        np.float32(0.25),
        sentiment=True,
    )
    assert write(tmp_path / "a.csv", found, ["a", "b,c"]).read_bytes() == (
        b"id,prediction,std,seven_class,sign,prediction_audio,base,contribution_audio\n"
        b"a,1.25,0.100000001,1,positive,-2,0.25,1\n"
        b'"b,c",,,,,,,\n'
    )


def test_the_text_of_a_json_file(tmp_path: Path) -> None:
    found = Predictions(
        Task.multilabel,
        np.array([[0.5, 0.25], [np.nan, np.nan]], np.float32),
        None,
        {"audio": np.array([[0.75, 1], [np.nan, np.nan]], np.float32)},
        {"audio": np.array([[0.25, -0.5], [0, 0]], np.float32)},
        np.array([0.25, 0.75], np.float32),
    )
    lines = [
        '{"id": "ä", "prediction": ["joy"], "probabilities": {"joy": 0.5, "fear": 0.25}, '
        '"base": {"joy": 0.25, "fear": 0.75}, "modalities": {"audio": {"prediction": '
        '["joy", "fear"], "probabilities": {"joy": 0.75, "fear": 1.0}, "contribution": '
        '{"joy": 0.25, "fear": -0.5}}}}',
        '{"id": "b", "prediction": null, "probabilities": null, "base": null, "modalities": {}}',
    ]
    path = write(tmp_path / "a.jsonl", found, ["ä", "b"], ("joy", "fear"))
    assert path.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in lines)
    path = write(tmp_path / "a.json", found, ["ä", "b"], ("joy", "fear"))
    assert path.read_text(encoding="utf-8") == "[\n" + ",\n".join(lines) + "\n]\n"


def test_the_types_of_a_parquet_file(tmp_path: Path) -> None:
    number, text = pa.float32(), pa.string()
    schema = pq.read_schema(write(tmp_path / "a.parquet", predictions(Task.regression), ids()))
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        **{"id": text, "prediction": number, "std": number, "seven_class": pa.int8(), "sign": text},
        **{"prediction_audio": number, "prediction_vision": number, "base": number},
        **{"contribution_audio": number, "contribution_vision": number},
    }
    for name in ("seven_class", "sign"):
        schema = schema.remove(schema.get_field_index(name))
    other = replace(predictions(Task.regression), sentiment=False)
    assert pq.read_schema(write(tmp_path / "c.parquet", other, ids())).equals(schema)
    schema = pq.read_schema(write(tmp_path / "b.parquet", predictions(Task.classification), ids()))
    for name, kind in zip(schema.names, schema.types, strict=True):
        assert kind == (text if name == "id" or name.startswith("prediction") else number)


def test_parts_become_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.prediction.writers.ROW_GROUP", 6)
    found, names = predictions(Task.regression, 20), ids(20)
    chosen = [slice(first, first + 4) for first in range(0, 20, 4)]
    path = tmp_path / "a.parquet"
    write_predictions(path, [(names[each], part(found, each)) for each in chosen])
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert groups == [8, 8, 4]
    check(path, found, names.tolist())


# Complete or not at all -------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@every_suffix
@pytest.mark.parametrize("calls", [1, 50])
def test_a_disk_that_is_full(tmp_path: Path, suffix: str, calls: int) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("mine")
    parts = [(ids(500), predictions(Task.regression, 500))] * calls
    with largest_file(5_000):
        refusal(lambda: write_predictions(path, parts), f"out={path} cannot be written: ")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "mine"


@every_suffix
@pytest.mark.parametrize("error", [UserError("damaged"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("written", [0, 2])
def test_an_error_in_the_middle_leaves_nothing(
    tmp_path: Path, suffix: str, error: BaseException, written: int
) -> None:
    def parts() -> Iterator[tuple[np.ndarray, Predictions]]:
        for _ in range(written):
            yield ids(), predictions(Task.regression)
        raise error

    with pytest.raises(type(error)) as caught:
        write_predictions(tmp_path / f"a{suffix}", parts())
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@every_suffix
def test_an_id_that_is_no_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    message = refusal(lambda: write(path, predictions(Task.regression, 1), ["\ud800"]))
    assert message.startswith(f"out={path} cannot be written: an id or a name is not")
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_checked(tmp_path: Path) -> None:
    far, folder, there = tmp_path / "none" / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"
    check_place(tmp_path / "a.csv", overwrite=False)
    folder.mkdir()
    there.write_text("mine")
    for path, message in (
        (far, f"out={far} cannot be written: there is no folder {tmp_path / 'none'}"),
        (folder, f"out={folder} is a folder; expected a file"),
        (there, f"out={there} exists already; choose another, or give "),
    ):
        assert refusal(partial(check_place, path, overwrite=path is not there)).startswith(message)
    check_place(there, overwrite=True)
