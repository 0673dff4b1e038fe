"""A folder that is there as a whole or not at all.

It is filled under another name beside its place and renamed at the end. A program that is killed
leaves a hidden folder, which the next one clears away.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.whole_file import make_readable, sync


@contextmanager
def whole_folder(out: Path, overwrite: bool, holds: str) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` if all goes well.

    Parameters
    ----------
    out
        Its place, absolute. It may be an empty folder.
    overwrite
        Whether a folder there that has a file `holds` is replaced.
    holds
        A file by which a folder of this kind is known.

    Raises
    ------
    UserError
        If something else is at its place, it cannot be written, or another process is writing it.
    """
    _check_place(out, overwrite, holds)
    part, former = (out.with_name(f".{out.name}.{what}") for what in ("part", "former"))
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY)
    except OSError as error:
        raise _not_written(out, error) from error
    try:
        _take(lock, part, out)
        with _cleared(part):
            yield part
            _sync(part)
            _check_place(out, overwrite, holds)
            _replace(part, out, former)
    except OSError as error:
        raise _not_written(out, error) from error
    finally:
        os.close(lock)


@contextmanager
def _cleared(part: Path) -> Iterator[None]:
    """Clear away what a killed program left, and at the end what is not in its place."""
    for left in part.iterdir():
        left.unlink()
    try:
        yield
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_place(out: Path, overwrite: bool, holds: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"out={out} exists already, and is no folder; choose another")
    if not overwrite:
        raise UserError(f"out={out} exists already; choose another, or give overwrite=true")
    if not (out / holds).exists():
        raise UserError(
            f"out={out} exists already and holds no {holds}; overwrite=true replaces "
            "only what this command made before"
        )


def _take(lock: int, part: Path, out: Path) -> None:
    busy = UserError(f"out={out}: another command is writing it")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise busy from error
    # The one who had it may just have given it its name.
    if not part.exists() or part.stat().st_ino != os.fstat(lock).st_ino:
        raise busy


def _replace(part: Path, out: Path, former: Path) -> None:
    """Put the new folder in its place; if that fails, the former one is put back."""
    if not out.exists():
        part.rename(out)
    else:
        shutil.rmtree(former, ignore_errors=True)
        out.rename(former)
        try:
            part.rename(out)
        except BaseException:
            former.rename(out)
            raise
    shutil.rmtree(former, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have everything on disk, as readable as other files, before the folder gets its name."""
    for path in folder.iterdir():
        make_readable(path)
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _not_written(out: Path, error: OSError) -> UserError:
    return UserError(f"out={out} cannot be written: {error.strerror or error}")
