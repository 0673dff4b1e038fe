"""Own data: a table of items, and beside it one file of arrays for each modality.

The table is CSV or Parquet, with columns `id` (else items are numbered), the labels, and where
there are any `split` and `group`; the arrays are as `common.data.formats.array_files` has it. A
site may have a single modality.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.data.formats.array_files import array_files, read_array_file
from common.data.formats.limits import check_unpacked
from common.data.source import (
    SIDES,
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

#: Bytes that a cell takes in memory, about, and the most characters of a name.
_CELL, _NAME = 64, 1000


def recognise(path: Path) -> str | None:
    """Say why a file or folder is of this format, or None."""
    if path.is_dir():
        found = _tables(path)
        return f"a folder with the table {found[0].name}" if len(found) == 1 else None
    if path.suffix.lower() not in TABLES:
        return None
    return f"a table, {path.suffix[1:].upper()}"


def _tables(folder: Path) -> list[Path]:
    return [each for each in sorted(folder.iterdir()) if each.suffix.lower() in TABLES]


def table_of(path: Path) -> Path:
    """Return a table, or the one that a folder holds."""
    if not path.is_dir():
        return path
    tables = _tables(path)
    if len(tables) != 1:
        raise UserError(f"{path} holds {len(tables)} tables, expected one CSV or Parquet file")
    return tables[0]


def read(path: Path, settings: ReadSettings) -> Source:
    """Read a table, or a folder that holds one, and the arrays beside it.

    Raises
    ------
    UserError
        If it lacks a column, or an array does not fit the table.
    """
    path = table_of(path)
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
    with told_as_table(path):
        import pyarrow.csv
        import pyarrow.parquet

        if path.suffix.lower() == ".csv":
            table = pyarrow.csv.read_csv(
                path, parse_options=_parse_options(), convert_options=_convert_options(settings)
            )
        else:
            with pyarrow.parquet.ParquetFile(path) as file:
                # A run of equal cells takes no space in the file, but it does in memory.
                check_unpacked(path, file.metadata.num_rows * _CELL)
                table = file.read()
        if len(set(table.column_names)) < len(table.column_names):
            raise UserError(f"{path}: two columns have the same name")
        return {name: table.column(name) for name in table.column_names}


def read_ids(path: Path) -> Iterator[list[str]]:
    """Yield the ids of a table, some at a time; items of a table without `id` are numbered.

    Raises
    ------
    UserError
        If it cannot be read, or an id is empty or no short text.
    """
    done = 0
    with told_as_table(path):
        for rows, cells in _id_cells(path):
            numbers = map(str, range(done, done + rows))
            yield list(numbers) if cells is None else _short_texts(path, "id", cells)
            done += rows


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


def _parse_options() -> Any:
    import pyarrow.csv

    return pyarrow.csv.ParseOptions(newlines_in_values=True)


def _convert_options(settings: ReadSettings) -> Any:
    import pyarrow.csv

    names = ("id", "split", settings.group or "group")
    return pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
    )


def _short_texts(path: Path, column: str, cells: Sequence[Any]) -> list[str]:
    texts = [str(each) if isinstance(each, str | int) else "" for each in cells]
    if not all(0 < len(each) <= _NAME for each in texts):
        raise UserError(f"{path}: column {column!r} has cells empty or no short text")
    return texts


@contextmanager
def told_as_table(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong while a table is read that it cannot be read."""
    check_pyarrow(path)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # PyArrow raises what it likes of a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a table: {reason[:150]}") from error


def check_pyarrow(path: Path) -> None:
    """Raise `UserError` where there is nothing to read a table with."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'ha-fedformer[prepare]'") from error


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
            reason = str(error)[:100] or type(error).__name__
            raise UserError(f"{self.path}: column {name!r} cannot be read: {reason}") from error
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
        if self.settings.predicting and self.settings.context == 0:
            return ids
        if self.settings.group is None and "group" not in self.columns:
            if self.settings.context > 0:
                raise UserError(
                    f"{self.settings.prefix}context={self.settings.context} needs groups: context "
                    "is what came before in the same group"
                )
            return ids
        return self.text(self.settings.group or "group", f"{self.settings.prefix}group")

    def splits(self) -> NDArray[np.str_]:
        if self.settings.predicting or "split" not in self.columns:
            return np.full(self.items, "", dtype="U10")
        found = self.text("split", "the sides").tolist()
        unknown = sorted(set(found) - set(SIDES))
        if unknown:
            raise UserError(
                f"{self.path}: split {unknown[0][:40]!r}: expected one of {', '.join(SIDES)}"
            )
        return np.array([SIDES[name] for name in found], dtype="U10")

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
        wrong = [each for each in values if each is not None and not isinstance(each, int | float)]
        if wrong:
            raise UserError(
                f"{self.path}: column {name!r} holds {str(wrong[0])[:40]!r}, expected numbers; "
                "number the classes from 0"
            )
        try:
            return np.array([np.nan if each is None else float(each) for each in values])
        except OverflowError as error:
            raise UserError(f"{self.path}: column {name!r} holds a number too large") from error
