"""A file that is there as a whole or not at all, through a crash of the machine too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path beside the target to write to; at the end it takes the target's name.

    Whatever ends the block otherwise removes it, and leaves the target as it was.

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
    """Give a file the permissions of files that are simply opened for writing."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
