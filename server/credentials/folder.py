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
            return sorted(
                path.relative_to(self.path).as_posix() for path in self.path.glob(pattern)
            )

    def write(
        self, name: str, content: bytes, *, private: bool = False, former: str | None = None
    ) -> None:
        """Write a file, whole or not at all.

        Parameters
        ----------
        name
            Its path in the folder.
        content
            Its bytes.
        private
            Whether only its owner may read it.
        former
            The name under which the file that is replaced is kept; None if there must be none.

        Raises
        ------
        UserError
            If it exists by now, or cannot be written.
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
                if not private:
                    Path(part).chmod(0o644)
                self._put(Path(part), target, former)
            finally:
                Path(part).unlink(missing_ok=True)

    def _put(self, part: Path, target: Path, former: str | None) -> None:
        if former is not None:
            # It exists already if an earlier run was cut short here.
            with suppress(FileExistsError):
                os.link(target, self.path / former)
            part.replace(target)
            return
        try:
            # Unlike a rename, a link does not replace a file that another run wrote meanwhile.
            os.link(part, target)
        except FileExistsError as error:
            raise UserError(
                f"{target} was written by another run meanwhile, and is kept; run this again"
            ) from error

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, each for its owner alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        below = folder.relative_to(self.path)
        for each in reversed([below, *below.parents]):
            (self.path / each).mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read or written: {error.strerror}") from error
