"""Own data: a table of items, and beside it one file of arrays for each modality.

The table is CSV or Parquet, with columns `id` (else items are numbered), the labels, and where
there are any `split` and `group`. A modality's file is called after it:

- ``audio.npy``: (items, steps, width), steps of zeros at either end being padding unless they are
  quantities of a tabular modality; or (items, width); in the order of the table;
- ``audio.npz`` or ``audio.safetensors``: `values` so, or (rows, width) with `offsets` (items + 1,);
  with `ids` the items may be fewer and in any order; or one array (steps, width) for each id, under
  the id.

A site may have a single modality.

Notation: N items, R rows, D width.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import FloatArray, IntArray, MultimodalDataset, Sequences
from common.data.formats.limits import check_unpacked
from common.data.formats.npz import first_of_group
from common.data.formats.padding import real_spans
from common.data.source import (
    SIDES,
    ReadSettings,
    Source,
    check_unique,
    checked_labels,
    drop_unlabelled,
)
from common.errors import UserError
from common.task import Task

Array = NDArray[Any]

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz", ".safetensors")

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


def read(path: Path, settings: ReadSettings) -> Source:
    """Read a table, or a folder that holds one, and the arrays beside it.

    Raises
    ------
    UserError
        If it lacks a column, or an array does not fit the table.
    """
    if path.is_dir():
        tables = _tables(path)
        if len(tables) != 1:
            raise UserError(f"{path} holds {len(tables)} tables, expected one CSV or Parquet file")
        path = tables[0]
    table = _Table(path, settings, _columns(path, settings))
    ids = check_unique(table.ids(), path)
    groups = table.groups(ids)
    sequences = {
        name: _sequences(name, file, ids, groups, settings)
        for name, file in array_files(path, settings).items()
    }
    names = settings.labels if settings.task is Task.multilabel else ()
    items = MultimodalDataset(ids, groups, table.labels(), sequences, label_names=tuple(names))
    return drop_unlabelled(items, table.splits(), settings.task)


def _columns(path: Path, settings: ReadSettings) -> dict[str, Any]:
    """Return the table's columns, of PyArrow; in CSV, ids, groups and sides are text."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install 'ha-fedformer[prepare]'") from error
    names = ("id", "split", settings.group or "group")
    try:
        if path.suffix.lower() == ".csv":
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            )
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            with pyarrow.parquet.ParquetFile(path) as file:
                # A run of equal cells takes no space in the file, but it does in memory.
                check_unpacked(path, file.metadata.num_rows * _CELL)
                table = file.read()
        if len(set(table.column_names)) < len(table.column_names):
            raise UserError(f"{path}: two columns have the same name")
        return {name: table.column(name) for name in table.column_names}
    except UserError:
        raise
    except Exception as error:
        # PyArrow raises what it likes of a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a table: {reason[:150]}") from error


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
        values = self.column(name, setting)
        texts = [str(each) if isinstance(each, str | int) else "" for each in values]
        if not all(0 < len(each) <= _NAME for each in texts):
            raise UserError(f"{self.path}: column {name!r} has cells empty or no short text")
        return np.array(texts, dtype=np.str_)

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
        if self.settings.group is None and "group" not in self.columns:
            if self.settings.context > 0:
                raise UserError(
                    f"{self.settings.prefix}context={self.settings.context} needs groups: context "
                    "is what came before in the same group"
                )
            return ids
        return self.text(self.settings.group or "group", f"{self.settings.prefix}group")

    def splits(self) -> NDArray[np.str_]:
        if "split" not in self.columns:
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


def array_files(path: Path, settings: ReadSettings) -> dict[str, Path]:
    """Return the file of each modality."""
    beside = [each for each in sorted(path.parent.iterdir()) if each.suffix in ARRAYS]
    several = [stem for stem, count in Counter(each.stem for each in beside).items() if count > 1]
    found = {each.stem: each for each in beside} | {
        name: Path(file) for name, file in settings.arrays.items()
    }
    names = settings.modalities or tuple(settings.arrays) or tuple(found)
    for name in names:
        if name not in found:
            raise UserError(
                f"{path.parent} has no {name}.npy, .npz or .safetensors; give its file as "
                f"{settings.prefix}arrays.{name}=…"
            )
        if name in several and name not in settings.arrays:
            raise UserError(
                f"{path.parent} has several files for {name}; name one in {settings.prefix}arrays"
            )
        if not found[name].is_file():
            raise UserError(f"{found[name]} ({settings.prefix}arrays.{name}) does not exist")
    if not names:
        raise UserError(
            f"{path} has no modality: expected files like audio.npy, audio.npz or "
            "audio.safetensors beside it"
        )
    return {name: found[name] for name in names}


def _load(path: Path) -> dict[str, Array]:
    """Return a file's arrays by name; none is ever unpickled."""
    try:
        if path.suffix == ".npy":
            return {"values": np.lib.format.open_memmap(path, mode="r")}
        if path.suffix == ".npz":
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path} is not an .npz file, or only a part of one")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                check_unpacked(path, sum(each.file_size for each in archive.zip.infolist()))
                return {name: archive[name] for name in archive.files}
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:
        # Readers of damaged files raise what they like.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:150]}") from error


def _sequences(
    name: str, path: Path, ids: NDArray[np.str_], groups: NDArray[np.str_], settings: ReadSettings
) -> Sequences:
    arrays = _load(path)
    by_id, tabular = "values" not in arrays, name in settings.tabular
    values, starts, lengths = (
        _by_id(path, arrays, ids)
        if by_id
        else _by_row(path, arrays, ids, groups, settings, tabular)
    )
    if tabular and len(np.unique(lengths[lengths > 0])) > 1:
        raise UserError(
            f"{path}: a modality in {settings.prefix}tabular needs the same number of steps in "
            "every item"
        )
    return Sequences(values, starts, lengths, tabular).last_steps(settings.max_seq_len)


def _numeric(path: Path, name: str, array: object, dims: tuple[int, ...]) -> Array:
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: {name[:60]!r} is not an array")
    if array.dtype.kind not in "fiu" or array.ndim not in dims or 0 in array.shape[1:]:
        expected = " or ".join(map(str, dims))
        raise UserError(
            f"{path}: {name[:60]!r} is {array.dtype} of shape {array.shape}, expected numbers of "
            f"{expected} dimensions"
        )
    return array


def _floats(arrays: Sequence[Array]) -> FloatArray:
    """Join rows as float32, or float16 where all are."""
    half = all(array.dtype == np.float16 for array in arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        joined = np.concatenate(arrays, dtype=np.float16 if half else np.float32, casting="unsafe")
    return cast(FloatArray, joined)


def _by_id(
    path: Path, arrays: Mapping[str, Array], ids: NDArray[np.str_]
) -> tuple[FloatArray, IntArray, IntArray]:
    """Read one array for each id."""
    there = [name for name in ids.tolist() if name in arrays]
    if not there:
        raise UserError(
            f"{path} has neither 'values' nor an array for an id of the table; it has "
            f"{', '.join(map(str, list(arrays)[:5])) or 'nothing'}"
        )
    parts = {}
    for name in there:
        array = _numeric(path, name, arrays[name], (1, 2))
        parts[name] = array[None] if array.ndim == 1 else array
    widths = {part.shape[1] for part in parts.values()}
    if len(widths) > 1 or 0 in widths:
        raise UserError(f"{path}: arrays differ in width: {sorted(widths)[:5]}")
    lengths = np.array([len(parts.get(name, ())) for name in ids.tolist()], dtype=np.int64)
    return _floats(list(parts.values())), np.cumsum(lengths) - lengths, lengths


def _by_row(
    path: Path,
    arrays: Mapping[str, Array],
    ids: NDArray[np.str_],
    groups: NDArray[np.str_],
    settings: ReadSettings,
    tabular: bool,
) -> tuple[FloatArray, IntArray, IntArray]:
    """Read one array of all items, in the table's order or in that of its own ids."""
    ragged = "offsets" in arrays
    values = _numeric(path, "values", arrays["values"], (2,) if ragged else (2, 3))
    if ragged:
        offsets = _offsets(path, arrays["offsets"], len(values))
        starts, lengths = offsets[:-1], np.diff(offsets)
    else:
        steps = values.shape[1] if values.ndim == 3 else 1
        starts = np.arange(len(values)) * steps
        lengths = np.full(len(values), steps)
        if values.ndim == 3 and not tabular:
            first, last = real_spans(values)
            starts, lengths = starts + first, last - first
    if "ids" in arrays:
        if settings.context > 0 and values.ndim == 2 and not ragged:
            raise UserError(
                f"{path}: {settings.prefix}context={settings.context} needs rows in the table's "
                "order, without 'ids'"
            )
        starts, lengths = _matched(path, arrays["ids"], ids, starts, lengths)
    elif len(starts) != len(ids):
        raise UserError(
            f"{path} has {len(starts)} items and the table {len(ids)}; expected as many, or 'ids' "
            "that say which"
        )
    elif values.ndim == 2 and not ragged and settings.context > 0:
        first = np.maximum(starts - settings.context, first_of_group(groups))
        starts, lengths = first, starts - first + 1
    return _floats([values.reshape(-1, values.shape[-1])]), starts, lengths


def _offsets(path: Path, offsets: object, rows: int) -> IntArray:
    rising = (
        isinstance(offsets, np.ndarray)
        and offsets.dtype.kind in "iu"
        and offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == rows
        and bool((offsets[1:] >= offsets[:-1]).all())
    )
    if not rising:
        raise UserError(f"{path}: 'offsets' must rise from 0 to {rows}, the rows of 'values'")
    return cast(Array, offsets).astype(np.int64)


def _matched(
    path: Path, names: object, ids: NDArray[np.str_], starts: IntArray, lengths: IntArray
) -> tuple[IntArray, IntArray]:
    """Put a file's items in the table's order; an item that it lacks has length 0."""
    texts = _texts(names)
    if texts is None or len(texts) != len(starts) or len(set(texts)) < len(texts):
        raise UserError(f"{path}: 'ids' must name its {len(starts)} items, each once")
    place = {name: number for number, name in enumerate(texts)}
    index = np.array([place.get(name, -1) for name in ids.tolist()], dtype=np.int64)
    if (index < 0).all():
        raise UserError(f"{path}: none of its ids is in the table")
    there = index >= 0
    return np.where(there, starts[index], 0), np.where(there, lengths[index], 0)


def _texts(names: object) -> list[str] | None:
    """Return ids as text; safetensors keep text as rows of bytes, (items, characters)."""
    if not isinstance(names, np.ndarray):
        return None
    if names.ndim == 2 and names.dtype == np.uint8:
        return [bytes(row).rstrip(b"\x00").decode(errors="replace") for row in names]
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        return None
    return [
        each.decode(errors="replace") if isinstance(each, bytes) else str(each)
        for each in names.tolist()
    ]
