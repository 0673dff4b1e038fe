"""The files of arrays beside a table: one for each modality, called after it.

- ``audio.npy``: (items, steps, width), steps of zeros at either end being padding unless they are
  quantities of a tabular modality; or (items, width); in the order of the table;
- ``audio.npz`` or ``audio.safetensors``: `values` so, or (rows, width) with `offsets` (items + 1,);
  with `ids` the items may be fewer and in any order; or one array (steps, width) for each id, under
  the id.

Notation: N items, R rows, D width.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import Sequences
from common.data.formats import layouts
from common.data.formats.layouts import Array, Arrays, Block
from common.data.source import ReadSettings, as_text, modalities_there
from common.errors import UserError

ARRAYS = (".npy", ".npz", ".safetensors")


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


def load_arrays(path: Path) -> Arrays:
    """Return a file's arrays by name; none is ever unpickled, and that of ``.npy`` is mapped."""
    if path.suffix == ".npz":
        return layouts.load_npz(path)
    with layouts.reading(path):
        if path.suffix == ".npy":
            return Arrays(values=np.lib.format.open_memmap(path, mode="r"))
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return Arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def read_array_file(
    name: str,
    path: Path,
    ids: NDArray[np.str_],
    groups: NDArray[np.str_],
    settings: ReadSettings,
    part: slice = slice(None),
) -> Sequences:
    """Read the sequences of one modality.

    `ids` and `groups` (N,) are those of the items, in the table's order; `part` are the rows of an
    ``.npy`` file that are these items; the others are left alone.

    Raises
    ------
    UserError
        If the file does not fit the items.
    """
    arrays = load_arrays(path)
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
