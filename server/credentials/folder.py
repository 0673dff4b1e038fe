"""The folder of all credentials: its files are read, and new files never replace them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError


class CredentialFolder:
    """The folder that `utmp-credentials` writes; made with the first file.

    Every method raises `UserError` where a file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _errors_named(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"out={self.path} is a file; expected a folder, which is made")

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        path = self.path / name
        with _errors_named(path), suppress(FileNotFoundError):
            return path.read_bytes()
        return None

    def find(self, pattern: str) -> list[str]:
        """Return the names of the files that match a pattern."""
        with _errors_named(self.path):
            return sorted(str(path.relative_to(self.path)) for path in self.path.glob(pattern))

    def write(self, name: str, content: bytes, former: str | None = None) -> None:
        """Write a file, whole or not at all; a private key can be read by its owner only.

        A file that exists by now is an error, unless there is a `former` name under which it is
        kept.
        """
        target = self.path / name
        with _errors_named(target):
            self._make(target.parent)
            # Opened with O_EXCL, for its owner alone.
            number, part = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if target.suffix != ".key":
                    Path(part).chmod(0o644)
                if former is None:
                    _link(part, target)
                else:
                    # It exists already if an earlier run was cut short here.
                    with suppress(FileExistsError):
                        os.link(target, self.path / former)
                    Path(part).replace(target)
            finally:
                Path(part).unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, each for its owner alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        below = folder.relative_to(self.path)
        for part in reversed([below, *below.parents]):
            (self.path / part).mkdir(mode=0o700, exist_ok=True)


def _link(part: str, target: Path) -> None:
    """Give a file its name; unlike a rename, this replaces no file that another run wrote."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise UserError(
            f"{target} was written by another run meanwhile, and is kept; run this again"
        ) from error


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read or written: {error.strerror}") from error
