"""From a source to a folder of shards: read, split, deal out, write."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import atomic_folder
from common.clients import clients_per_modality
from common.config import Precision, PrepareConfig, Split
from common.data.dataset import IntArray, MultimodalDataset
from common.data.federation import count_outputs
from common.data.manifest import MANIFEST, Manifest, write_manifest
from common.data.partition import Dealt, Sides, deal, split_groups
from common.data.shards import VERSION, info_of, write_shard
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task
from server.preparation.reading import ReadSource, Watch, read
from server.preparation.split import split_by_source
from server.preparation.statistics import (
    bin_edges,
    label_bins,
    label_statistics,
    sequence_statistics,
)

#: Name of a shard to its items and modalities.
Parts = dict[str, tuple[IntArray, list[str]]]


def prepare(
    config: PrepareConfig, watch: Watch, draw: Callable[[Manifest], Mapping[str, bytes]]
) -> Manifest:
    """Prepare a folder of shards.

    Parameters
    ----------
    config
        Source, target and settings.
    watch
        Follows the progress.
    draw
        Makes further files for the folder, by name, such as a picture.

    Returns
    -------
    Manifest
        What was written.

    Raises
    ------
    UserError
        If the source cannot be read, split or dealt out as asked, or the folder cannot be written.
    """
    if not config.out:
        raise UserError("out is required; give it as out=…, or describe=true to write nothing")
    out = Path(config.out).absolute()
    with atomic_folder(out, config.overwrite, MANIFEST) as folder:
        manifest = _write(config, read(config, watch), folder, watch)
        write_manifest(folder, manifest)
        for name, content in draw(manifest).items():
            (folder / name).write_bytes(content)
    return manifest


def _write(config: PrepareConfig, origin: ReadSource, folder: Path, watch: Watch) -> Manifest:
    """Split, deal out and write what was read."""
    items, task = origin.source.items, origin.task
    outputs = count_outputs(task, items.labels)
    edges = bin_edges(items.labels) if task is Task.regression else None
    dtype = None if config.dtype is Precision.auto else np.dtype(config.dtype.value)

    def counts(part: MultimodalDataset) -> dict[str, Any]:
        labels = label_statistics(part.labels, task, outputs, edges)
        return {"items": len(part), "groups": len(np.unique(part.groups)), "labels": labels}

    def shard(name: str, part: MultimodalDataset) -> dict[str, Any]:
        path = folder / f"{name}{SUFFIX}"
        seal = write_shard(path, part, info_of(part, name, task, outputs), dtype)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "seal": seal, "bytes": path.stat().st_size, **counts(part)}

    sides = _split(config, origin)
    dealt = _deal(config, origin, sides)
    shards, left_out = _write_shards(items, _parts(items, dealt, sides), shard, watch)
    cleaning = {**items.cleaning, **items.not_finite()}
    if left_out:
        cleaning["items dealt to a client whose modality they lack, left out"] = left_out
    index_of = {"train": sides.train, "validation": sides.validation, "test": sides.test}
    bins = label_bins(items.labels, task, items.label_names, outputs)
    return Manifest(
        version=VERSION,
        source=origin.about,
        task=task,
        outputs=outputs,
        label_names=items.label_names,
        modalities={name: sequence_statistics(each) for name, each in items.sequences.items()},
        sides={name: counts(items.select(index)) for name, index in index_of.items()},
        settings=_settings(config, dealt) | {"label_bins": bins},
        cleaning=cleaning,
        warnings=sides.warnings,
        shards=shards,
    )


def _write_shards(
    items: MultimodalDataset,
    parts: Parts,
    write: Callable[[str, MultimodalDataset], dict[str, Any]],
    watch: Watch,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Write every shard; return their entries in the manifest and the items that were left out."""
    if not parts:
        raise UserError("nothing to write: no clients and no items for evaluation")
    shards, left_out = {}, 0
    for number, (name, (index, modalities)) in enumerate(parts.items()):
        watch("writing shards", number, len(parts))
        part = items.select(index).in_modalities(modalities)
        present = part.select(np.flatnonzero(part.present()))
        left_out += len(part) - len(present)
        if len(present) == 0:
            raise UserError(f"{name} gets no item that has {', '.join(modalities)}")
        shards[f"{name}{SUFFIX}"] = write(name, present)
    watch("writing shards", len(parts), len(parts))
    return shards, left_out


def _split(config: PrepareConfig, origin: ReadSource) -> Sides:
    rule, items = config.split, origin.source.items
    if rule is Split.auto:
        rule = Split.source if (origin.source.splits != "").all() else Split.random
    if rule is Split.source:
        return split_by_source(origin.source, config.validation_fraction, config.seed)
    if rule is Split.none:
        none = np.empty(0, dtype=np.int64)
        return Sides(np.arange(len(items)), none, none)
    return split_groups(items, config.validation_fraction, config.test_fraction, config.seed)


def _deal(config: PrepareConfig, origin: ReadSource, sides: Sides) -> Dealt:
    given = {name: count for name, count in config.clients.items() if count is not None}
    if given and not any(given.values()):
        return {}
    items = origin.source.items
    counts = clients_per_modality(config.clients, tuple(items.sequences))
    if config.partition.name == "natural" and given:
        raise UserError(
            "partition=natural makes each group a client, so clients.* says nothing; leave it "
            "out, or use partition=groups"
        )
    return deal(items, sides.train, counts, config.partition, origin.task, config.seed)


def _parts(items: MultimodalDataset, dealt: Dealt, sides: Sides) -> Parts:
    """Return the name of every shard with its items and their modalities."""
    clients = {str(key): (index, [key.modality]) for key, index in dealt.items()}
    evaluation = {
        name: (index, list(items.sequences))
        for name, index in (("validation", sides.validation), ("test", sides.test))
        if len(index)
    }
    return clients | evaluation


def _settings(config: PrepareConfig, dealt: Dealt) -> dict[str, Any]:
    """Return the settings that decide the result; paths of this machine are left out."""
    here = ("path", "out", "describe", "overwrite")
    settings = {name: value for name, value in asdict(config).items() if name not in here}
    settings["arrays"] = {name: Path(path).name for name, path in config.arrays.items()}
    settings["clients"] = dict(Counter(key.modality for key in dealt))
    return settings
