"""The folder of all credentials: its files are read, and new files never replace them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UserError, reason
from server.credentials.certificates import FileKind


class CredentialFolder:
    """The folder that `utmp-credentials` writes; made with the first file.

    Every method raises `UserError` where a file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        #: The files that were read.
        self.kept: list[str] = []
        with _errors_named(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"out={self.path} is a file; expected a folder, which is made")

    def read(self, name: str, kind: FileKind) -> Any:
        """Return what a file holds; None if there is none."""
        path = self.path / name
        with _errors_named(path), suppress(FileNotFoundError):
            content = path.read_bytes()
            self.kept.append(name)
            return kind.read(path, content)

    def find(self, pattern: str) -> list[Path]:
        """Return the names of the files that match a pattern."""
        with _errors_named(self.path):
            return sorted(path.relative_to(self.path) for path in self.path.glob(pattern))

    def write(self, name: str, content: bytes, former: str | None = None) -> None:
        """Write a file, whole or not at all; a private key can be read by its owner only.

        A file that exists by now is an error, unless there is a `former` name under which it is
        kept.
        """
        target = self.path / name
        with _errors_named(target):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for folder in reversed(Path(name).parents):
                (self.path / folder).mkdir(mode=0o700, exist_ok=True)
            # Opened with O_EXCL, for its owner alone.
            number, part = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(number)
                if target.suffix != ".key":
                    Path(part).chmod(0o644)
                if former is None:
                    # Unlike a rename, this replaces no file that another run wrote.
                    os.link(part, target)
                else:
                    # It exists already if an earlier run was cut short here.
                    with suppress(FileExistsError):
                        os.link(target, self.path / former)
                    Path(part).replace(target)
            except FileExistsError as error:
                raise UserError(
                    f"{target} was written by another run meanwhile, and is kept; run this again"
                ) from error
            finally:
                Path(part).unlink(missing_ok=True)


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read or written: {reason(error)}") from error
