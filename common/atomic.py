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

from common.errors import UserError, reason


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path beside the target to write to, which is renamed to the target at the end.

    If the block raises, that file is removed and the target stays as it was.
    """
    aside = target.with_name(f".{target.name}.part")
    try:
        yield aside
        _finish(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _finish(file: Path) -> None:
    """Give a file the permissions that `open` would give it, and flush it to disk."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
    _sync(file)


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def atomic_folder(out: Path, overwrite: bool, holds: str) -> Iterator[Path]:
    """Yield a folder to write files into, which is renamed to `out`, an absolute path, at the end.

    An empty folder may exist there; with `overwrite`, also one that contains a file named `holds`,
    by which a folder of this kind is known, and which is then replaced.

    Raises `UserError` if `out` is taken, cannot be written, or is being written by another process.
    What the block raises of other files stays as it is.
    """
    _check_place(out, overwrite, holds)
    part = out.with_name(f".{out.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        with locked(part, out):
            try:
                for left in part.iterdir():
                    left.unlink()
                yield part
                for path in part.iterdir():
                    _finish(path)
                _sync(part)
                _check_place(out, overwrite, holds)
                _replace(part, out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if not _concerns(error, part, out):
            raise
        raise UserError(f"out={out} cannot be written: {reason(error)}") from error


def _concerns(error: OSError, part: Path, out: Path) -> bool:
    """Whether the system refused what is written, and not what the block reads meanwhile."""
    if not isinstance(error.filename, str):
        return True
    path = Path(error.filename)
    return part.is_relative_to(path) or any(path.is_relative_to(ours) for ours in (part, out))


def _check_place(out: Path, overwrite: bool, holds: str) -> None:
    if out.is_symlink() and not out.exists():
        raise UserError(f"out={out} is a symbolic link that leads nowhere; choose another")
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


@contextmanager
def locked(part: Path, out: Path) -> Iterator[None]:
    """Let no other process work in a folder that becomes `out`; `UserError` if one does."""
    lock = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held the lock may just have renamed the folder.
            mine = part.stat().st_ino == os.fstat(lock).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise UserError(f"out={out}: another command is writing it")
        yield
    finally:
        os.close(lock)


def _replace(part: Path, out: Path) -> None:
    """Rename the new folder into place; if that fails, restore the former one."""
    former = out.with_name(f".{out.name}.former")
    if out.exists():
        shutil.rmtree(former, ignore_errors=True)
        out.rename(former)
    try:
        part.rename(out)
    except BaseException:
        if not out.exists() and former.exists():
            former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)
