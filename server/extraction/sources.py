"""What a site has: a folder of recordings, or a table with a column of texts or of files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.config import ExtractConfig, Kind
from common.data.formats.columns import SUFFIXES, Columns, kind_of
from common.data.formats.layouts import MAX_ID, is_litter
from common.data.source import check_there
from common.errors import UserError, printable
from server.extraction.method import Method, Recording

#: What begins a formula in a spreadsheet.
_FORMULA = tuple("=+-@")

#: A cell of each column of the table of features.
Row = Mapping[str, str]


@dataclass
class Recordings:
    """What there is to extract, by id, in order; and the row of each."""

    recordings: dict[str, Recording] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    #: Name to what is wrong with it.
    bad: dict[str, str] = field(default_factory=dict)
    #: What stands for the point in numbers of the table.
    decimal: str = "."
    #: Files that are no recordings.
    others: int = 0

    def add(self, recording: Recording, row: Row) -> None:
        """Add one; raise `UserError` if another has its id."""
        same = self.recordings.get(recording.id)
        if same is not None:
            raise UserError(
                f"{same.name} and {recording.name} have the same id, {recording.id!r}; rename one"
            )
        self.recordings[recording.id] = recording
        self.rows[recording.id] = row


def find_recordings(config: ExtractConfig, kind: Kind, method: Method) -> Recordings:
    """Return what ``source`` holds; raise `UserError` if there is nothing, or it is no source."""
    source = Path(str(config.source))
    check_there(source)
    if source.is_dir():
        found = _in_folder(source, method, Path(str(config.out)))
    elif kind_of(source):
        found = _in_table(source, config, kind)
    else:
        raise UserError(
            f"source={source}: expected a folder of recordings, or a table "
            f"({', '.join(SUFFIXES[:4])})"
        )
    if not found.recordings and not found.bad:
        kinds = ", ".join((*method.suffixes, *method.otherwise))
        raise UserError(f"source={source} has no {kind} ({kinds})")
    return found


def _in_folder(folder: Path, method: Method, out: Path) -> Recordings:
    """Return the files of one kind in a folder and below, but not in `out`, sorted by path."""
    names: list[Path] = []
    for place, below, files in os.walk(folder):
        inside = [Path(place, name) for name in below]
        below[:] = [
            path.name for path in inside if not is_litter(path) and path.resolve() != out.resolve()
        ]
        kept = [name for name in files if not is_litter(Path(name))]
        names += [Path(place, name).relative_to(folder) for name in kept]
    of_kind = [name for name in names if name.suffix.lower() in method.suffixes]
    chosen = of_kind or [name for name in names if name.suffix.lower() in method.otherwise]
    found = Recordings(others=len(names) - len(chosen))
    for name in sorted(chosen):
        shown, identifier = printable(str(name)), id_of(name)
        if not identifier or len(identifier) > MAX_ID:
            found.bad[shown] = f"its name is no id: expected 1 to {MAX_ID} characters"
            continue
        found.add(Recording(identifier, shown, folder / name), {"id": identifier})
    return found


def id_of(name: Path) -> str:
    """Return the id of a file: its path in the folder, without suffix, as a table can hold it.

    What is unsafe to show is escaped; what a spreadsheet would run becomes an underscore.
    """
    text = printable((name.parent / name.stem).as_posix()).strip()
    return f"_{text[1:]}" if text.startswith(_FORMULA) else text


def _in_table(path: Path, config: ExtractConfig, kind: Kind) -> Recordings:
    """Return the rows of a table; all columns but those of texts and files are copied."""
    columns = Columns(path)
    text, file, key = (
        columns.find(name) for name in (config.text.column, config.file_column, "id")
    )
    if kind is not Kind.text or text is None:
        if file is None:
            wanted = [f"file_column={config.file_column}"]
            wanted += [f"text.column={config.text.column}"] * (kind is Kind.text)
            raise UserError(
                f"{path} has no column for {' or '.join(wanted)}; it has {', '.join(columns.names)}"
            )
        used, is_file = file, True
    else:
        used, is_file = text, False
    copied = [name for name in columns.names if name and name not in (text, file, key)]
    needed = [*copied, used, *([key] if key else [])]
    cells = {name: list(map(_cell, columns.cells(name))) for name in needed}
    found = Recordings(decimal=columns.decimal)
    for number in range(columns.items):
        given, place = cells[used][number], columns.place(number)
        identifier = cells[key][number] if key else id_of(Path(given)) if is_file else str(number)
        if not given or "\0" in given:
            found.bad[place] = f"has no {used}"
            continue
        if not 0 < len(identifier) <= MAX_ID:
            found.bad[place] = f"has no id of 1 to {MAX_ID} characters"
            continue
        row = {"id": identifier} | {name: cells[name][number] for name in copied}
        shown = printable(given) if is_file else place
        found.add(Recording(identifier, shown, path.parent / given if is_file else given), row)
    return found


def _cell(value: object) -> str:
    return "" if value is None else str(value)
