"""Every kind of file holds the same values, whole or not at all."""

import builtins
import csv
import json
import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictions
from server.prediction.records import records
from server.prediction.writers import check_place, columns, prediction_file

LABELS = ("joy", "fear", "awe")
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
#: What quoting, lines and encodings may trip over.
ODD = [
    "a,b",
    'say "a"',
    "two\nlines",
    "a\rb",
    "\r\n",
    "Grüße 你好 🎧",
    "",
    " a ",
    "=1+1",
    "1",
    "\t;|",
]

every_task = pytest.mark.parametrize("task", list(Task))
every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def predictions(task: Task, count: int = 5, seed: int = 0) -> Predictions:
    """Draw predictions of items of which the second lacks audio, and the fourth everything."""
    rng = np.random.default_rng(seed)
    shape = (count,) if task is Task.regression else (count, 3)

    def drawn(*missing: int) -> np.ndarray:
        values = rng.normal(size=shape) * 4 if task is Task.regression else rng.random(shape)
        values = values.astype(np.float32)
        values[[item for item in missing if item < count]] = np.nan
        return values

    share = rng.random(count).astype(np.float32)
    weights = {"audio": share, "vision": 1 - share}
    for name, missing in (("audio", (1, 3)), ("vision", (3,))):
        weights[name][[item for item in missing if item < count]] = 0
    std = None
    if task is Task.regression:
        std = np.abs(drawn(3))
    alone = {"audio": drawn(1, 3), "vision": drawn(3)}
    return Predictions(task, drawn(3), std, alone, weights)


def ids(count: int = 5) -> np.ndarray:
    return np.array([f"item {number}" for number in range(count)], dtype=np.str_)


def write(path: Path, found: Predictions, names: np.ndarray, labels: Sequence[str] = ()) -> Path:
    with prediction_file(path, labels) as append:
        append(names, found)
    return path


def part(found: Predictions, chosen: slice) -> Predictions:
    return replace(
        found,
        values=found.values[chosen],
        std=None if found.std is None else found.std[chosen],
        alone={name: each[chosen] for name, each in found.alone.items()},
        weights={name: each[chosen] for name, each in found.weights.items()},
    )


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file as CSV has it: flat, text of numbers as numbers, None for nothing."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".csv":
        return [{key: _number(key, cell) for key, cell in row.items()} for row in read_csv(path)]
    if path.suffix == ".jsonl":
        return [_flat(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [_flat(each) for each in json.loads(path.read_text(encoding="utf-8"))]


def _number(key: str, cell: str) -> Any:
    if key == "id":
        return cell
    if cell == "":
        return None
    try:
        return int(cell) if key == "seven_class" else float(np.float32(cell))
    except ValueError:
        return cell


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Lay a record out as a row, with what it leaves out as None or a weight of 0."""
    row = {key: each for key, each in record.items() if key not in ("modalities", "probabilities")}
    row |= _probabilities(record, "")
    row["prediction"] = _joined(row["prediction"])
    for modality in ("audio", "vision"):
        said = record["modalities"].get(modality, {"prediction": None, "weight": 0.0})
        row[f"prediction_{modality}"] = _joined(said["prediction"])
        row |= _probabilities(said, f"_{modality}")
        row[f"weight_{modality}"] = said["weight"]
    return row


def _probabilities(said: dict[str, Any], suffix: str) -> dict[str, Any]:
    known = said.get("probabilities") or {}
    return {f"probability{suffix}_{name}": each for name, each in known.items()}


def _joined(said: Any) -> Any:
    return ";".join(said) if isinstance(said, list) else said


# All say the same -------------------------------------------------------------------------------


@every_task
@every_suffix
def test_what_was_predicted_is_read_back(tmp_path: Path, task: Task, suffix: str) -> None:
    found = predictions(task)
    rows = read_rows(write(tmp_path / f"a{suffix}", found, ids(), LABELS))
    assert [row["id"] for row in rows] == ids().tolist()
    for item, row in enumerate(rows):
        _check(row, "", found, found.values[item])
        for name in ("audio", "vision"):
            _check(row, f"_{name}", found, found.alone[name][item])
            assert row[f"weight_{name}"] == pytest.approx(float(found.weights[name][item]), abs=0)
        if found.std is not None:
            assert row["std"] == (None if item == 3 else float(found.std[item]))


def _check(row: dict[str, Any], suffix: str, found: Predictions, values: np.ndarray) -> None:
    if np.isnan(values).any():
        assert row[f"prediction{suffix}"] is None
        assert all(row.get(f"probability{suffix}_{name}") is None for name in LABELS)
    elif found.task is Task.regression:
        assert row[f"prediction{suffix}"] == float(values)
    else:
        assert [row[f"probability{suffix}_{name}"] for name in LABELS] == values.tolist()
        best = np.arange(3) == values.argmax()
        chosen = best if found.task is Task.classification else values >= 0.5
        said = ";".join(name for name, there in zip(LABELS, chosen, strict=True) if there)
        # In CSV, no label and no prediction look alike.
        assert (row[f"prediction{suffix}"] or "") == said


@every_suffix
def test_classes_of_seven_and_signs(tmp_path: Path, suffix: str) -> None:
    numbers = [-9.0, -3.0, -2.5, -0.5, -0.0, 0.0, 0.49, 0.5, 1.5, 2.51, 8.0]
    nothing = np.zeros(len(numbers), np.float32)
    values = np.array(numbers, np.float32)
    found = Predictions(Task.regression, values, nothing, {}, {})
    with prediction_file(tmp_path / f"a{suffix}") as append:
        append(ids(len(numbers)), found)
    read = tmp_path / f"a{suffix}"
    rows = (
        [json.loads(line) for line in read.read_text().splitlines()]
        if suffix == ".jsonl"
        else json.loads(read.read_text())
        if suffix == ".json"
        else read_rows(read)
    )
    expected = np.rint(np.clip(numbers, -3, 3)).astype(int).tolist()
    assert [row["seven_class"] for row in rows] == expected
    assert expected == [-3, -3, -2, 0, 0, 0, 0, 0, 2, 3, 3]
    signs = ["negative"] * 4 + ["positive"] * 7
    assert [row["sign"] for row in rows] == signs


@every_suffix
def test_every_float32_comes_back_exactly(tmp_path: Path, suffix: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    edges = [np.finfo(np.float32).tiny, 1e-45, np.finfo(np.float32).max, 16777217, 0.1, 1 / 3, -0.0]
    values = np.concatenate([values, np.array(edges, np.float32)])
    weights = {"audio": np.ones_like(values)}
    found = Predictions(Task.regression, values, np.abs(values), {"audio": values}, weights)
    path = write(tmp_path / f"a{suffix}", found, ids(len(values)))
    if suffix in (".csv", ".parquet"):
        rows = read_rows(path)
        read = [[row["prediction"], row["prediction_audio"]] for row in rows]
    else:
        text = path.read_text()
        listed = json.loads(text) if suffix == ".json" else map(json.loads, text.splitlines())
        read = [[each["prediction"], each["modalities"]["audio"]["prediction"]] for each in listed]
    expected = np.stack([values, values], axis=1)
    np.testing.assert_array_equal(np.array(read, np.float32).view("u4"), expected.view("u4"))


@every_task
@every_suffix
def test_parts_make_the_file_of_the_whole(tmp_path: Path, task: Task, suffix: str) -> None:
    found, names = predictions(task, 7), ids(7)
    whole = write(tmp_path / f"whole{suffix}", found, names)
    with prediction_file(tmp_path / f"parts{suffix}") as append:
        for chosen in (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 7)):
            append(names[chosen], part(found, chosen))
    parts = tmp_path / f"parts{suffix}"
    assert read_rows(parts) == read_rows(whole)
    if suffix != ".parquet":
        assert parts.read_bytes() == whole.read_bytes()


@every_suffix
def test_odd_ids_come_back(tmp_path: Path, suffix: str) -> None:
    found = predictions(Task.regression, len(ODD))
    path = write(tmp_path / f"a{suffix}", found, np.array(ODD, dtype=np.str_))
    assert [row["id"] for row in read_rows(path)] == ODD


@every_suffix
def test_odd_names_of_classes_come_back(tmp_path: Path, suffix: str) -> None:
    labels = ["a,b", 'say "a"', "größe\n"]
    found = predictions(Task.classification)
    rows = read_rows(write(tmp_path / f"a{suffix}", found, ids(), labels))
    for item, row in enumerate(rows):
        if item != 3:
            assert row["prediction"] == labels[int(found.values[item].argmax())]
            assert [row[f"probability_{each}"] for each in labels] == found.values[item].tolist()


@every_task
@every_suffix
def test_no_items(tmp_path: Path, task: Task, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", predictions(task, 0), ids(0))
    assert read_rows(path) == []
    header = list(columns(ids(), predictions(task)))
    if suffix == ".csv":
        assert path.read_text() == ",".join(header) + "\n"
    elif suffix == ".parquet":
        assert pq.read_schema(path).names == header
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
    )
    path = write(tmp_path / "a.csv", found, np.array(["a", "b,c"]))
    assert path.read_bytes() == (
        b"id,prediction,std,seven_class,sign,prediction_audio,weight_audio\n"
        b"a,1.25,0.100000001,1,positive,-2,1\n"
        b'"b,c",,,,,,0\n'
    )


def test_the_text_of_a_json_file(tmp_path: Path) -> None:
    found = Predictions(
        Task.multilabel,
        np.array([[0.5, 0.25], [np.nan, np.nan]], np.float32),
        None,
        {"audio": np.array([[0.75, 1], [np.nan, np.nan]], np.float32)},
        {"audio": np.array([1, 0], np.float32)},
    )
    names = np.array(["ä", "b"])
    lines = [
        '{"id": "ä", "prediction": ["joy"], "probabilities": {"joy": 0.5, "fear": 0.25}, '
        '"modalities": {"audio": {"prediction": ["joy", "fear"], "probabilities": '
        '{"joy": 0.75, "fear": 1.0}, "weight": 1.0}}}',
        '{"id": "b", "prediction": null, "probabilities": null, "modalities": {}}',
    ]
    path = write(tmp_path / "a.jsonl", found, names, ("joy", "fear"))
    assert path.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in lines)
    path = write(tmp_path / "a.json", found, names, ("joy", "fear"))
    assert path.read_text(encoding="utf-8") == "[\n" + ",\n".join(lines) + "\n]\n"
    assert records(names.tolist(), found, ("joy", "fear")) == [json.loads(each) for each in lines]


def test_the_types_of_a_parquet_file(tmp_path: Path) -> None:
    number, text = pa.float32(), pa.string()
    path = write(tmp_path / "a.parquet", predictions(Task.regression), ids())
    types = dict(zip(pq.read_schema(path).names, pq.read_schema(path).types, strict=True))
    assert types == {
        **{"id": text, "prediction": number, "std": number, "seven_class": pa.int8(), "sign": text},
        **{"prediction_audio": number, "weight_audio": number},
        **{"prediction_vision": number, "weight_vision": number},
    }
    path = write(tmp_path / "b.parquet", predictions(Task.classification), ids())
    types = dict(zip(pq.read_schema(path).names, pq.read_schema(path).types, strict=True))
    assert types.pop("id") == types.pop("prediction") == types.pop("prediction_audio") == text
    assert types.pop("prediction_vision") == text
    assert set(types.values()) == {number}


def test_parts_become_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.prediction.writers.ROW_GROUP", 6)
    found, names = predictions(Task.regression, 20), ids(20)
    with prediction_file(tmp_path / "a.parquet") as append:
        for first in range(0, 20, 4):
            chosen = slice(first, first + 4)
            append(names[chosen], part(found, chosen))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert groups == [8, 8, 4]
    assert [row["id"] for row in read_rows(tmp_path / "a.parquet")] == names.tolist()


def test_what_is_infinite_is_not_known(tmp_path: Path) -> None:
    values = np.array([np.inf, -np.inf, 1], np.float32)
    found = Predictions(Task.regression, values, np.abs(values), {}, {})
    for suffix in (".json", ".jsonl"):
        path = write(tmp_path / f"a{suffix}", found, ids(3))
        assert "Infinity" not in path.read_text()
    rows = read_rows(write(tmp_path / "a.csv", found, ids(3)))
    assert [row["prediction"] for row in rows] == [None, None, 1]
    assert [row["sign"] for row in rows] == [None, None, "positive"]


# Whole or not at all ----------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@every_suffix
@pytest.mark.parametrize("before", [None, "mine"])
@pytest.mark.parametrize("calls", [1, 50])
def test_a_disk_that_is_full(tmp_path: Path, suffix: str, before: str | None, calls: int) -> None:
    path = tmp_path / f"a{suffix}"
    if before is not None:
        path.write_text(before)
    found = predictions(Task.regression, 500)
    with (
        largest_file(20_000),
        pytest.raises(UserError) as caught,
        prediction_file(path) as append,
    ):
        for seed in range(calls):
            append(ids(500), predictions(Task.regression, 500, seed) if seed else found)
    assert str(caught.value).startswith(f"out={path} cannot be written: ")
    assert len(str(caught.value).splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ([] if before is None else [path.name])
    assert before is None or path.read_text() == before


@every_suffix
@pytest.mark.parametrize("error", [UserError("damaged"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("written", [0, 2])
def test_what_goes_wrong_in_the_middle_leaves_nothing(
    tmp_path: Path, suffix: str, error: BaseException, written: int
) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(type(error)) as caught, prediction_file(path) as append:
        for _ in range(written):
            append(ids(), predictions(Task.regression))
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@every_suffix
def test_nothing_is_there_before_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with prediction_file(path) as append:
        append(ids(), predictions(Task.regression))
        assert not path.exists()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@every_suffix
def test_an_id_that_is_no_text(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError) as caught:
        write(tmp_path / f"a{suffix}", predictions(Task.regression, 1), np.array(["\ud800"]))
    path = tmp_path / f"a{suffix}"
    assert str(caught.value) == f"out={path} cannot be written: an id or a name is not text"
    assert list(tmp_path.iterdir()) == []


# A place for it ---------------------------------------------------------------------------------


def refused(path: Path, overwrite: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        check_place(path, overwrite)
    return str(caught.value)


@every_suffix
def test_nothing_is_overwritten_unasked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    check_place(path, overwrite=False)
    path.write_text("mine")
    expected = f"out={path} is there already; choose another, or give overwrite=true"
    assert refused(path) == expected
    check_place(path, overwrite=True)
    write(path, predictions(Task.regression), ids())
    assert len(read_rows(path)) == 5


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_place_that_is_none(tmp_path: Path, overwrite: bool) -> None:
    far = tmp_path / "none" / "a.csv"
    assert refused(far, overwrite) == (
        f"out={far} cannot be written: there is no folder {tmp_path / 'none'}"
    )
    (tmp_path / "b.csv").mkdir()
    folder = tmp_path / "b.csv"
    assert refused(folder, overwrite) == f"out={folder} is a folder; expected a file"


def test_pyarrow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(tmp_path / "a.parquet") == (
        "a .parquet file needs pyarrow: pip install 'ha-fedformer[prepare]'"
    )
    for suffix in (".csv", ".json", ".jsonl"):
        check_place(tmp_path / f"a{suffix}", overwrite=False)
        write(tmp_path / f"a{suffix}", predictions(Task.regression), ids())


def test_cells_are_of_python_and_not_of_numpy() -> None:
    for task in Task:
        table = columns(ids(), predictions(task))
        kinds = {type(cell) for cells in table.values() for cell in cells}
        assert kinds <= {str, float, int, type(None)}
        assert not any(
            isinstance(cell, float) and math.isnan(cell)
            for cells in table.values()
            for cell in cells
        )
