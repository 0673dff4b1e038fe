"""The folder of all credentials: what is there is read, what is new never replaces it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError


class CredentialFolder:
    """The folder that `utmp-credentials` writes; made with the first file.

    Parameters
    ----------
    path
        Where it is.

    Raises
    ------
    UserError
        If there is something else at that place.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._errors_named(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"out={self.path} is a file; expected a folder, which is made")

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None if it is not there."""
        path = self.path / name
        with self._errors_named(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def find(self, pattern: str) -> list[str]:
        """Return the names of the files that match a pattern."""
        with self._errors_named(self.path):
            return sorted(
                path.relative_to(self.path).as_posix() for path in self.path.glob(pattern)
            )

    def create(self, name: str, content: bytes, *, private: bool = False) -> None:
        """Write a file that is not there yet.

        Parameters
        ----------
        name
            Its path in the folder.
        content
            What it holds.
        private
            Whether only its owner may read it.

        Raises
        ------
        UserError
            If it is there by now, or cannot be written.
        """
        target = self.path / name
        with self._errors_named(target), self._aside(target, content, private) as aside:
            try:
                # Unlike a rename, a link does not replace what another run wrote meanwhile.
                os.link(aside, target)
            except FileExistsError as error:
                raise UserError(
                    f"{target} was written by another run meanwhile, and is kept; run this again"
                ) from error

    def replace(self, name: str, content: bytes, former: str) -> None:
        """Replace a file, and keep the former one under another name.

        Raises
        ------
        UserError
            If either cannot be written.
        """
        target = self.path / name
        with self._errors_named(target), self._aside(target, content, False) as aside:
            # There already, if that run was cut short here.
            with suppress(FileExistsError):
                os.link(target, self.path / former)
            aside.replace(target)

    @contextmanager
    def _aside(self, target: Path, content: bytes, private: bool) -> Iterator[Path]:
        self._make(target.parent)
        # Opened with O_EXCL, for its owner alone.
        number, name = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
        aside = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not private:
                aside.chmod(0o644)
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, each for its owner alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        below = folder.relative_to(self.path)
        for each in reversed([below, *below.parents]):
            (self.path / each).mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def _errors_named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{path} cannot be read or written: {error.strerror}") from error
