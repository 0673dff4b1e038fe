"""What `utmp-prepare` says of a folder of shards: ``manifest.json``.

It holds where the data came from, how they were cleaned, split and dealt out, and the SHA-256 of
every shard. Nothing in it depends on when or where it was written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.clients import ClientKey
from common.data.shards import VERSION
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A folder of shards in words and numbers.

    Attributes
    ----------
    version
        Of the layout of shards and manifest.
    source
        Format, what it was recognised by, and of each file its name, size and SHA-256.
    task, outputs, label_names
        As `common.data.shards.ShardInfo`.
    modalities
        Modality to width, lengths, counts of missing and of values that are not finite.
    sides
        "train", "validation" and "test" to their counts and label statistics.
    settings
        Everything that decided the result, seed included.
    cleaning
        What was cleaned while reading and how many times.
    warnings
        What a user should know before trusting a result.
    shards
        File name to SHA-256, seal, bytes, items, groups and label statistics.
    """

    version: int
    source: Mapping[str, Any]
    task: Task
    outputs: int
    label_names: tuple[str, ...]
    modalities: Mapping[str, Mapping[str, Any]]
    sides: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    cleaning: Mapping[str, int]
    warnings: tuple[str, ...]
    shards: Mapping[str, Mapping[str, Any]]

    def clients(self) -> list[ClientKey]:
        """Return the clients that have a shard, by modality in order, then by number."""
        keys = []
        for name in self.shards:
            modality, _, part = name.removesuffix(SUFFIX).rpartition("-")
            if modality in self.modalities and part.isdecimal():
                keys.append(ClientKey(modality, int(part)))
        order = list(self.modalities)
        return sorted(keys, key=lambda key: (order.index(key.modality), key.part))

    def check(self, path: Path, seal: str) -> None:
        """Refuse a shard that is not the one listed here.

        Raises
        ------
        UserError
            If the manifest is of another preparation than the shard, which it names.
        """
        listed = self.shards.get(path.name)
        seals = {shard.get("seal") for shard in self.shards.values()}
        renamed = listed is None and seal in seals
        if not renamed and (listed is None or listed.get("seal") != seal):
            what = "does not list" if listed is None else "lists other contents for"
            raise UserError(
                f"{path.parent / MANIFEST} {what} {path.name}: manifest and shard are from "
                "different preparations; take both from the same one"
            )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_bytes(text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises
    ------
    UserError
        If there is none, or it is of another version or damaged.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of shards; utmp-prepare out={folder} makes one")
    if not path.exists():
        raise UserError(
            f"{folder} has no {MANIFEST}: its preparation did not end; run utmp-prepare again"
        )
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise UserError(
            f"{path} is of version {found}, and this release reads {VERSION}; prepare the data "
            "again with utmp-prepare"
        )
    return _parse(content, path)


def _parse(content: dict[str, Any], path: Path) -> Manifest:
    names = [item.name for item in fields(Manifest)]
    mappings = ("source", "modalities", "sides", "settings", "cleaning", "shards")
    missing = [name for name in names if name not in content]
    missing += [name for name in mappings if not isinstance(content.get(name), dict)]
    missing += [
        name for name in ("label_names", "warnings") if not isinstance(content.get(name), list)
    ]
    if not missing and not all(isinstance(each, dict) for each in content["shards"].values()):
        missing = ["shards"]
    if missing:
        raise UserError(f"{path} is damaged: {missing[0]} is missing or not what it should be")
    try:
        known: dict[str, Any] = {name: content[name] for name in names}
        known["task"] = Task(content["task"])
        known["outputs"] = int(content["outputs"])
        known["label_names"] = tuple(content["label_names"])
        known["warnings"] = tuple(content["warnings"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return Manifest(**known)
