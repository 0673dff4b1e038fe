"""How arrays lay out items, whatever file they are in, and how much such a file may ask for.

A modality is one array: (N, T, D), padded; or (N, D), one vector an item, made a sequence by the
items of the same group before it; or (R, D) with offsets (N + 1,). Without a width, as (N,), it is
1 wide. An item of NaN alone lacks the modality.

Notation: N items, T steps, R rows, D width.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import FloatArray, IntArray, Sequences
from common.data.source import SIDES, ReadSettings
from common.errors import UserError, printable, reason

Array = NDArray[Any]

#: Bytes that any file may unpack to, and how many times its own size a larger one may.
FREE, RATIO = 1 << 30, 100
#: A longer id is a mistake: NumPy keeps all of an array in the space of its longest.
MAX_ID = 1000
#: What arrays are called that are no modality unless they are asked for, such as labels.
NO_MODALITY = {
    *("label", "labels", "y", "target", "targets", "id", "ids"),
    *("group", "groups", "split", "splits", "offsets", "lengths"),
}
#: Items that are looked at together, to save memory.
CHUNK = 256


def check_unpacked(path: Path, unpacked: int) -> None:
    """Raise `UserError` where a small file declares contents that take huge memory, in bytes."""
    if unpacked > FREE and unpacked > RATIO * path.stat().st_size:
        raise UserError(
            f"{path} declares {unpacked / 2**30:.1f} GiB of contents, more than {RATIO} times its "
            "size; expected a file of measured features"
        )


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Return files of a folder by name; of any suffixes, in any case, or else all.

    What systems and programs leave behind is left out, see `is_litter`.
    """
    files = [file for file in sorted(folder.iterdir()) if not is_litter(file)]
    return [file for file in files if not suffixes or file.name.lower().endswith(suffixes)]


def is_litter(file: Path) -> bool:
    """Tell what systems leave beside files, such as ._audio.npy, ~$items.xlsx and Thumbs.db."""
    return file.name.startswith((".", "~$")) or file.name in ("Thumbs.db", "desktop.ini")


def note_litter(path: Path, settings: ReadSettings) -> None:
    """Note the litter in a folder, or beside a file."""
    folder = path if path.is_dir() else path.parent
    litter = [file.name for file in sorted(folder.iterdir()) if is_litter(file) and file.is_file()]
    if litter:
        settings.note(f"files such as {printable(litter[0])}, ignored", len(litter))


def first_line(error: Exception) -> str:
    """Return what a library says of a damaged file, short."""
    if "pickle" in str(error) or "Python objects" in str(error):
        return (
            "it holds Python objects, which are never read; save text with .astype(str), and "
            "sequences of different lengths as an array for each id: np.savez('audio.npz', "
            "**dict(zip(ids, arrays)))"
        )
    return (str(error).splitlines() or [type(error).__name__])[0][:150]


@contextmanager
def reading(path: Path, how: str = "", needs: str = "numpy") -> Iterator[None]:
    """Say of whatever a library raises of a damaged file, or where it is missing, in one line."""
    try:
        import_module(needs)
    except ImportError as error:
        raise UserError(f"{path} needs {needs}: pip install {needs}") from error
    try:
        with path.open("rb"):  # libraries do not say why the system refuses a file
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read{how}: {first_line(error)}") from error


class Arrays(dict[str, Any]):
    """A file's arrays by name; one that cannot be read says so when it is taken."""

    def __getitem__(self, name: str) -> Array:
        array = super().__getitem__(name)
        if isinstance(array, UserError):
            raise array
        return cast(Array, array)


def load_npz(path: Path) -> Arrays:
    """Read all arrays of an ``.npz`` file; none is ever unpickled."""
    arrays = Arrays()
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an .npz file, or only a part of one")
    # Opened here: np.load leaves a file open whose list of members is broken.
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        check_unpacked(path, sum(member.file_size for member in archive.zip.infolist()))
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except Exception as error:
                said = first_line(error)
                arrays[name] = UserError(f"{path}: array {name!r} cannot be read: {said}")
            if isinstance(arrays.get(name), bytes):
                arrays[name] = UserError(f"{path}: {name!r} is not an array")
    return arrays


def numeric(path: Path, name: str, array: Array, dims: tuple[int, ...] = (1, 2, 3)) -> Array:
    """Return an array, or raise `UserError` where it holds no numbers of such dimensions."""
    if array.dtype.kind not in "fiub" or array.ndim not in dims or 0 in array.shape[1:]:
        raise UserError(
            f"{path}: {name[:60]!r} is {array.dtype} of shape {array.shape}, expected numbers "
            + (
                "(items, steps, width), (items, width) or (items,)"
                if 3 in dims
                else "(steps, width)"
            )
        )
    return array


@dataclass(frozen=True)
class Block:
    """One modality of all items of a file."""

    values: Array  # of 2 or 3 dimensions
    starts: IntArray  # (N,) each item's first row of (R, D)
    lengths: IntArray  # (N,) its number of rows
    vectors: bool  # whether it is one vector an item

    @classmethod
    def of(
        cls, path: Path, arrays: Mapping[str, Array], name: str = "values", offsets: str = "offsets"
    ) -> "Block":
        """Take a modality from a file's arrays by the names of its array and its offsets."""
        values = numeric(path, name, arrays[name])
        values = values[:, None] if values.ndim == 1 else values
        if offsets in arrays:
            ends, rows = arrays[offsets], len(values)
            whole = ends.dtype.kind in "iu" and ends.ndim == 1 and len(ends) > 0
            rise = whole and ends[0] == 0 and ends[-1] == rows and (ends[1:] >= ends[:-1]).all()
            if values.ndim != 2 or not rise:
                raise UserError(
                    f"{path}: {offsets!r} must rise from 0 to {rows}, the rows of {name!r}, "
                    f"which must have the shape (rows, width) and has {values.shape}"
                )
            ends = ends.astype(np.int64)
            return cls(values, ends[:-1], np.diff(ends), False)
        steps = values.shape[1] if values.ndim == 3 else 1
        starts = np.arange(len(values)) * steps
        return cls(values, starts, np.full(len(values), steps), values.ndim == 2)

    def sequences(
        self, path: Path, name: str, settings: ReadSettings, groups: NDArray[np.str_]
    ) -> Sequences:
        """Return the items; a vector with the context before it in its group, of `groups` (N,)."""
        items = Sequences(float_rows([self.values]), self.starts, self.lengths)
        if self.vectors and settings.context > 0:
            begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
            of_group = np.repeat(begins, np.diff(np.r_[begins, len(groups)]))
            first = np.maximum(self.starts - settings.context, of_group)
            there = items.known().present  # what came before is no substitute for the item
            items = replace(items, starts=first, lengths=there * (self.starts - first + 1))
        return settled(path, name, items, settings)


def real_spans(block: Array, lengths: IntArray | None = None) -> tuple[IntArray, IntArray]:
    """Return each item's first step that is not zero, and the one after its last; 0 and 0 for none.

    `block` (N, T, D) is padded with zeros on the left or on the right; NaN is not zero. What lies
    behind `lengths` (N,), if they are known, is no part of an item, whatever it holds.
    """
    steps = block.shape[1]
    first, last = np.zeros((2, len(block)), dtype=np.int64)
    for start in range(0, len(block), CHUNK):
        part = slice(start, start + CHUNK)
        real = (block[part] != 0).any(axis=2)
        if lengths is not None:
            real &= np.arange(steps) < lengths[part, None]
        present = real.any(axis=1)
        first[part] = np.where(present, real.argmax(axis=1), 0)
        last[part] = np.where(present, steps - real[:, ::-1].argmax(axis=1), 0)
    return first, last


def float_rows(blocks: Sequence[Array]) -> FloatArray:
    """Join arrays (…, D) as rows (R, D) of float32, or float16 where all are."""
    kept = np.float16 if all(block.dtype == np.float16 for block in blocks) else np.float32
    rows = [block.reshape(-1, block.shape[-1]) for block in blocks]
    with np.errstate(over="ignore", invalid="ignore"):
        if len(rows) == 1 and not isinstance(rows[0], np.memmap):
            return cast(FloatArray, rows[0].astype(kept, copy=False))
        return cast(FloatArray, np.concatenate(rows, dtype=kept, casting="unsafe"))


def settled(path: Path, name: str, sequences: Sequences, settings: ReadSettings) -> Sequences:
    """Return a modality as it was asked for: tabular, of one length, or not.

    Items of NaN alone are absent.
    """
    made = replace(sequences, tabular=name in settings.tabular).known()
    if made.uneven:
        lengths = made.lengths[made.present]
        raise UserError(
            f"{path}: {name} has from {lengths.min()} to {lengths.max()} steps, but a modality in "
            f"{settings.prefix}tabular needs the same number in every item"
        )
    return made


def sides_of(path: Path, names: Sequence[str]) -> NDArray[np.str_]:
    """Return (N,) sides by what a source calls them, which is one of `SIDES`."""
    unknown = sorted(set(names) - set(SIDES))
    if unknown:
        raise UserError(f"{path}: split {unknown[0][:40]!r}: expected one of {', '.join(SIDES)}")
    return np.array([SIDES[name] for name in names], dtype="U10")


def no_sides(items: int) -> NDArray[np.str_]:
    """Return the sides (N,) of a source that says none."""
    return np.full(items, "", dtype="U10")
