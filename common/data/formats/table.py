"""Own data: a table of items, and beside it one file of arrays for each modality.

The table is CSV or Parquet, with columns `id` (else items are numbered), the labels, and where
there are any `split` and `group`. A site may have a single modality. Its file is called after it:

- ``audio.npy``: (items, steps, width), steps of zeros at either end being padding unless they are
  quantities of a tabular modality; or (items, width); in the order of the table;
- ``audio.npz`` or ``audio.safetensors``: `values` so, or (rows, width) with `offsets` (items + 1,);
  with `ids` the items may be fewer and in any order; or one array (steps, width) for each id, under
  the id.

To predict, a table whose arrays are ``.npy`` files is read a few items at a time; then two items
may have the same id.

Notation: N items.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import ItemPart, MultimodalDataset, Sequences
from common.data.formats import layouts
from common.data.formats.layouts import Array, Arrays, Block
from common.data.formats.registry import FORMATS, Format, Given, Stream
from common.data.source import (
    ReadSettings,
    Source,
    as_text,
    check_unique,
    checked_labels,
    drop_unlabelled,
    modalities_there,
    no_labels,
)
from common.errors import UserError
from common.task import Task

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz", ".safetensors")

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
    table = _Table(_table_of(given.path), settings)
    if table.items == 0:
        raise UserError(f"{table.path} has no rows")
    ids = check_unique(table.ids(), table.path)
    groups = table.groups(ids)
    sequences = {
        name: _sequences(name, file, ids, groups, settings)
        for name, file in array_files(table.path, settings).items()
    }
    names = settings.labels if settings.task is Task.multilabel else ()
    items = MultimodalDataset(ids, groups, table.labels(), sequences, label_names=tuple(names))
    return drop_unlabelled(items, table.splits(), settings)


def _stream(given: Given, settings: ReadSettings) -> Stream | None:
    path = _table_of(given.path)
    files = array_files(path, settings)
    if settings.context or any(file.suffix != ".npy" for file in files.values()):
        return None
    table = _Table(path, settings, ["id"])
    for file in files.values():
        count = len(layouts.numeric(file, "values", _load_arrays(file)["values"]))
        if count != table.items:
            raise UserError(
                f"{file} has {count} items and the table {table.items}; expected as many"
            )

    def parts(size: int) -> Iterator[ItemPart]:
        for first in range(0, table.items, size):
            part = slice(first, first + size)
            ids = table.ids(part)
            sequences = {
                name: _sequences(name, file, ids, ids, settings, part)
                for name, file in files.items()
            }
            yield ItemPart(ids, sequences)

    return table.items, parts


def _read_csv(path: Path, settings: ReadSettings, only: list[str] | None) -> Any:
    import pyarrow.csv

    texts = ("id", "split", settings.group or "group")
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # errors then name the row
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pyarrow.string()),
            strings_can_be_null=False,
            include_columns=only,
            include_missing_columns=True,
        ),
    )
    # A column of text that is missing is null; one that is there has no null.
    return table.drop_columns([name for name in only or () if table[name].null_count])


def _read_parquet(path: Path, settings: ReadSettings, only: list[str] | None) -> Any:
    import pyarrow.parquet

    batches, size = [], 0
    with pyarrow.parquet.ParquetFile(path) as file:
        fields = [field for field in file.schema_arrow if only is None or field.name in only]
        columns = only and [field.name for field in fields]
        for batch in file.iter_batches(layouts.CHUNK, columns=columns):
            # A run of equal cells takes no space in the file, but it does in memory.
            size += max(batch.nbytes, batch.num_rows * _CELL)
            layouts.check_unpacked(path, size)
            batches.append(batch)
    return pyarrow.Table.from_batches(batches, pyarrow.schema(fields))


class _Table:
    """A table's columns, or only some; in CSV, ids, groups and sides are text."""

    def __init__(self, path: Path, settings: ReadSettings, only: list[str] | None = None) -> None:
        self.path, self.settings = path, settings
        with layouts.reading(path, " as a table", "pyarrow"):
            read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
            self.columns = read(path, settings, only)
            self.names: list[str] = self.columns.column_names
        self.items: int = self.columns.num_rows
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{path}: two columns have the same name")

    def ids(self, part: slice = slice(None)) -> NDArray[np.str_]:
        if "id" in self.names:
            return self.text("id", "the ids", part)
        return np.array([str(number) for number in range(self.items)[part]], dtype=np.str_)

    def column(self, name: str, setting: str, part: slice = slice(None)) -> list[Any]:
        if name not in self.names:
            raise UserError(
                f"{self.path} has no column {name!r} ({setting}); it has {', '.join(self.names)}"
            )
        try:
            cells: list[Any] = self.columns.column(name)[part].to_pylist()
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{self.path}: column {name!r} cannot be read: {layouts.first_line(error)}"
            ) from error
        return cells

    def text(self, name: str, setting: str, part: slice = slice(None)) -> NDArray[np.str_]:
        cells = self.column(name, setting, part)
        texts = [str(cell) if isinstance(cell, str | int) else "" for cell in cells]
        wrong = [row for row, text in enumerate(texts, 1) if not 0 < len(text) <= layouts.MAX_ID]
        if wrong:
            raise UserError(
                f"{self.path}: column {name!r} has cells that are empty, no text, or longer than "
                f"{layouts.MAX_ID} characters, the first in data row {(part.start or 0) + wrong[0]}"
            )
        return np.array(texts, dtype=np.str_)

    def groups(self, ids: NDArray[np.str_]) -> NDArray[np.str_]:
        group, context, prefix = self.settings.group, self.settings.context, self.settings.prefix
        if self.settings.predicting and context == 0:
            return ids
        if group is not None or "group" in self.names:
            return self.text(group or "group", f"{prefix}group")
        if context > 0:
            raise UserError(
                f"{prefix}context={context} needs groups: context is what came before in the same "
                "group"
            )
        return ids

    def splits(self) -> NDArray[np.str_]:
        if self.settings.predicting or "split" not in self.names:
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


def array_files(path: Path, settings: ReadSettings) -> dict[str, Path]:
    """Return the file of each modality of a table."""
    beside = [file for file in sorted(path.parent.iterdir()) if file.suffix in ARRAYS]
    counts = Counter(file.stem for file in beside)
    files = {file.stem: file for file in beside} | {
        name: Path(file) for name, file in settings.arrays.items()
    }
    names = modalities_there(settings, files) or tuple(settings.arrays) or tuple(files)
    for name in names:
        if name not in files:
            raise UserError(
                f"{path.parent} has no {name}.npy, .npz or .safetensors; give its file as "
                f"{settings.prefix}arrays.{name}=…"
            )
        if counts[name] > 1 and name not in settings.arrays:
            raise UserError(
                f"{path.parent} has several files for {name}; name one in {settings.prefix}arrays"
            )
        if not files[name].is_file():
            raise UserError(f"{files[name]} ({settings.prefix}arrays.{name}) does not exist")
    if not names:
        raise UserError(
            f"{path} has no modality: expected files like audio.npy, audio.npz or "
            "audio.safetensors beside it"
        )
    return {name: files[name] for name in names}


def _load_arrays(path: Path) -> Arrays:
    """Return a file's arrays by name; none is ever unpickled, and that of ``.npy`` is mapped."""
    if path.suffix == ".npz":
        return layouts.load_npz(path)
    with layouts.reading(path):
        if path.suffix == ".npy":
            return Arrays(values=np.lib.format.open_memmap(path, mode="r"))
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return Arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _sequences(
    name: str,
    path: Path,
    ids: NDArray[np.str_],
    groups: NDArray[np.str_],
    settings: ReadSettings,
    part: slice = slice(None),
) -> Sequences:
    """Read one modality of items.

    `ids` and `groups` (N,) are those of the items, in the table's order; `part` are the rows of an
    ``.npy`` file that are these items; the others are left alone.

    Raises
    ------
    UserError
        If the file does not fit the items.
    """
    arrays = _load_arrays(path)
    if "values" not in arrays:
        return layouts.settled(path, name, _by_id(path, arrays, ids), settings)
    if path.suffix == ".npy":
        arrays["values"] = layouts.numeric(path, "values", arrays["values"])[part]
    block = Block.of(path, arrays)
    if block.values.ndim == 3 and name not in settings.tabular:
        first, last = layouts.real_spans(block.values)
        block = replace(block, starts=block.starts + first, lengths=last - first)
    if "ids" in arrays:
        block = _matched(path, block, arrays["ids"], ids, settings)
    elif len(block.starts) != len(ids):
        raise UserError(
            f"{path} has {len(block.starts)} items and the table {len(ids)}; expected as many, or "
            "'ids' that say which"
        )
    return block.sequences(path, name, settings, groups)


def _by_id(path: Path, arrays: Arrays, ids: NDArray[np.str_]) -> Sequences:
    """Read one array for each id."""
    parts = {
        name: np.atleast_2d(layouts.numeric(path, name, arrays[name], (1, 2)))
        for name in ids.tolist()
        if name in arrays
    }
    if not parts:
        raise UserError(
            f"{path} has neither 'values' nor an array for an id of the table; it has "
            f"{', '.join(map(str, list(arrays)[:5])) or 'nothing'}"
        )
    widths = {part.shape[1] for part in parts.values()}
    if len(widths) > 1 or 0 in widths:
        raise UserError(f"{path}: arrays differ in width: {sorted(widths)[:5]}")
    lengths = np.array([len(parts.get(name, ())) for name in ids.tolist()], dtype=np.int64)
    return Sequences.ragged(layouts.float_rows(list(parts.values())), lengths)


def _matched(
    path: Path, block: Block, names: Array, ids: NDArray[np.str_], settings: ReadSettings
) -> Block:
    """Put a file's items in the table's order; an item that it lacks has length 0."""
    if settings.context > 0 and block.vectors:
        raise UserError(
            f"{path}: {settings.prefix}context={settings.context} needs rows in the table's order, "
            "without 'ids'"
        )
    texts: list[str] = []
    if names.ndim == 2 and names.dtype == np.uint8:  # as safetensors keep text
        texts = [as_text(bytes(row).rstrip(b"\x00")) for row in names]
    elif names.dtype.kind in "USiu":
        texts = [as_text(name) for name in names.tolist()]
    if not len(set(texts)) == len(texts) == len(block.starts):
        raise UserError(f"{path}: 'ids' must name its {len(block.starts)} items, each once")
    place = {name: number for number, name in enumerate(texts)}
    index = np.array([place.get(name, -1) for name in ids.tolist()], dtype=np.int64)
    there = index >= 0
    if not there.any():
        raise UserError(f"{path}: none of its ids is in the table")
    starts, lengths = (np.where(there, each[index], 0) for each in (block.starts, block.lengths))
    return replace(block, starts=starts, lengths=lengths)


FORMATS["table"] = Format(_recognise, _read, last=True, stream=_stream)
