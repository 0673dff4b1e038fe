"""The registry of formats: one module is all that a format needs; what several refuse alike."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_checks import refusal

from common.config import PrepareConfig
from common.data.formats.registry import FORMATS, check_format, read_source
from common.data.item_stream import open_items
from common.data.source import ReadSettings
from common.task import Task
from server.preparation.preparation import read
from tests.common.data.formats import writers

ROOT = Path(__file__).resolve().parents[4]

LINES = '''
"""Numbers in lines."""

import numpy as np

from common.data.dataset import MultimodalDataset, Sequences
from common.data.formats.layouts import no_sides
from common.data.formats.registry import FORMATS, Format
from common.data.source import Source


def read(given, settings):
    values = np.loadtxt(given.path, dtype=np.float32)[:, None]
    ids = np.arange(len(values)).astype(str)
    audio = Sequences.ragged(values, np.ones(len(values), dtype=np.int64))
    items = MultimodalDataset(ids, ids, values[:, 0], {"audio": audio})
    return Source(items, no_sides(len(values)))


FORMATS["lines"] = Format(
    lambda given: "numbers in lines" if given.path.suffix == ".lines" else None, read
)
'''


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that registers the format ``lines``, and a file of it."""
    (tmp_path / "lines_format.py").write_text(LINES)
    package = sys.modules["common.data.formats"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    path = tmp_path / "a.lines"
    path.write_text("1\n2\n3\n")
    yield path
    FORMATS.pop("lines", None)
    sys.modules.pop("common.data.formats.lines_format", None)


@pytest.mark.parametrize("format", ["auto", "lines"])
def test_a_format_is_a_module_with_one_entry(lines: Path, format: str) -> None:
    source, name, why = read_source([lines], format, ReadSettings())
    assert (name, why) == ("lines", "numbers in lines" if format == "auto" else "format=lines")
    assert source.items.labels.tolist() == [1, 2, 3]
    parts = list(open_items([lines], format, ReadSettings(predicting=True)).parts(2))
    assert [part.ids.tolist() for part in parts] == [["0", "1"], ["2"]]
    prepared = read(PrepareConfig(path=str(lines), format=format), lambda *_: None)
    assert prepared.about["format"] == "lines"


def test_a_format_that_is_none_is_refused_with_the_list() -> None:
    names = "auto, csd, mmsa, mult, multibench, npz, table"
    assert refusal(lambda: check_format("hdf")) == f"format=hdf: expected one of {names}"
    config = PrepareConfig(format="hdf")
    assert refusal(lambda: read(config, lambda *_: None)).endswith("synthetic, table")


UTTERANCES = writers.make_utterances(4, count=10, videos=5)
EMOTIONS = {"task": Task.multilabel, "emotions": True}
OF_UTTERANCES: list[tuple[dict[str, Any], list[str]]] = [
    ({"context": 2}, ["+context=2"]),
    ({"group": "video"}, ["+group=video", "videos"]),
    ({"modalities": ("smell",)}, ["'smell'", "language"]),
    ({"tabular": ("audio",)}, ["audio", "+tabular"]),
    ({"task": Task.multilabel}, ["+task=emotion"]),
    ({"task": Task.classification}, ["a whole number", "+task=regression"]),
]


@pytest.mark.parametrize(
    ("format", "options", "words"),
    [
        *((name, *row) for name in ("csd", "mult", "multibench") for row in OF_UTTERANCES),
        ("multibench", EMOTIONS, ["has no emotions", "labels"]),
        ("table", EMOTIONS, ["+labels", "+task=multilabel"]),
        ("table", {"group": "ward"}, ["no column 'ward'", "+group"]),
        ("table", {"modalities": ("smell",)}, ["smell.npy", "+arrays.smell"]),
        ("table", {"arrays": {"smell": "/nothing.npy"}}, ["/nothing.npy", "does not exist"]),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, format: str, options: dict[str, Any], words: list[str]
) -> None:
    path = writers.WRITERS[format](tmp_path, UTTERANCES)
    refusal(lambda: read_source([path], format, ReadSettings(prefix="+", **options)), *words)


@pytest.mark.parametrize(("format", "library"), [("csd", "h5py"), ("table", "pyarrow")])
@pytest.mark.parametrize("read", [read_source, open_items])
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, library: str, read: Any
) -> None:
    options = {"kind": "parquet"} if format == "table" else {}
    path = writers.WRITERS[format](tmp_path, UTTERANCES, **options)
    monkeypatch.setitem(sys.modules, library, None)
    words = f"needs {library}: pip install {library}"
    refusal(lambda: read([path], format, ReadSettings(predicting=True)), words)


def test_every_format_has_a_row_in_the_readme() -> None:
    readme = (ROOT / "conf/README.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in readme] == []
