"""Tables as spreadsheets and other programs write them, and labels as people do."""

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_checks import refusal

from common.data.formats.registry import FORMATS, read_source, recognise
from common.data.source import ReadSettings, Source
from common.task import Task

CLASSES = {"task": Task.classification}
ROWS = "id,label,group\na,1.5,x\nb,-2,x\nc,3,y\n"


def make(folder: Path, table: str | bytes = ROWS, name: str = "items.csv", **arrays: Any) -> Path:
    """Write a table of three items, and their arrays."""
    for modality, array in (arrays or {"audio": np.ones((3, 2))}).items():
        np.save(folder / f"{modality}.npy", array)
    (folder / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return folder / name


def labelled(folder: Path, *labels: str) -> Path:
    """Write a table of items with labels."""
    rows = [f"{item},{label}" for item, label in enumerate(labels)]
    return make(folder, "\n".join(["id,label", *rows]) + "\n", audio=np.ones((len(labels), 2)))


def read(path: Path, **options: Any) -> Source:
    return read_source([path], "auto", ReadSettings(**options))[0]


def classes(path: Path, **options: Any) -> tuple[list[int], tuple[str, ...]]:
    items = read(path, **CLASSES, **options).items
    return items.labels.tolist(), items.label_names


def fails(path: Path, *words: object, **options: Any) -> None:
    refusal(lambda: read(path, prefix="+", **options), *words)


# ---- Dialects -------------------------------------------------------------------------

DIALECTS = {
    "semicolon": ROWS.replace(",", ";"),
    "tab": ROWS.replace(",", "\t"),
    "bar": ROWS.replace(",", "|"),
    "decimal comma": ROWS.replace(",", ";").replace(".", ","),
    "said by Excel": "sep=;\n" + ROWS.replace(",", ";"),
    "commas in a name": ROWS.replace(",", ";")
    .replace("group", "group;a,b,c,d")
    .replace("x\n", "x;\n")
    .replace("y\n", "y;\n"),
    "spaces": ROWS.replace(",", ", "),
    "case": ROWS.replace("id,label,group", "ID, Label ,GROUP"),
    "mark": "\ufeff" + ROWS,
    "quoted": '"id","label","group"\r\n"a","1.5","x"\r\n"b","-2","x"\r\n"c","3","y"\r\n',
    "old Mac": ROWS.replace("\n", "\r"),
    "cleared": ROWS.replace("\n", ",,\n") + ",,,,\n",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_is_told_by_the_first_line(tmp_path: Path, dialect: str) -> None:
    source = read(make(tmp_path, DIALECTS[dialect]))
    assert source.items.ids.tolist() == ["a", "b", "c"]
    assert source.items.labels.tolist() == [1.5, -2, 3]
    assert source.items.groups.tolist() == ["x", "x", "y"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.tsv", ROWS.replace(",", "\t").encode()),
        ("items.csv.gz", gzip.compress(ROWS.encode())),
        ("ITEMS.CSV", ROWS.encode()),
        ("items.csv", ROWS.replace(",", "\t").encode("utf-16")),
    ],
    ids=["tab", "gzip", "upper case", "UTF-16"],
)
def test_suffixes_and_encodings(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(make(tmp_path, content, name)).items.labels.tolist() == [1.5, -2, 3]
    assert read(tmp_path).items.ids.tolist() == ["a", "b", "c"]


def test_a_wrong_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = make(tmp_path, ROWS.replace("b,-2,x", "b,-2,Zo\xeb").encode("latin-1"))
    fails(path, "not UTF-8", "0xeb in line 3", "'b,-2,Zo\xeb", "CSV UTF-8")


def test_excel_is_read_where_its_library_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, b"PK", "items.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    fails(path, "items.xlsx needs openpyxl", "CSV UTF-8")


def test_an_excel_table(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["ID", "label", "group"], ["a", 1.5, 7], [None] * 3, ["b", -2, 7], ["c", None, 8]):
        book.active.append(row)
    book.save(tmp_path / "items.xlsx")
    np.save(tmp_path / "audio.npy", np.ones((3, 2)))
    items = read(tmp_path).items
    assert (items.ids.tolist(), items.labels.tolist()) == (["a", "b"], [1.5, -2])
    assert items.groups.tolist() == ["7", "7"]
    book.create_sheet("more")
    book.save(tmp_path / "items.xlsx")
    fails(tmp_path, "2 sheets", "more")


def test_blank_rows_are_left_out_and_counted_as_rows(tmp_path: Path) -> None:
    rows = ROWS.replace("b,", ",,\n\nb,")
    assert read(make(tmp_path, rows)).items.cleaning == {"rows without anything, left out": 2}
    fails(make(tmp_path, rows.replace("-2", "two")), "'two' in data row 4")


def test_a_table_without_names_of_its_columns(tmp_path: Path) -> None:
    fails(make(tmp_path, ROWS.split("\n", 1)[1]), "first line must name the columns", "a, 1.5, x")


@pytest.mark.parametrize("header", ["id;group", "ID;group", " Id ;group"])
def test_ids_are_found_to_predict(tmp_path: Path, header: str) -> None:
    path = make(tmp_path, f"{header}\na;x\nb;x\nc;y\n")
    settings = ReadSettings(predicting=True)
    given, name, _ = recognise([path], "auto", settings)
    stream = FORMATS[name].stream(given, settings)
    assert stream is not None
    assert [name for ids, _ in stream[1](2) for name in ids.tolist()] == ["a", "b", "c"]
    assert settings.notes == {}


def test_numbered_items_are_said(tmp_path: Path) -> None:
    path = make(tmp_path, "item,label\na,1\nb,2\nc,3\n")
    assert read(path).items.cleaning == {
        "items without an id, numbered: the table has no column 'id'": 3,
        "column not used: item": 1,
    }
    np.savez(tmp_path / "audio.npz", values=np.ones((3, 2)), ids=np.array(["a", "b", "c"]))
    (tmp_path / "audio.npy").unlink()
    fails(path, "none of its ids", "a, b here, 0, 1 there", "column 'id' may be missing")


def test_a_column_that_may_be_the_group_is_offered(tmp_path: Path) -> None:
    """A measurement, a column with gaps and one without a name are none."""
    rows = [f"{n % 3},{n},{n % 4},s{n % 3},{n % 3}.5,{n % 3 or ''}" for n in range(12)]
    path = make(tmp_path, ",ID,Label,Speaker,age,ward\n" + "\n".join(rows), audio=np.ones((12, 2)))

    def told(**options: Any) -> dict[str, int]:
        return dict(read(path, **options).items.cleaning)

    offer = "different values of Speaker repeat across items; group=Speaker keeps those that share"
    assert told() == {
        "columns not used: one without a name, Speaker, age, ward": 4,
        f"{offer} one on one side": 3,
    }
    assert told(group="speaker") == {"columns not used: one without a name, age, ward": 3}


def test_a_split_in_capitals_is_the_split(tmp_path: Path) -> None:
    path = make(tmp_path, "id,label,Split\na,1,train\nb,2,test\nc,3,dev\n")
    assert read(path).splits.tolist() == ["train", "test", "validation"]


# ---- Labels ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["unknown", '"3,113.16"', "45%", "1_000", "-", "?"])
def test_the_bad_cell_is_named_and_not_the_good_ones(tmp_path: Path, cell: str) -> None:
    labels = ["0.5"] * 20
    labels[9] = cell
    shown = cell.strip('"')
    fails(labelled(tmp_path, *labels), f"'label' is '{shown}' in data row 10; expected a number")


def test_with_decimal_commas_a_point_is_a_mistake(tmp_path: Path) -> None:
    fails(make(tmp_path, "id;label\na;1,5\nb;1.234\nc;2,5\n"), "'1.234' in data row 2")


def test_words_under_regression_say_what_they_may_be(tmp_path: Path) -> None:
    fails(labelled(tmp_path, "good", "bad", "1"), "'good' in data row 1", "+task=classification")


@pytest.mark.parametrize(
    ("cells", "numbers", "names"),
    [
        (["b", "a", "", "b"], [1, 0, 1], ("a", "b")),
        (["0", "2", "NaN", "2"], [0, 2, 2], ()),
        (["1.0", "0.0", "n/a", "1.0"], [1, 0, 1], ()),
        (["1", "5", "3", "1"], [0, 2, 1, 0], ("1", "3", "5")),
        (["250", "401", "493", "250"], [0, 1, 2, 0], ("250", "401", "493")),
        (["-1", "1", "0", "-1"], [0, 2, 1, 0], ("-1", "0", "1")),
        (["True", "FALSE", "true", "False"], [1, 0, 1, 0], ("false", "true")),
        (["true", "true", "true", "true"], [1, 1, 1, 1], ("false", "true")),
    ],
)
def test_classes_of_any_kind(
    tmp_path: Path, cells: list[str], numbers: list[int], names: tuple[str, ...]
) -> None:
    assert classes(labelled(tmp_path, *cells)) == (numbers, names)


@pytest.mark.parametrize("column", [pa.array(["b", "a", "b"]).dictionary_encode(), [True, False]])
def test_categories_and_truth_values_of_parquet(tmp_path: Path, column: Any) -> None:
    make(tmp_path, audio=np.ones((len(column), 2))).unlink()
    pq.write_table(pa.table({"label": column}), tmp_path / "items.parquet")
    assert classes(tmp_path)[1] in (("a", "b"), ("false", "true"))


def test_classes_that_are_given_are_numbered_alike_everywhere(tmp_path: Path) -> None:
    path = labelled(tmp_path, "sad", "sad", "glad")
    named = ("glad", "neutral", "sad")
    assert classes(path, classes=named) == ([2, 2, 0], named)
    fails(path, "'sad' in data row 1 (and 1 more)", "glad", **CLASSES, classes=("glad", "mad"))
    fails(path, "+classes names a class twice", **CLASSES, classes=("a", "a"))
    fails(path, "+classes are for task=classification", classes=named)
    assert classes(labelled(tmp_path, "1", "1.0"), classes=("0", "1")) == ([1, 1], ("0", "1"))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1", "0", "unknown", "1"], ["'unknown' in data row 3", "words or whole numbers"]),
        (["1", "0.5", "2", "1"], ["'0.5' in data row 2", "+task=regression"]),
        (["1", "1", "1", "1"], ["every item is of the class 1", "+classes=[…]"]),
        (["a", "a", "a", "a"], ["every item is of the class a"]),
        (["", "", "nan", ""], ["every label is missing"]),
    ],
)
def test_what_are_no_classes(tmp_path: Path, cells: list[str], words: list[str]) -> None:
    fails(labelled(tmp_path, *cells), *words, **CLASSES)


def test_items_that_lack_one_of_several_labels_are_counted(tmp_path: Path) -> None:
    path = make(tmp_path, "id,joy,sad\na,1,\nb,0,true\nc,,\n")
    items = read(path, task=Task.multilabel, labels=("Joy", "sad")).items
    assert items.labels.tolist() == [[0, 1]]
    assert items.cleaning == {
        "items without a label, dropped": 1,
        "items that lack some of the labels, dropped": 1,
    }


# ---- What is missing, and arrays as people save them ----------------------------------


def test_an_item_of_nan_alone_is_absent(tmp_path: Path) -> None:
    nan, padded = np.ones((3, 2)), np.ones((3, 4, 2))
    nan[1] = np.nan
    padded[0, 2:] = np.nan
    padded[1] = np.nan
    padded[2, 1] = np.nan
    items = read(make(tmp_path, grip=nan, gait=padded)).items
    assert items.sequences["grip"].present.tolist() == [True, False, True]
    assert items.sequences["gait"].lengths.tolist() == [2, 0, 4]
    assert items.cleaning == {
        "items without gait": 1,
        "items without grip": 1,
        "items without any modality": 1,
    }
    tabular = read(tmp_path, tabular=("gait",)).items.sequences["gait"]
    assert tabular.lengths.tolist() == [4, 0, 4]
    before = read(tmp_path, context=1, modalities=("grip",)).items.sequences["grip"]
    assert before.lengths.tolist() == [1, 0, 1]


@pytest.mark.parametrize("array", [np.arange(3) + 1, np.array([True, True, True]), np.ones(3)])
def test_numbers_and_truth_values_are_features(tmp_path: Path, array: np.ndarray) -> None:
    audio = read(make(tmp_path, audio=array)).items.sequences["audio"]
    assert audio.values.ravel().tolist() == array.astype(float).tolist()
    assert (audio.values.dtype, audio.width) == (np.float32, 1)


def test_an_array_without_a_name_and_a_name_in_capitals(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "audio.npy").rename(tmp_path / "AUDIO.NPY")
    np.savez(tmp_path / "gait.npz", np.ones((3, 2, 2)))
    assert set(read(path).items.sequences) == {"audio", "gait"}


def test_tensors(tmp_path: Path) -> None:
    path = make(tmp_path)
    torch.save(torch.ones(3, 4, 2, dtype=torch.bfloat16, requires_grad=True), tmp_path / "gait.pt")
    torch.save({"a": torch.ones(2, 1), "c": torch.ones(1, 1)}, tmp_path / "grip.pt")
    sequences = read(path).items.sequences
    assert sequences["gait"].lengths.tolist() == [4, 4, 4]
    assert sequences["grip"].lengths.tolist() == [2, 0, 1]
    torch.save([1, 2], tmp_path / "gait.pt")
    fails(path, "gait.pt holds list, expected a tensor")
    torch.save(Path("x"), tmp_path / "gait.pt")
    fails(path, "gait.pt cannot be read")


@pytest.mark.parametrize("name", ["label", "labels", "Y", "ids", "group"])
def test_labels_beside_the_table_are_no_features(tmp_path: Path, name: str) -> None:
    items = read(make(tmp_path, **{name: np.ones(3), "audio": np.ones((3, 2))})).items
    assert set(items.sequences) == {"audio"}
    assert items.cleaning == {f"file not used: {name}.npy": 1}


def test_a_file_whose_name_is_no_modality_says_how_to_give_one(tmp_path: Path) -> None:
    fails(make(tmp_path, **{"wav2vec-2": np.ones((3, 2))}), "'wav2vec-2'", "+arrays.audio=")


def test_what_systems_leave_behind_is_ignored_and_counted(tmp_path: Path) -> None:
    make(tmp_path)
    for litter in ("._audio.npy", "~$items.csv", ".DS_Store", "Thumbs.db"):
        (tmp_path / litter).write_bytes(b"\0\5\26\7")
    assert read(tmp_path).items.cleaning == {"files such as .DS_Store, ignored": 4}
