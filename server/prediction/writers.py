"""Files of predictions: CSV, JSON, JSON lines, Parquet; each written as it comes.

CSV and Parquet have a column for everything: ``id``, ``prediction``, ``std``, ``seven_class`` and
``sign`` of a number, or ``prediction`` and ``probability_CLASS`` of classes and labels, of which
several are joined by ``;``; then, for each modality, what it predicts alone and its weight. JSON
holds `server.prediction.records`.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.atomic import atomic_file
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Floats, Predictions
from server.prediction.records import records, seven_class, sign

Column = list[Any]

#: Rows of a Parquet file that are written together, and are read together too.
ROW_GROUP = 1 << 16


class Writer(Protocol):
    """What takes predictions, some items at a time."""

    def write(self, ids: NDArray[np.str_], found: Predictions) -> None:
        """Append some items."""

    def close(self) -> None:
        """Write what comes last."""


def check_place(path: Path, overwrite: bool) -> None:
    """Check that a file can be written, before there is anything to write.

    Raises
    ------
    UserError
        If it is there already, has no folder, or needs a library that is not there.
    """
    if path.is_dir():
        raise UserError(f"out={path} is a folder; expected a file")
    if path.exists() and not overwrite:
        raise UserError(f"out={path} is there already; choose another, or give overwrite=true")
    if not path.parent.is_dir():
        raise UserError(f"out={path} cannot be written: there is no folder {path.parent}")
    if path.suffix == ".parquet":
        _check_pyarrow()


@contextmanager
def prediction_file(path: Path, labels: Sequence[str] = ()) -> Iterator[Writer]:
    """Write a file of predictions aside, and put it in its place at the end.

    Parameters
    ----------
    path
        Its suffix decides the format; one that is there is replaced.
    labels
        Names of the K classes or labels; by default their numbers.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    try:
        with atomic_file(path) as aside:
            writer = _WRITERS[path.suffix](aside, tuple(labels))
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"out={path} cannot be written: an id or a name is no text") from error


def columns(
    ids: NDArray[np.str_], found: Predictions, labels: Sequence[str] = ()
) -> dict[str, Column]:
    """Return predictions as columns of plain values; None is what is not known.

    Parameters
    ----------
    ids
        (N,).
    found
        Of N items.
    labels
        Names of the K classes or labels; by default their numbers.
    """
    table: dict[str, Column] = {"id": ids.tolist()}
    table |= _values(found.task, found.values, labels, "")
    if found.std is not None:
        table["std"] = _plain(found.std)
    if found.task is Task.regression:
        numbers = table["prediction"]
        table["seven_class"] = [None if each is None else seven_class(each) for each in numbers]
        table["sign"] = [None if each is None else sign(each) for each in numbers]
    for modality, alone in found.alone.items():
        table |= _values(found.task, alone, labels, f"_{modality}")
        table[f"weight_{modality}"] = _plain(found.weights[modality])
    return table


def _values(task: Task, values: Floats, labels: Sequence[str], suffix: str) -> dict[str, Column]:
    if task is Task.regression:
        return {f"prediction{suffix}": _plain(values)}
    names = list(labels) or [str(number) for number in range(values.shape[1])]
    known = [all(row) for row in np.isfinite(values).tolist()]
    said: Column
    if task is Task.classification:
        said = [
            names[best] if there else None
            for best, there in zip(np.nan_to_num(values).argmax(axis=1), known, strict=True)
        ]
    else:
        said = [
            ";".join(name for name, each in zip(names, row, strict=True) if each >= 0.5)
            if there
            else None
            for row, there in zip(values.tolist(), known, strict=True)
        ]
    return {
        f"prediction{suffix}": said,
        **{
            f"probability{suffix}_{name}": _plain(values[:, number])
            for number, name in enumerate(names)
        },
    }


def _plain(values: Floats) -> Column:
    numbers: Column = values.tolist()
    finite = np.isfinite(values)
    if finite.all():
        return numbers
    return [each if known else None for each, known in zip(numbers, finite.tolist(), strict=True)]


@dataclass
class _CsvWriter:
    path: Path
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(_Lines(self._file))
        self._header = False

    def write(self, ids: NDArray[np.str_], found: Predictions) -> None:
        table = columns(ids, found, self.labels)
        if not self._header:
            self._writer.writerow(table)
            self._header = True
        self._writer.writerows(
            [_shortest(each) if isinstance(each, float) else each for each in row]
            for row in zip(*table.values(), strict=True)
        )

    def close(self) -> None:
        self._file.close()


@dataclass
class _Lines:
    """Ends lines with a line feed: `csv` quotes a carriage return only where lines end with one."""

    file: IO[str]

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def _shortest(number: float) -> str:
    """Write a float32 in the digits that tell it from its neighbours."""
    return f"{number:.9g}"


@dataclass
class _JsonWriter:
    """One list of objects; with `lines`, an object a line."""

    path: Path
    labels: tuple[str, ...]
    lines: bool = False

    def __post_init__(self) -> None:
        self._file: IO[str] = self.path.open("w", encoding="utf-8")
        self._between = "" if self.lines else "[\n"

    def write(self, ids: NDArray[np.str_], found: Predictions) -> None:
        for record in records(ids.tolist(), found, self.labels):
            self._file.write(self._between + json.dumps(record, ensure_ascii=False))
            self._between = "\n" if self.lines else ",\n"

    def close(self) -> None:
        with self._file:
            if not self.lines:
                self._file.write("[]\n" if self._between == "[\n" else "\n]\n")
            elif self._between:
                self._file.write("\n")


@dataclass
class _ParquetWriter:
    path: Path
    labels: tuple[str, ...]
    _writer: Any = field(default=None, init=False)
    _waiting: list[Any] = field(default_factory=list, init=False)

    def write(self, ids: NDArray[np.str_], found: Predictions) -> None:
        import pyarrow

        table = columns(ids, found, self.labels)
        schema = pyarrow.schema({name: _arrow_type(name, found.task) for name in table})
        self._waiting.append(pyarrow.table(table, schema=schema))
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow.parquet

        table = pyarrow.concat_tables(self._waiting)
        self._waiting.clear()
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        try:
            if self._waiting:
                self._write_group()
        finally:
            if self._writer is not None:
                self._writer.close()


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "a .parquet file needs pyarrow: pip install 'ha-fedformer[prepare]'"
        ) from error


def _arrow_type(name: str, task: Task) -> Any:
    import pyarrow

    numbers = task is Task.regression and name.startswith("prediction")
    if numbers or name.startswith(("probability", "weight_")) or name == "std":
        return pyarrow.float32()
    return pyarrow.int8() if name == "seven_class" else pyarrow.string()


def _json_lines(path: Path, labels: tuple[str, ...]) -> _JsonWriter:
    return _JsonWriter(path, labels, lines=True)


_WRITERS: Mapping[str, Any] = {
    ".csv": _CsvWriter,
    ".json": _JsonWriter,
    ".jsonl": _json_lines,
    ".parquet": _ParquetWriter,
}
