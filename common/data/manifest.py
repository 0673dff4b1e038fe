"""What `utmp-prepare` says of a folder of shards: ``manifest.json``.

It says where the data came from, how they were cleaned, split and dealt out, and the SHA-256 of
every shard. Nothing in it depends on when or where it was written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.clients import ClientKey
from common.config import setting
from common.data.shards import VERSION, Shard, read_shard
from common.data.source import Reading
from common.errors import UserError, parsed_as, reason
from common.seal import SUFFIX
from common.task import Task

MANIFEST = "manifest.json"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A folder of shards in words and numbers."""

    #: Of the layout of shards and manifest.
    version: int
    #: Format, what it was recognised by, and the name, size and SHA-256 of every file.
    source: Facts
    #: This and the next two as in `common.data.shards.ShardInfo`.
    task: Task
    outputs: int
    label_names: tuple[str, ...]
    #: Modality to width, lengths, counts of missing items and of values that are not finite.
    modalities: Mapping[str, Facts]
    #: "train", "validation" and "test" to their counts and label statistics.
    sides: Mapping[str, Facts]
    #: Everything else that decided the result, seed included.
    settings: Facts
    #: How the source was read.
    reading: Reading
    #: What was cleaned while reading, to how many times.
    cleaning: Mapping[str, int]
    #: What a user should know before trusting a result.
    warnings: tuple[str, ...]
    #: File name to SHA-256, seal, bytes, items, groups and label statistics.
    shards: Mapping[str, Facts]

    def clients(self) -> list[ClientKey]:
        """Return the clients that have a shard, by modality in order, then by number."""
        split = [name.removesuffix(SUFFIX).rpartition("-") for name in self.shards]
        numbered = {(name, int(part)) for name, _, part in split if part.isdecimal()}
        return [
            ClientKey(name, part)
            for name in self.modalities
            for part in sorted(part for modality, part in numbered if modality == name)
        ]

    def check(self, path: Path, seal: str) -> None:
        """Raise `UserError` unless a shard is listed here, under its name or another."""
        listed = self.shards.get(path.name)
        seals = [shard.get("seal") for shard in self.shards.values()]
        if listed is None and seal not in seals:
            problem = "does not list"
        elif listed is not None and listed.get("seal") != seal:
            problem = "lists other contents for"
        else:
            return
        raise UserError(
            f"{path.parent / MANIFEST} {problem} {path.name}: manifest and shard are from "
            "different preparations; take both from the same one"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_bytes(text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises `UserError` if there is none, or it is of another version or damaged.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder of shards; utmp-prepare {setting('out', folder)} makes one"
        )
    if not path.exists():
        raise UserError(
            f"{folder} has no {MANIFEST}: its preparation did not end; run utmp-prepare again"
        )
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; copy it again, or prepare the data again"
        ) from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version}, and this release reads {VERSION}; prepare the data "
            "again with utmp-prepare"
        )
    # Folders of before have it among all other settings.
    content.setdefault("reading", content.get("settings"))
    try:
        return parsed_as(Manifest, content)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_listed_shard(path: Path, manifest: Manifest | None = None) -> Shard:
    """Read a shard; it must be the one that the manifest, given or beside it, lists.

    Raises `UserError` if it does not exist, is damaged, or is not the one that the manifest lists.
    """
    shard = read_shard(path)
    if manifest is None and (path.parent / MANIFEST).exists():
        manifest = read_manifest(path.parent)
    if manifest is not None:
        manifest.check(path, shard.seal)
    return shard
