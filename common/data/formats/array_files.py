"""The files of arrays beside a table: one for each modality, called after it.

- ``audio.npy``: (items, steps, width), steps of zeros at either end being padding unless they are
  quantities of a tabular modality; or (items, width); in the order of the table;
- ``audio.npz`` or ``audio.safetensors``: `values` so, or (rows, width) with `offsets` (items + 1,);
  with `ids` the items may be fewer and in any order; or one array (steps, width) for each id, under
  the id.

Notation: N items, R rows, D width.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import FloatArray, IntArray, Sequences
from common.data.formats.limits import check_unpacked
from common.data.formats.npz import first_of_group
from common.data.formats.padding import real_spans
from common.data.source import ReadSettings, modalities_there
from common.errors import UserError

Array = NDArray[Any]

ARRAYS = (".npy", ".npz", ".safetensors")


def array_files(path: Path, settings: ReadSettings) -> dict[str, Path]:
    """Return the file of each modality."""
    beside = [each for each in sorted(path.parent.iterdir()) if each.suffix in ARRAYS]
    several = [stem for stem, count in Counter(each.stem for each in beside).items() if count > 1]
    found = {each.stem: each for each in beside} | {
        name: Path(file) for name, file in settings.arrays.items()
    }
    wanted = modalities_there(settings, found)
    names = wanted or tuple(settings.arrays) or tuple(found)
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


def _load(path: Path, part: slice) -> dict[str, Array]:
    """Return a file's arrays by name; none is ever unpickled."""
    try:
        if path.suffix == ".npy":
            return {"values": np.lib.format.open_memmap(path, mode="r")[part]}
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


def read_array_file(
    name: str,
    path: Path,
    ids: NDArray[np.str_],
    groups: NDArray[np.str_],
    settings: ReadSettings,
    part: slice = slice(None),
) -> Sequences:
    """Read the sequences of one modality.

    Parameters
    ----------
    name, path
        The modality and its file.
    ids, groups
        (N,) of the items, in the table's order.
    settings
        How it is read.
    part
        The rows of an ``.npy`` file that are these items; the others are left alone.

    Raises
    ------
    UserError
        If the file does not fit the items.
    """
    arrays = _load(path, part)
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


def numeric(path: Path, name: str, array: object, dims: tuple[int, ...]) -> Array:
    """Return an array of a file, or raise `UserError` where it holds no numbers of such shape."""
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
        array = numeric(path, name, arrays[name], (1, 2))
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
    values = numeric(path, "values", arrays["values"], (2,) if ragged else (2, 3))
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
