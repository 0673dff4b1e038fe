"""Own data: a table of items, and beside it one file of arrays for each modality.

The table is CSV or Parquet, with columns `id` (else items are numbered), the labels, and where
there are any `split` and `group`; the arrays are as `common.data.formats.array_files` has it. A
site may have a single modality. To predict, a table whose arrays are ``.npy`` files is read a few
items at a time; then two items may have the same id.

Notation: N items.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.data.formats import layouts
from common.data.formats.array_files import array_files, load_arrays, read_array_file
from common.data.formats.registry import FORMATS, Format, Given, Part, Stream
from common.data.source import (
    ReadSettings,
    Source,
    check_unique,
    checked_labels,
    drop_unlabelled,
    no_labels,
)
from common.errors import UserError
from common.task import Task

TABLES = (".csv", ".parquet")

#: Bytes that a cell takes in memory, about.
_CELL = 64


def _recognise(given: Given) -> str | None:
    path = given.path
    if path.is_dir():
        tables = _tables(path)
        return f"a folder with the table {tables[0].name}" if len(tables) == 1 else None
    return f"a table, {path.suffix[1:].upper()}" if path.suffix.lower() in TABLES else None


def _tables(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in TABLES]


def _table_of(path: Path) -> Path:
    """Return a table, or the one that a folder holds."""
    tables = _tables(path) if path.is_dir() else [path]
    if len(tables) != 1:
        raise UserError(f"{path} holds {len(tables)} tables, expected one CSV or Parquet file")
    return tables[0]


def _read(given: Given, settings: ReadSettings) -> Source:
    path = _table_of(given.path)
    table = _Table(path, settings, _columns(path, settings))
    ids = check_unique(table.ids(), path)
    groups = table.groups(ids)
    sequences = {
        name: read_array_file(name, file, ids, groups, settings)
        for name, file in array_files(path, settings).items()
    }
    names = settings.labels if settings.task is Task.multilabel else ()
    items = MultimodalDataset(ids, groups, table.labels(), sequences, label_names=tuple(names))
    return drop_unlabelled(items, table.splits(), settings)


def _columns(path: Path, settings: ReadSettings) -> dict[str, Any]:
    """Return the table's columns, of PyArrow; in CSV, ids, groups and sides are text."""
    with _reading(path):
        import pyarrow.csv
        import pyarrow.parquet

        if path.suffix.lower() == ".csv":
            texts = ("id", "split", settings.group or "group")
            convert = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pyarrow.string()), strings_can_be_null=False
            )
            table = pyarrow.csv.read_csv(
                path, parse_options=_parse_options(), convert_options=convert
            )
        else:
            with pyarrow.parquet.ParquetFile(path) as file:
                # A run of equal cells takes no space in the file, but it does in memory.
                layouts.check_unpacked(path, file.metadata.num_rows * _CELL)
                table = file.read()
        if len(set(table.column_names)) < len(table.column_names):
            raise UserError(f"{path}: two columns have the same name")
        return {name: table.column(name) for name in table.column_names}


def _parse_options() -> Any:
    import pyarrow.csv

    return pyarrow.csv.ParseOptions(newlines_in_values=True)


def _reading(path: Path) -> AbstractContextManager[None]:
    return layouts.reading(path, " as a table", "pyarrow")


def _short_texts(path: Path, column: str, cells: Sequence[Any]) -> list[str]:
    texts = [str(cell) if isinstance(cell, str | int) else "" for cell in cells]
    if not all(0 < len(text) <= layouts.MAX_ID for text in texts):
        raise UserError(f"{path}: column {column!r} has cells empty or no short text")
    return texts


@dataclass(frozen=True)
class _Table:
    path: Path
    settings: ReadSettings
    columns: Mapping[str, Any]

    def column(self, name: str, setting: str) -> list[Any]:
        if name not in self.columns:
            raise UserError(
                f"{self.path} has no column {name!r} ({setting}); it has {', '.join(self.columns)}"
            )
        try:
            cells: list[Any] = self.columns[name].to_pylist()
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{self.path}: column {name!r} cannot be read: {layouts.first_line(error)}"
            ) from error
        return cells

    def text(self, name: str, setting: str) -> NDArray[np.str_]:
        return np.array(_short_texts(self.path, name, self.column(name, setting)), dtype=np.str_)

    @property
    def items(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    def ids(self) -> NDArray[np.str_]:
        if self.items == 0:
            raise UserError(f"{self.path} has no rows")
        if "id" in self.columns:
            return self.text("id", "the ids")
        return np.array([str(number) for number in range(self.items)], dtype=np.str_)

    def groups(self, ids: NDArray[np.str_]) -> NDArray[np.str_]:
        group, context, prefix = self.settings.group, self.settings.context, self.settings.prefix
        if self.settings.predicting and context == 0:
            return ids
        if group is not None or "group" in self.columns:
            return self.text(group or "group", f"{prefix}group")
        if context > 0:
            raise UserError(
                f"{prefix}context={context} needs groups: context is what came before in the same "
                "group"
            )
        return ids

    def splits(self) -> NDArray[np.str_]:
        if self.settings.predicting or "split" not in self.columns:
            return layouts.no_sides(self.items)
        return layouts.sides_of(self.path, self.text("split", "the sides").tolist())

    def labels(self) -> NDArray[np.float32]:
        settings = self.settings
        if settings.predicting:
            return no_labels(self.items)
        if settings.emotions:
            raise UserError(
                f"{self.path} is a table: name its emotions' columns in {settings.prefix}labels "
                f"and give {settings.prefix}task=multilabel"
            )
        names = settings.labels or ("label",)
        if settings.task is not Task.multilabel and len(names) > 1:
            raise UserError(
                f"{settings.prefix}labels names {len(names)} columns, but task={settings.task} "
                "takes one"
            )
        columns = [self._numbers(name) for name in names]
        labels = np.stack(columns, axis=1) if settings.task is Task.multilabel else columns[0]
        return checked_labels(labels, settings, self.path)

    def _numbers(self, name: str) -> NDArray[np.float64]:
        values = self.column(name, f"{self.settings.prefix}labels")
        wrong = [cell for cell in values if cell is not None and not isinstance(cell, int | float)]
        if wrong:
            raise UserError(
                f"{self.path}: column {name!r} holds {str(wrong[0])[:40]!r}, expected numbers; "
                "number the classes from 0"
            )
        try:
            return np.array([np.nan if cell is None else float(cell) for cell in values])
        except OverflowError as error:
            raise UserError(f"{self.path}: column {name!r} holds a number too large") from error


# A part at a time ------------------------------------------------------------------------------


def _stream(given: Given, settings: ReadSettings) -> Stream | None:
    path = _table_of(given.path)
    files = array_files(path, settings)
    if settings.context or any(file.suffix != ".npy" for file in files.values()):
        return None
    with _reading(path):
        arrays = {name: load_arrays(file)["values"] for name, file in files.items()}
    counts = {name: len(layouts.numeric(files[name], "values", a)) for name, a in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UserError(f"{path}: arrays differ in number of items: {listed}")
    name, count = next(iter(counts.items()))

    def parts(size: int) -> Iterator[Part]:
        last = 0
        for ids in _ids(path, size):
            first, last = last, last + len(ids)
            if last > count:
                raise unequal("more")
            yield (
                ids,
                {
                    name: read_array_file(name, file, ids, ids, settings, slice(first, last))
                    for name, file in files.items()
                },
            )
        if last < count:
            raise unequal(str(last))

    def unequal(rows: str) -> UserError:
        return UserError(f"{files[name]} has {count} items and the table {rows}; expected as many")

    return count, parts


def _ids(path: Path, size: int) -> Iterator[NDArray[np.str_]]:
    """Yield the ids of a table, `size` at a time; items of one without `id` are numbered."""
    waiting: list[str] = []
    done = 0
    with _reading(path):
        for rows, cells in _id_cells(path):
            numbers = map(str, range(done, done + rows))
            waiting += numbers if cells is None else _short_texts(path, "id", cells)
            done += rows
            while len(waiting) >= size:
                yield np.array(waiting[:size], dtype=np.str_)
                waiting = waiting[size:]
    if waiting:
        yield np.array(waiting, dtype=np.str_)


def _id_cells(path: Path) -> Iterator[tuple[int, list[Any] | None]]:
    """Yield the number of some rows, and their cells of `id`; None where there is no such column.

    No other column is looked at.
    """
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix.lower() == ".csv":
        options = pyarrow.csv.ConvertOptions(
            include_columns=["id"],
            include_missing_columns=True,
            column_types={"id": pyarrow.string()},
            strings_can_be_null=False,
        )
        reader = pyarrow.csv.open_csv(path, convert_options=options, parse_options=_parse_options())
        for batch in reader:
            # Of a column that is there, no cell is null.
            cells = None if batch.column(0).null_count else batch.column(0).to_pylist()
            yield batch.num_rows, cells
        return
    with pyarrow.parquet.ParquetFile(path) as file:
        names = ["id"] if "id" in file.schema_arrow.names else []
        for batch in file.iter_batches(columns=names):
            yield batch.num_rows, batch.column("id").to_pylist() if names else None


FORMATS["table"] = Format(_recognise, _read, last=True, stream=_stream)
