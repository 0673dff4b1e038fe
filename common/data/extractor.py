"""Which extractor made the features beside a table: ``extractor.json``, of `utmp-extract`.

Features of two extractors are numbers of different meaning, even where their widths agree. So the
identity of the extractor goes with them: into shards, to the coordinator, into the model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError, parsed_as, reason

#: The file in a folder of features; modality to its extractor.
FILE = "extractor.json"

#: Characters of an identity.
MAX_IDENTITY = 120

#: Letters of the hash in an identity.
_SHORT = 12


@dataclass(frozen=True)
class Extractor:
    """How recordings became features: equal hashes, equal features."""

    #: Of the method, as "log-mel+mfcc".
    name: str
    #: Of the method's definition; another one gives other numbers.
    version: str
    #: All that decides the numbers; a model is in it by the SHA-256 of its files.
    settings: Mapping[str, Any]
    #: SHA-256 of the three above.
    hash: str = field(default="")

    def __post_init__(self) -> None:
        content = json.dumps([self.name, self.version, self.settings], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        if self.hash not in ("", digest):
            raise ValueError(f"hash is {self.hash[:_SHORT]}, expected {digest[:_SHORT]}")
        if len(self.name) + len(self.version) > MAX_IDENTITY - _SHORT - 4:
            raise ValueError("name and version are too long")
        object.__setattr__(self, "hash", digest)

    @property
    def identity(self) -> str:
        """One line that says name, version and settings."""
        return f"{self.name} {self.version} ({self.hash[:_SHORT]})"


def read_extractors(folder: Path) -> dict[str, Extractor]:
    """Return the extractor of each modality in a folder of features; nothing if it says none.

    Raises `UserError` if the file is damaged, or was changed by hand.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        return parsed_as(dict[str, Extractor], content)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {error}; copy it again with the features, or extract them again"
        ) from error


def extractors_json(extractors: Mapping[str, Extractor]) -> bytes:
    """Return the content of the file."""
    plain = {name: asdict(extractor) for name, extractor in sorted(extractors.items())}
    return json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n"


def identities(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the identity of the extractor of each modality, by its file of arrays, where known.

    An extractor is that of the file, whatever the modality is called here. `UserError` as
    `read_extractors`.
    """
    folders = {path.parent: read_extractors(path.parent) for path in files.values()}
    found = {name: folders[path.parent].get(path.stem) for name, path in files.items()}
    return {name: extractor.identity for name, extractor in found.items() if extractor}
