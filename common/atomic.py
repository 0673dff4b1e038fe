"""Files and folders that appear complete or not at all, even if the machine crashes.

Both are written under a hidden name beside their place and renamed at the end. A program that is
killed leaves the hidden one behind; the next writer removes it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path beside the target to write to, which is renamed to the target at the end.

    If the block raises, that file is removed and the target stays as it was.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    aside = target.with_name(f".{target.name}.part")
    try:
        yield aside
        make_readable(aside)
        sync(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(target.parent)


def make_readable(path: Path) -> None:
    """Give a file the permissions that `open` would give it, instead of a temporary file's."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def atomic_folder(out: Path, overwrite: bool, holds: str) -> Iterator[Path]:
    """Yield a folder to write into, which is renamed to `out` at the end.

    Parameters
    ----------
    out
        Absolute path of the folder; an empty folder may exist there.
    overwrite
        Whether to replace an existing folder that contains a file named `holds`.
    holds
        Name of the file that identifies a folder of this kind.

    Raises
    ------
    UserError
        If `out` is taken, cannot be written, or is being written by another process.
    """
    _check_place(out, overwrite, holds)
    part, former = (out.with_name(f".{out.name}.{what}") for what in ("part", "former"))
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = os.open(part, os.O_RDONLY)
    except OSError as error:
        raise _write_error(out, error) from error
    try:
        _claim(lock, part, out)
        with _cleared(part):
            yield part
            _sync(part)
            _check_place(out, overwrite, holds)
            _replace(part, out, former)
    except OSError as error:
        raise _write_error(out, error) from error
    finally:
        os.close(lock)


@contextmanager
def _cleared(part: Path) -> Iterator[None]:
    """Remove what a killed program left, and at the end whatever was not renamed."""
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


def _claim(lock: int, part: Path, out: Path) -> None:
    busy = UserError(f"out={out}: another command is writing it")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise busy from error
    # The process that held the lock may just have renamed the folder.
    if not part.exists() or part.stat().st_ino != os.fstat(lock).st_ino:
        raise busy


def _replace(part: Path, out: Path, former: Path) -> None:
    """Rename the new folder into place; if that fails, restore the former one."""
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
    """Set permissions and flush everything to disk before the folder is renamed."""
    for path in folder.iterdir():
        make_readable(path)
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _write_error(out: Path, error: OSError) -> UserError:
    return UserError(f"out={out} cannot be written: {error.strerror or error}")
