"""A table and the arrays beside it, a few items at a time, in memory that does not grow with them.

For prediction: labels, groups and sides are not read, and two items may have the same id.

Notation: N items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import Sequences
from common.data.formats.array_files import array_files, numeric, read_array_file
from common.data.formats.table import check_pyarrow, read_ids, table_of
from common.data.source import ReadSettings
from common.errors import UserError


@dataclass(frozen=True)
class TableStream:
    """A table whose arrays are ``.npy`` files in its order.

    Attributes
    ----------
    path
        The table.
    settings
        How it is read.
    files
        Modality to its file.
    count
        N, as the arrays have it.
    """

    path: Path
    settings: ReadSettings
    files: Mapping[str, Path]
    count: int

    @classmethod
    def open(cls, path: Path, settings: ReadSettings) -> "TableStream | None":
        """Look at a table; None where it has to be read whole: other arrays, or context.

        Raises
        ------
        UserError
            If there is no table, or nothing to read it with, or its arrays differ in number.
        """
        path = table_of(path)
        files = array_files(path, settings)
        if settings.context or any(file.suffix != ".npy" for file in files.values()):
            return None
        check_pyarrow(path)
        counts = {name: _items_in(file) for name, file in files.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"{path}: arrays differ in number of items: {told}")
        return cls(path, settings, files, next(iter(counts.values())))

    def parts(self, size: int) -> Iterator[tuple[NDArray[np.str_], dict[str, Sequences]]]:
        """Yield ids and sequences, `size` items at a time.

        Raises
        ------
        UserError
            If the table and an array do not have the same number of items, or cannot be read.
        """
        first = 0
        for ids in self._ids(size):
            last = first + len(ids)
            if last > self.count:
                raise self._unequal("more")
            rows = slice(first, last)
            yield (
                ids,
                {
                    name: read_array_file(name, file, ids, ids, self.settings, rows)
                    for name, file in self.files.items()
                },
            )
            first = last
        if first < self.count:
            raise self._unequal(str(first))

    def _unequal(self, rows: str) -> UserError:
        file = next(iter(self.files.values()))
        return UserError(f"{file} has {self.count} items and the table {rows}; expected as many")

    def _ids(self, size: int) -> Iterator[NDArray[np.str_]]:
        """Yield the ids, `size` at a time."""
        waiting: list[str] = []
        for some in read_ids(self.path):
            waiting += some
            while len(waiting) >= size:
                yield np.array(waiting[:size], dtype=np.str_)
                waiting = waiting[size:]
        if waiting:
            yield np.array(waiting, dtype=np.str_)


def _items_in(file: Path) -> int:
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:
        # NumPy raises what it likes of a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read: {reason[:150]}") from error
    return len(numeric(file, "values", array, (2, 3)))
