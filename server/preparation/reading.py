"""Reads the source of a preparation and identifies its files."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.clients import check_modality_name
from common.config import Labels, PrepareConfig, SyntheticConfig
from common.data.formats.pickled import PUBLISHED
from common.data.formats.registry import check_format, read_source
from common.data.formats.table import array_files
from common.data.source import ReadSettings, Source, check_tabular, paths_named
from common.data.synthetic import VIEWS, make_synthetic
from common.errors import UserError
from common.task import Task

#: Called with the stage, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], None]

#: The format that reads no file.
SYNTHETIC = "synthetic"

_CHUNK = 1 << 22


@dataclass(frozen=True)
class ReadSource:
    """What was read from a source."""

    source: Source
    task: Task
    #: The format, how it was recognised, and the name, size and SHA-256 of every file.
    about: Mapping[str, Any]


def read(config: PrepareConfig, watch: Watch) -> ReadSource:
    """Read the source that a configuration names; `UserError` if it cannot be read."""
    check_format(config.format, more=[SYNTHETIC])
    task = Task.multilabel if config.task is Labels.emotion else Task(config.task)
    if config.format == SYNTHETIC:
        about = {"format": SYNTHETIC, "why": "", "files": []}
        return ReadSource(_synthetic(config, task), task, about)
    if config.path is None:
        raise UserError("path is required; give it as path=…, or format=synthetic")
    paths = paths_named("path", config.path)
    files = [_fingerprint(path, watch) for path in _files(paths)]
    watch("reading", 0, 1)
    settings = ReadSettings(
        task=task,
        emotions=config.task is Labels.emotion,
        modalities=tuple(config.modalities),
        group=config.group,
        context=config.context,
        tabular=tuple(config.tabular),
        max_seq_len=config.max_seq_len,
        labels=tuple(config.labels),
        arrays=config.arrays,
    )
    source, name, why = read_source(paths, config.format, settings)
    if name == "table" and paths[0].is_file():
        # The files of a folder are all fingerprinted already.
        files += [_fingerprint(path, watch) for path in array_files(paths[0], settings).values()]
    watch("reading", 1, 1)
    for modality in source.items.sequences:
        check_modality_name(modality)
    check_tabular(source.items, settings)
    if len(source.items) == 0:
        raise UserError(f"{paths[0]}: no item is left after cleaning")
    return ReadSource(source, task, {"format": name, "why": why, "files": files})


def _synthetic(config: PrepareConfig, task: Task) -> Source:
    made = SyntheticConfig(
        task=task,
        modalities=config.modalities or list(VIEWS),
        max_seq_len=config.max_seq_len,
    )
    items = make_synthetic(made, config.seed, prefix="")
    return Source(items, np.full(len(items), "", dtype="U10"))


def _files(paths: list[Path]) -> list[Path]:
    """Return the files at some paths; those of a folder sorted by name."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    listed = [[path] if path.is_file() else sorted(path.iterdir()) for path in paths]
    return [file for files in listed for file in files if file.is_file()]


def _fingerprint(path: Path, watch: Watch) -> dict[str, Any]:
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                watch(f"hashing {path.name}", done, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    sha256 = digest.hexdigest()
    about = {"name": path.name, "bytes": size, "sha256": sha256}
    known = PUBLISHED.get(sha256)
    return about | ({"known": f"{known} of MMSA"} if known else {})
