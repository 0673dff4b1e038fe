"""The columns of a table, whatever program wrote it: CSV in all its dialects, Excel, Parquet.

A CSV table is UTF-8 or, with a byte order mark, UTF-16; it may be compressed (``.csv.gz``). What
separates its cells, a comma, a semicolon, a tab or a bar, is told by its first line, which names
the columns. Where it is no comma, numbers may have a decimal comma. Rows without anything are left
out, and counted as rows in errors, as spreadsheets count them. Columns are found by their names
without case and the spaces around.
"""

import codecs
import csv
import gzip
import io
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.data.formats import layouts
from common.errors import UserError

#: Suffix to kind of table; the first may be followed by ".gz".
KINDS = {".csv": "CSV", ".tsv": "CSV", ".parquet": "PARQUET", ".xlsx": "XLSX"}
SUFFIXES = (*KINDS, ".csv.gz", ".tsv.gz")

_DELIMITERS = ",;\t|"
_HEAD = 1 << 16
#: Bytes that a cell takes in memory, about.
_CELL = 64

csv.field_size_limit(1 << 30)  # a transcript may be long


def kind_of(path: Path) -> str | None:
    """Return the kind of a table by the suffix of its file, or None."""
    name = path.name.lower()
    return KINDS.get(Path(name.removesuffix(".gz")).suffix) if name.endswith(SUFFIXES) else None


class Columns:
    """A table's columns by name; those of CSV and Excel hold text."""

    def __init__(self, path: Path, only: Collection[str] | None = None) -> None:
        """Read a table, or only some columns of it; raise `UserError` if it cannot be read."""
        self.path, self.only = path, only and set(map(_plain, only))
        #: What may stand in numbers for the point.
        self.decimal = "."
        #: Data rows that are left out since all cells are empty, from 1.
        self.blank: list[int] = []
        #: As the table has them.
        self.names: list[str] = []
        self.items = 0
        kind, needs = kind_of(path), "numpy"
        if kind == "PARQUET":
            needs = "pyarrow"
        with layouts.reading(path, " as a table", needs):
            if kind == "PARQUET":
                self._columns = self._read_parquet()
            else:
                rows = self._xlsx_rows() if kind == "XLSX" else self._csv_rows()
                self._columns = self._text_columns(rows)

    def find(self, name: str) -> str | None:
        """Return what the table calls a column, or None if it has none.

        Raises `UserError` if it has several.
        """
        alike = [other for other in self.names if _plain(other) == _plain(name)]
        exact = [other for other in alike if other == name]
        if len(exact or alike) > 1:
            raise UserError(f"{self.path}: two columns have the same name, {name!r}")
        return next(iter(exact or alike), None)

    def cells(self, name: str, part: slice = slice(None)) -> list[Any]:
        """Return cells of a column, of the name that the table has."""
        column = self._columns[name]
        if isinstance(column, list):
            return column[part]
        try:
            cells: list[Any] = column[part].to_pylist()
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{self.path}: column {name!r} cannot be read: {layouts.first_line(error)}"
            ) from error
        return cells

    def measured(self, name: str) -> bool:
        """Tell a column of text that holds numbers, not all of them whole: it names nothing."""
        texts = [cell for cell in self.cells(name) if isinstance(cell, str)]
        numbers = [cell.replace(self.decimal, ".") for cell in texts]
        return all(map(_is_number, numbers)) and any("." in number for number in numbers)

    def place(self, item: int) -> str:
        """Say in which data row an item is, from 1; rows that were left out count."""
        row = item + 1
        for blank in self.blank:
            row += blank <= row
        return f"data row {row}"

    def check_header(self, known: Collection[str]) -> None:
        """Raise `UserError` where the first line holds numbers, and no name that is known."""
        plain = {_plain(name) for name in self.names}
        if not plain & set(map(_plain, known)) and any(map(_is_number, plain)):
            raise UserError(
                f"{self.path}: the first line must name the columns, as id, label; it holds "
                f"{', '.join(self.names)[:80]}"
            )

    def _csv_rows(self) -> Iterator[list[str]]:
        with _opened(self.path) as file:
            head = file.read(4)
            file.seek(0)
            utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = io.TextIOWrapper(file, "utf-16" if utf16 else "utf-8-sig", newline="")
            try:
                delimiter = _delimiter(text.read(_HEAD))
                text.seek(0)
                self.decimal = "." if delimiter == "," else ","
                for row in csv.reader(
                    text, delimiter=delimiter, skipinitialspace=True, strict=True
                ):
                    if row[:1] != [f"sep={delimiter}"] and row != ["sep=", ""]:
                        yield row
            except UnicodeDecodeError as error:
                raise UserError(_encoding_error(self.path)) from error

    def _xlsx_rows(self) -> Iterator[list[str]]:
        try:
            import openpyxl  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise UserError(
                f"{self.path} needs openpyxl: pip install openpyxl; or save it as 'CSV UTF-8'"
            ) from error
        with zipfile.ZipFile(self.path) as archive:
            layouts.check_unpacked(self.path, sum(each.file_size for each in archive.infolist()))
        book = openpyxl.load_workbook(self.path, read_only=True, data_only=True)
        try:
            if len(book.sheetnames) > 1:
                raise UserError(
                    f"{self.path} has {len(book.sheetnames)} sheets, {', '.join(book.sheetnames)}; "
                    "expected one; save the one with the items as 'CSV UTF-8'"
                )
            for row in book.worksheets[0].iter_rows(values_only=True):
                yield ["" if cell is None else str(cell) for cell in row]
        finally:
            book.close()

    def _text_columns(self, rows: Iterator[list[str]]) -> Mapping[str, list[str]]:
        """Return the columns of text by name, and count what rows there are."""
        header = next((row for row in rows if any(cell.strip() for cell in row)), [])
        while header and not header[-1].strip():  # columns that were cleared
            header.pop()
        self.names = [name.strip() for name in header]
        wanted = [
            place
            for place, name in enumerate(self.names)
            if self.only is None or _plain(name) in self.only
        ]
        columns: list[list[str]] = [[] for _ in wanted]
        size, number = 0, 0
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row]
            if not any(cells):
                self.blank.append(number)
                continue
            if len(cells) < len(header) or any(cells[len(header) :]):
                raise UserError(
                    f"{self.path}: data row {number} has {len(cells)} cells, and the first line "
                    f"names {len(header)} columns"
                )
            for column, place in zip(columns, wanted, strict=True):
                column.append(cells[place])
            size += sum(len(cells[place]) + _CELL for place in wanted)
            layouts.check_unpacked(self.path, size)
        self.items = number - len(self.blank)
        self.blank = [row for row in self.blank if row <= number]
        # Of columns with the same name, `find` has something to say.
        return dict(zip((self.names[place] for place in wanted), columns, strict=True))

    def _read_parquet(self) -> Mapping[str, Any]:
        import pyarrow.parquet

        batches, size = [], 0
        with pyarrow.parquet.ParquetFile(self.path) as file:
            fields = [
                field
                for field in file.schema_arrow
                if self.only is None or _plain(field.name) in self.only
            ]
            self.names = file.schema_arrow.names
            columns = [field.name for field in fields]
            for batch in file.iter_batches(layouts.CHUNK, columns=columns):
                # A run of equal cells takes no space in the file, but it does in memory.
                size += max(batch.nbytes, batch.num_rows * _CELL)
                layouts.check_unpacked(self.path, size)
                batches.append(batch)
            self.items = file.metadata.num_rows
        if len(set(columns)) < len(columns):
            raise UserError(f"{self.path}: two columns have the same name")
        table = pyarrow.Table.from_batches(batches, pyarrow.schema(fields))
        return dict(zip(columns, table.columns, strict=True))


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _opened(path: Path) -> BinaryIO:
    """Open a file, or one that is compressed, as a whole."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    content = bytearray()
    with gzip.open(path) as file:
        while chunk := file.read(1 << 20):
            content += chunk
            layouts.check_unpacked(path, len(content))
    return io.BytesIO(content)


def _delimiter(head: str) -> str:
    """Tell what separates cells by the first line: what makes most of it, a comma if in doubt."""
    if head[:4].lower() == "sep=" and head[4:5] in _DELIMITERS:  # as Excel says it
        return head[4]
    line = next((line for line in head.splitlines() if line.strip()), "")

    def score(delimiter: str) -> tuple[bool, int]:
        cells: Sequence[str] = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        named = {_plain(cell) for cell in cells} & {"id", "label", "group", "split"}
        return bool(named), len(cells)

    return max(_DELIMITERS, key=score)


def _encoding_error(path: Path) -> str:
    """Say where a table is not UTF-8, and what it may be instead."""
    with _opened(path) as file:
        content = file.read()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        begin = max(content.rfind(b"\n", 0, error.start), error.start - 20, 0)
        excerpt = content[begin : error.start + 10].decode("cp1252", errors="replace")
        shown = excerpt.strip().splitlines()[0]
        line = content.count(b"\n", 0, error.start) + 1
        return (
            f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}; as "
            f"Windows-1252 (Latin-1) it would be {shown!r}; save it as 'CSV UTF-8'"
        )
    return f"{path} is not the UTF-16 text that it says it is; save it as 'CSV UTF-8'"
