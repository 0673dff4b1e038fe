"""Files of predictions: CSV, JSON, JSON lines, Parquet, written part by part.

CSV and Parquet hold the columns of `server.prediction.records`, JSON the records. In CSV, text that
a spreadsheet would run as a formula, such as an id ``=1+1``, has an apostrophe before it.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from common.atomic import atomic_file
from common.errors import UserError, reason
from common.task import Task
from server.prediction.predictor import Predictions
from server.prediction.records import columns, records

#: Rows of a Parquet file that are written, and read, together.
ROW_GROUP = 1 << 16

_SIGNS = r"-=+@\uff0d\uff1d\uff0b\uff20\t\r\n"

#: How formulas begin; signs alone and -1, as names of classes, are none. To remove one apostrophe
#: where this matches gives the text back.
FORMULA = re.compile(rf"(?!-\d+\Z)'*[{_SIGNS}]+[^{_SIGNS}]")

#: Ids and predictions of some items.
Part = tuple[NDArray[np.str_], Predictions]


def check_place(path: Path, overwrite: bool) -> None:
    """Check early that a file can be written; raise `UserError` if not."""
    if path.is_dir():
        raise UserError(f"out={path} is a folder; expected a file")
    if path.exists() and not overwrite:
        raise UserError(f"out={path} exists already; choose another, or give overwrite=true")
    if not path.parent.is_dir():
        raise UserError(f"out={path} cannot be written: there is no folder {path.parent}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise UserError("a .parquet file needs pyarrow: pip install pyarrow") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write an `atomic_file`; raise `UserError` if that fails."""
    try:
        with atomic_file(path) as aside:
            yield aside
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {reason(error)}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"out={path} cannot be written: an id or a name is not text") from error


def write_predictions(path: Path, parts: Iterable[Part], labels: Sequence[str] = ()) -> None:
    """Write a file of the format of its suffix, or raise `UserError`; labels are K names."""
    with new_file(path) as aside:
        _WRITERS[path.suffix](aside, parts, labels)


def _csv(path: Path, parts: Iterable[Part], labels: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(_Lines(file))
        for number, (ids, predictions) in enumerate(parts):
            table = columns(ids.tolist(), predictions, labels)
            if number == 0:
                writer.writerow(map(_cell, table))
            writer.writerows(map(_cell, row) for row in zip(*table.values(), strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}"  # nine digits identify a float32
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


@dataclass
class _Lines:
    """Ends lines with a line feed: `csv` quotes a carriage return only where lines end with one."""

    file: IO[str]

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def _json(path: Path, parts: Iterable[Part], labels: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        before = "[\n"
        for line in _json_texts(parts, labels):
            file.write(before + line)
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")


def _json_lines(path: Path, parts: Iterable[Part], labels: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _json_texts(parts, labels))


def _json_texts(parts: Iterable[Part], labels: Sequence[str]) -> Iterator[str]:
    for ids, predictions in parts:
        for record in records(ids.tolist(), predictions, labels):
            yield json.dumps(record, ensure_ascii=False)


def _parquet(path: Path, parts: Iterable[Part], labels: Sequence[str]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    def tables() -> Iterator[Any]:
        for ids, predictions in parts:
            table = columns(ids.tolist(), predictions, labels)
            types = {name: _arrow_type(name, predictions.task) for name in table}
            yield pyarrow.table(table, schema=pyarrow.schema(types))

    coming = tables()
    first = next(coming)
    with ParquetWriter(path, first.schema) as writer:
        waiting: list[Any] = []
        for table in itertools.chain([first], coming):
            waiting.append(table)
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pyarrow.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pyarrow.concat_tables(waiting))


def _arrow_type(name: str, task: Task) -> Any:
    import pyarrow

    numbers = task is Task.regression and name.startswith("prediction")
    if numbers or name.startswith(("probability", "contribution", "base", "std")):
        return pyarrow.float32()
    return pyarrow.int8() if name == "seven_class" else pyarrow.string()


_WRITERS: Mapping[str, Callable[[Path, Iterable[Part], Sequence[str]], None]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
