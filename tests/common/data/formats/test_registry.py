"""The registry of formats: one module with one entry is all that a format needs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config import PrepareConfig
from common.data.formats.registry import FORMATS, check_format, read_source
from common.data.item_stream import open_items
from common.data.source import ReadSettings
from common.errors import UserError
from server.preparation.preparation import read

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
    with pytest.raises(UserError, match=f"^format=hdf: expected one of {names}$"):
        check_format("hdf")
    with pytest.raises(UserError, match=r"format=hdf: expected one of .* synthetic, table$"):
        read(PrepareConfig(format="hdf"), lambda *_: None)


def test_every_format_has_a_row_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in readme] == []
