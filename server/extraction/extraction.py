"""One run of `utmp-extract`: every recording once, then a folder that is complete or not there.

What is extracted lies meanwhile in a hidden folder beside ``out``, a file for each recording, named
after all that decides it: its id, its contents' stamp, the extractor. A run that was stopped leaves
it behind, and the next one goes on from there.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.atomic import atomic_file, atomic_folder, locked
from common.clients import check_modality_name
from common.config import ExtractConfig
from common.data.extractor import FILE, Extractor, extractors_json, read_extractors
from common.data.formats.columns import Columns
from common.data.formats.layouts import NO_MODALITY
from common.errors import UserError, printable, reason
from server.extraction.method import Features, Loaded, Recording
from server.extraction.methods import METHODS
from server.extraction.sources import Recordings, Row, find_recordings

#: The table in a folder of features.
TABLE = "items.csv"

#: Called with how many recordings are done, and how many there are.
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Extracted:
    """What a run extracted: the N items of a modality."""

    extractor: Extractor
    #: Number of steps of each item, and the width of all.
    lengths: Sequence[int]
    width: int
    #: How many were there already, of a run that stopped.
    resumed: int
    #: Name to what is wrong with it.
    bad: Mapping[str, str]
    #: The files of the folder: the arrays, and the list of what is bad.
    arrays: Path
    unreadable: Path
    #: Whether the table has more columns than ids.
    labelled: bool
    #: Files of the source that are no recordings.
    others: int


def extract(config: ExtractConfig, modality: str, watch: Watch) -> Extracted:
    """Extract a modality of all recordings of a source into a folder.

    Bad recordings are left out and listed. Raises `UserError` if the source, the model or the
    folder cannot be used, or no recording can.
    """
    out = Path(str(config.out)).absolute()
    check_modality_name(modality)
    if modality.lower() in NO_MODALITY:
        raise UserError(f"modality={modality} means something else beside a table; choose another")
    former = _check_place(out, modality, config.overwrite)
    kind = config.kind_of(modality)
    source = find_recordings(config, kind, METHODS[kind])
    loaded = METHODS[kind].load(config)
    with _aside(out, modality) as parts:
        done, resumed = _extract_all(source, loaded, parts, watch)
        _check_any(done, source, config)
        sizes = _sizes(done)
        rows = {name: source.rows[name] for name in done}
        if former.keys() - {modality}:
            rows = merged_rows(out / TABLE, rows)
        new = {
            FILE: extractors_json({**former, modality: loaded.extractor}),
            TABLE: table_bytes(rows, "," if source.decimal == "." else ";"),
            **_listed(source.bad, modality),
        }
        with atomic_folder(out, bool(former), FILE) as folder:
            _keep(out, folder, modality)
            for name, content in new.items():
                (folder / name).write_bytes(content)
            write_arrays(folder / f"{modality}.npz", done)
        for part in parts.iterdir():
            part.unlink()
    return Extracted(
        extractor=loaded.extractor,
        lengths=[steps for steps, _ in sizes],
        width=sizes[0][1],
        resumed=resumed,
        bad=source.bad,
        arrays=out / f"{modality}.npz",
        unreadable=out / _unreadable(modality),
        labelled=any(len(row) > 1 for row in rows.values()),
        others=source.others,
    )


def _unreadable(modality: str) -> str:
    return f"{modality}-unreadable.txt"


def _listed(bad: Mapping[str, str], modality: str) -> dict[str, bytes]:
    """Return the file that lists what is bad; none if nothing is."""
    lines = [printable(f"{name}: {why}") for name, why in bad.items()]
    return {_unreadable(modality): "".join(f"{line}\n" for line in lines).encode()} if bad else {}


def _check_place(out: Path, modality: str, overwrite: bool) -> dict[str, Extractor]:
    """Return the extractors of a folder of features; `UserError` if it is another, or complete."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {}
    former = read_extractors(out) if out.is_dir() else {}
    if not former:
        raise UserError(
            f"out={out} exists already and holds no {FILE}: it is no folder of features; choose "
            "another"
        )
    if modality in former and not overwrite:
        raise UserError(f"out={out} has {modality} already; choose another, or give overwrite=true")
    return former


@contextmanager
def _aside(out: Path, modality: str) -> Iterator[Path]:
    """Yield the folder of what is extracted, which no other process uses; it stays."""
    parts = out.with_name(f".{out.name}.{modality}.extracted")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {reason(error)}") from error
    with locked(parts, out):
        try:
            yield parts
        finally:
            if not any(parts.iterdir()):
                parts.rmdir()


# Extracting --------------------------------------------------------------------------------------


def _extract_all(
    source: Recordings, loaded: Loaded, parts: Path, watch: Watch
) -> tuple[dict[str, Path], int]:
    """Extract what is not there yet; return the file of each id, and how many were there."""
    done: dict[str, Path] = {}
    resumed, width = 0, None
    for number, recording in enumerate(source.recordings.values()):
        watch(number, len(source.recordings))
        try:
            part = parts / _part_name(recording, loaded.extractor)
            known = _read_part(part)
            features = loaded.extract(recording) if known is None else known
            width = width or features.shape[1]
            if features.shape[1] != width:
                raise UserError(f"has a width of {features.shape[1]}, and others {width}")
        except UserError as error:
            source.bad[recording.name] = str(error)
            continue
        except OSError as error:
            source.bad[recording.name] = reason(error)
            continue
        if known is None:
            _write_part(part, features)
        resumed += known is not None
        done[recording.id] = part
    watch(len(source.recordings), len(source.recordings))
    return done, resumed


def _part_name(recording: Recording, extractor: Extractor) -> str:
    """Name the features of a recording after all that decides them.

    Raises `UserError` or `OSError` for a file that is not there, or no file.
    """
    given = recording.source
    if isinstance(given, Path):
        status = given.stat()
        if not given.is_file():
            raise UserError("is no file")
        given = f"{status.st_size} {status.st_mtime_ns}"
    content = json.dumps([extractor.hash, recording.id, given])
    return f"{hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()}.npy"


def _read_part(part: Path) -> Features | None:
    try:
        features: Features = np.load(part, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):  # damaged
        part.unlink()
        return None
    return features


def _write_part(part: Path, features: Features) -> None:
    with atomic_file(part) as aside, aside.open("wb") as file:
        np.save(file, features, allow_pickle=False)


def _check_any(done: Mapping[str, Path], source: Recordings, config: ExtractConfig) -> None:
    if not done:
        name, why = next(iter(source.bad.items()))
        raise UserError(
            f"none of {len(source.bad)} recordings of source={config.source} can be used, as "
            f"{name}: {why}"
        )


# The folder --------------------------------------------------------------------------------------


def _sizes(done: Mapping[str, Path]) -> list[tuple[int, int]]:
    """Return steps and width of each item."""
    return [np.load(part, mmap_mode="r").shape for part in done.values()]


def write_arrays(path: Path, done: Mapping[str, Path]) -> None:
    """Write an ``.npz`` of `values` (rows, width), `offsets` (N + 1,) and `ids` (N,).

    An item at a time; equal items give equal bytes. Raises `OSError`.
    """
    sizes = _sizes(done)
    lengths, width = [steps for steps, _ in sizes], sizes[0][1]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    header = {"descr": "<f4", "fortran_order": False, "shape": (int(offsets[-1]), width)}
    with zipfile.ZipFile(path, "w") as archive:
        # ZipInfo: without the time of day.
        with archive.open(zipfile.ZipInfo("values.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in done.values():
                file.write(np.load(part, allow_pickle=False).astype("<f4").tobytes())
        for name, array in {"offsets": offsets, "ids": np.array(list(done))}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _keep(out: Path, folder: Path, modality: str) -> None:
    """Take over what a folder of features holds of other modalities."""
    own = {f"{modality}.npz", _unreadable(modality), FILE, TABLE}
    for path in out.iterdir() if out.is_dir() else ():
        if path.name in own or not path.is_file():
            continue
        try:
            os.link(path, folder / path.name)
        except OSError:  # a file system without
            shutil.copy2(path, folder / path.name)


def merged_rows(table: Path, rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows of a table of features, and those of another modality, by id.

    Raises `UserError` where they contradict each other.
    """
    columns = Columns(table)
    cells = {name: columns.cells(name) for name in columns.names}
    former = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    merged: dict[str, Row] = {row["id"]: row for row in former}
    for key, row in rows.items():
        own = {name: cell for name, cell in row.items() if cell}
        before = merged.get(key, {})
        for name in own.keys() & before.keys():
            if before[name] and before[name] != own[name]:
                raise UserError(
                    f"{table}: item {key!r} has {name}={before[name]!r}, and the source "
                    f"{own[name]!r}; give both modalities the same table"
                )
        merged[key] = {**before, **own}
    return merged


def table_bytes(rows: Mapping[str, Row], delimiter: str) -> bytes:
    """Return a CSV table of rows, with a column for each cell that any has."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return text.getvalue().encode()
