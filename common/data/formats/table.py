"""Own data: a table of items, and beside it one file of arrays for each modality.

The table is CSV, Parquet or Excel, see `common.data.formats.columns`, with columns `id` (else items
are numbered), the labels, and where there are any `split` and `group`. A site may have a single
modality. Its file is called after it:

- ``audio.npy``: (items, steps, width), steps of zeros at either end being padding unless they are
  quantities of a tabular modality; or (items, width); in the order of the table;
- ``audio.npz`` or ``audio.safetensors``: `values` so, or (rows, width) with `offsets` (items + 1,);
  with `ids` the items may be fewer and in any order; or one array (steps, width) for each id, under
  the id. An array without a name counts as `values`;
- ``audio.pt``: a tensor as in ``.npy``, or a dictionary of tensors as in ``.npz``.

Beside them, ``extractor.json`` may say which extractor made them, see `common.data.extractor`.

To predict, a table whose arrays are ``.npy`` files is read a few items at a time; then two items
may have the same id.

Notation: N items.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import ItemPart, MultimodalDataset, Sequences
from common.data.extractor import identities
from common.data.formats import layouts
from common.data.formats.array_files import array_files, load_arrays
from common.data.formats.columns import SUFFIXES, Columns, kind_of
from common.data.formats.layouts import Array, Arrays, Block
from common.data.formats.registry import FORMATS, Format, Given, Stream
from common.data.labels import Labels, no_labels, read_labels
from common.data.source import (
    ReadSettings,
    Source,
    as_text,
    check_unique,
    finished,
)
from common.errors import UserError
from common.task import Task

#: A note of ids of a modality.
NOT_THERE = "ids of {} that the table does not have, left out"


def _recognise(given: Given) -> str | None:
    path = given.path
    if path.is_dir():
        tables = layouts.files_in(path, *SUFFIXES)
        return f"a folder with the table {tables[0].name}" if len(tables) == 1 else None
    kind = kind_of(path)
    return kind and f"a table, {kind}"


def _table_of(path: Path) -> Path:
    """Return a table, or the one that a folder holds."""
    tables = layouts.files_in(path, *SUFFIXES) if path.is_dir() else [path]
    if len(tables) != 1:
        raise UserError(f"{path} holds {len(tables)} tables, expected one CSV or Parquet file")
    return tables[0]


def _read(given: Given, settings: ReadSettings) -> Source:
    table = _Table(_table_of(given.path), settings)
    if table.items == 0:
        raise UserError(f"{table.path} has no rows")
    ids = check_unique(table.ids(), table.path)
    groups = table.groups(ids)
    files = array_files(table.path, settings)
    settings.check_extractors(str(table.path), extractors := identities(files))
    sequences = {
        name: _sequences(name, file, ids, groups, settings) for name, file in files.items()
    }
    labels = table.labels()
    items = MultimodalDataset(ids, groups, labels.values, sequences, label_names=labels.names)
    table.note_unused()
    return replace(finished(items, table.splits(), settings), extractors=extractors)


def _stream(given: Given, settings: ReadSettings) -> Stream | None:
    path = _table_of(given.path)
    files = array_files(path, settings)
    if settings.context or any(file.suffix.lower() != ".npy" for file in files.values()):
        return None
    settings.check_extractors(str(path), identities(files))
    table = _Table(path, settings, ["id"])
    for file in files.values():
        count = len(layouts.numeric(file, "values", load_arrays(file)["values"]))
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
            yield ItemPart(ids, settings.take(sequences))

    table.note_unused()
    return table.items, parts


class _Table:
    """What the columns of a table mean; ids, groups and sides are text."""

    def __init__(
        self, path: Path, settings: ReadSettings, only: Collection[str] | None = None
    ) -> None:
        self.path, self.settings = path, settings
        self.columns = Columns(path, only)
        self.items = self.columns.items
        named = [settings.group] if settings.group else []
        self.columns.check_header(["id", "split", "group", "label", *settings.labels, *named])

    def ids(self, part: slice = slice(None)) -> NDArray[np.str_]:
        if self.columns.find("id") is not None:
            return self.text("id", "the ids", part)
        return np.array([str(number) for number in range(self.items)[part]], dtype=np.str_)

    def column(self, name: str, setting: str, part: slice = slice(None)) -> list[Any]:
        found = self.columns.find(name)
        if found is None:
            raise UserError(
                f"{self.path} has no column {name!r} ({setting}); it has "
                f"{', '.join(self.columns.names)}"
            )
        return self.columns.cells(found, part)

    def text(self, name: str, setting: str, part: slice = slice(None)) -> NDArray[np.str_]:
        cells = self.column(name, setting, part)
        texts = [str(cell).strip() if isinstance(cell, str | int) else "" for cell in cells]
        for row, (cell, text) in enumerate(zip(cells, texts, strict=True), part.start or 0):
            if not 0 < len(text) <= layouts.MAX_ID:
                raise UserError(
                    f"{self.path}: column {name!r} {_fault(cell)} in {self.columns.place(row)}; "
                    f"expected text of at most {layouts.MAX_ID} characters, or whole numbers"
                )
        return np.array(texts, dtype=np.str_)

    def groups(self, ids: NDArray[np.str_]) -> NDArray[np.str_]:
        group, context, prefix = self.settings.group, self.settings.context, self.settings.prefix
        if self.settings.predicting and context == 0:
            return ids
        if group is not None or self.columns.find("group") is not None:
            return self.text(group or "group", f"{prefix}group")
        if context > 0:
            raise UserError(
                f"{prefix}context={context} needs groups: context is what came before in the same "
                "group"
            )
        return ids

    def note_unused(self) -> None:
        """Note what of the table and its folder is not used, and offer what may be the group."""
        settings, columns = self.settings, self.columns
        layouts.note_litter(self.path, settings)
        settings.note("rows without anything, left out", len(columns.blank))
        if columns.find("id") is None:
            settings.note("items without an id, numbered: the table has no column 'id'", self.items)
        if settings.predicting:
            return
        group = columns.find(settings.group or "group")
        named = ("id", "split", *(settings.labels or ("label",)))
        used = {group, *map(columns.find, named)}
        unused = [name for name in columns.names if name not in used]
        settings.unused("column", [name or "one without a name" for name in unused])
        for name in filter(None, unused if group is None else []):
            cells = columns.cells(name)
            if "" not in cells and not columns.measured(name):
                settings.offer_group(name, cells)

    def splits(self) -> NDArray[np.str_]:
        if self.settings.predicting or self.columns.find("split") is None:
            return layouts.no_sides(self.items)
        return layouts.sides_of(self.path, self.text("split", "the sides").tolist())

    def labels(self) -> Labels:
        settings = self.settings
        if settings.predicting:
            return Labels(no_labels(self.items))
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
        cells = [self.column(name, f"{settings.prefix}label=…") for name in names]
        called = [f"column {name!r}" for name in names]
        place, decimal = self.columns.place, self.columns.decimal
        labels = read_labels(self.path, cells, called, settings, place, decimal)
        return labels._replace(names=tuple(settings.labels)) if labels.values.ndim == 2 else labels


def _fault(cell: object) -> str:
    """Say what is wrong with a cell that should be a name."""
    if cell is None or cell == "":
        return "is empty"
    if isinstance(cell, str):
        return f"has {len(cell)} characters"
    return f"is the {type(cell).__name__} {str(cell)[:40]!r}"


def _unlike(names: Sequence[str], ids: NDArray[np.str_]) -> str:
    """Say how names differ from the ids of a table."""
    numbered = ids.tolist() == list(map(str, range(len(ids))))
    hint = ", where a column 'id' may be missing" * numbered
    here, there = ", ".join(names[:2]) or "nothing", ", ".join(ids[:2].tolist())
    return f"is in the table: {here} here, {there} there{hint}"


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
    arrays = load_arrays(path)
    if "values" not in arrays:
        settings.note(NOT_THERE.format(name), len(arrays.keys() - set(ids.tolist())))
        return layouts.settled(path, name, _by_id(path, arrays, ids, settings), settings)
    extra = arrays.keys() - {"values", "offsets", "ids"}
    settings.unused("array", [f"{key} of {path.name}" for key in sorted(extra)])
    if path.suffix.lower() == ".npy":
        arrays["values"] = layouts.numeric(path, "values", arrays["values"])[part]
    block = Block.of(path, arrays)
    if block.values.ndim == 3 and name not in settings.tabular:
        first, last = layouts.real_spans(block.values)
        block = replace(block, starts=block.starts + first, lengths=last - first)
    if "ids" in arrays:
        block = _matched(path, name, block, arrays["ids"], ids, settings)
    elif len(block.starts) != len(ids):
        raise UserError(
            f"{path} has {len(block.starts)} items and the table {len(ids)}; expected as many, or "
            "'ids' that say which"
        )
    return block.sequences(path, name, settings, groups)


def _by_id(path: Path, arrays: Arrays, ids: NDArray[np.str_], settings: ReadSettings) -> Sequences:
    """Read one array for each id."""
    parts = {
        name: np.atleast_2d(layouts.numeric(path, name, arrays[name], (1, 2)))
        for name in ids.tolist()
        if name in arrays
    }
    if not parts:
        raise UserError(
            f"{path} has neither 'values' nor an array for an id: none of its arrays "
            f"{_unlike(list(arrays), ids)}"
        )
    widths = {part.shape[1] for part in parts.values()}
    if len(widths) > 1 or 0 in widths:
        raise UserError(f"{path}: arrays differ in width: {sorted(widths)[:5]}")
    lengths = np.array([len(parts.get(name, ())) for name in ids.tolist()], dtype=np.int64)
    if settings.context > 0 and lengths.max(initial=0) == 1:
        raise _no_context(path, settings)
    return Sequences.ragged(layouts.float_rows(list(parts.values())), lengths)


def _no_context(path: Path, settings: ReadSettings) -> UserError:
    return UserError(
        f"{path}: {settings.prefix}context={settings.context} needs rows in the table's order, "
        "one for each item and without ids"
    )


def _matched(
    path: Path,
    name: str,
    block: Block,
    names: Array,
    ids: NDArray[np.str_],
    settings: ReadSettings,
) -> Block:
    """Put a file's items in the table's order; an item that it lacks has length 0."""
    if settings.context > 0 and block.vectors:
        raise _no_context(path, settings)
    texts: list[str] = []
    if names.ndim == 2 and names.dtype == np.uint8:  # as safetensors keep text
        texts = [as_text(bytes(row).rstrip(b"\x00")) for row in names]
    elif names.dtype.kind in "USiu":
        texts = [as_text(text) for text in names.tolist()]
    if not len(set(texts)) == len(texts) == len(block.starts):
        raise UserError(f"{path}: 'ids' must name its {len(block.starts)} items, each once")
    place = {text: number for number, text in enumerate(texts)}
    index = np.array([place.get(item, -1) for item in ids.tolist()], dtype=np.int64)
    there = index >= 0
    if not there.any():
        raise UserError(f"{path}: none of its ids {_unlike(texts, ids)}")
    settings.note(NOT_THERE.format(name), len(texts) - int(there.sum()))
    starts, lengths = (np.where(there, each[index], 0) for each in (block.starts, block.lengths))
    return replace(block, starts=starts, lengths=lengths)


FORMATS["table"] = Format(_recognise, _read, last=True, stream=_stream)
