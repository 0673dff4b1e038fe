"""Files of predictions: CSV, JSON, JSON lines, Parquet; each written as it comes.

CSV and Parquet have a column for everything: ``id``, ``prediction``, ``std``, ``seven_class`` and
``sign`` of a number, or ``prediction`` and ``probability_CLASS`` of classes and labels, of which
several are joined by ``;``; then, for each modality, what it predicts alone and its weight. JSON
holds `server.prediction.records`.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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


#: Appends predictions of some items to a file.
Write = Callable[[NDArray[np.str_], Predictions], None]


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
def prediction_file(path: Path, labels: Sequence[str] = ()) -> Iterator[Write]:
    """Write a file of predictions aside, and move it into place at the end.

    Parameters
    ----------
    path
        Its suffix decides the format; an existing file is replaced.
    labels
        Names of the K classes or labels; by default their numbers.

    Raises
    ------
    UserError
        If it cannot be written.
    """
    try:
        with atomic_file(path) as aside, _WRITERS[path.suffix](aside, tuple(labels)) as write:
            yield write
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"out={path} cannot be written: an id or a name is no text") from error


def columns(
    ids: NDArray[np.str_], predictions: Predictions, labels: Sequence[str] = ()
) -> dict[str, Column]:
    """Return predictions as columns of plain values; None is what is not known.

    Parameters
    ----------
    ids
        (N,).
    predictions
        Of N items.
    labels
        Names of the K classes or labels; by default their numbers.
    """
    table: dict[str, Column] = {"id": ids.tolist()}
    table |= _values(predictions.task, predictions.values, labels, "")
    if predictions.std is not None:
        table["std"] = _plain(predictions.std)
    if predictions.task is Task.regression:
        numbers = table["prediction"]
        table["seven_class"] = [None if each is None else seven_class(each) for each in numbers]
        table["sign"] = [None if each is None else sign(each) for each in numbers]
    for modality, alone in predictions.alone.items():
        table |= _values(predictions.task, alone, labels, f"_{modality}")
        table[f"weight_{modality}"] = _plain(predictions.weights[modality])
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


@contextmanager
def _csv(path: Path, labels: tuple[str, ...]) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer, begun = csv.writer(_Lines(file)), False

        def write(ids: NDArray[np.str_], predictions: Predictions) -> None:
            nonlocal begun
            table = columns(ids, predictions, labels)
            if not begun:
                writer.writerow(table)
                begun = True
            writer.writerows(
                # A float32 in the digits that tell it from its neighbours.
                [f"{value:.9g}" if isinstance(value, float) else value for value in row]
                for row in zip(*table.values(), strict=True)
            )

        yield write


@dataclass
class _Lines:
    """Ends lines with a line feed: `csv` quotes a carriage return only where lines end with one."""

    file: IO[str]

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def _json(path: Path, labels: tuple[str, ...]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        between = "[\n"

        def write(ids: NDArray[np.str_], predictions: Predictions) -> None:
            nonlocal between
            for record in records(ids.tolist(), predictions, labels):
                file.write(between + json.dumps(record, ensure_ascii=False))
                between = ",\n"

        yield write
        file.write("[]\n" if between == "[\n" else "\n]\n")


@contextmanager
def _json_lines(path: Path, labels: tuple[str, ...]) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(ids: NDArray[np.str_], predictions: Predictions) -> None:
            for record in records(ids.tolist(), predictions, labels):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _parquet(path: Path, labels: tuple[str, ...]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    waiting: list[Any] = []
    with ExitStack() as stack:
        writer = None

        def write_group() -> None:
            nonlocal writer
            table = pyarrow.concat_tables(waiting)
            waiting.clear()
            if writer is None:
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)

        def write(ids: NDArray[np.str_], predictions: Predictions) -> None:
            table = columns(ids, predictions, labels)
            schema = pyarrow.schema({name: _arrow_type(name, predictions.task) for name in table})
            waiting.append(pyarrow.table(table, schema=schema))
            if sum(map(len, waiting)) >= ROW_GROUP:
                write_group()

        yield write
        if waiting:
            write_group()


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


_WRITERS: Mapping[str, Callable[[Path, tuple[str, ...]], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
