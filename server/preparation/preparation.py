"""From a source to a folder of shards: read, split, deal out, write."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.atomic import atomic_folder
from common.clients import check_modality_name, clients_per_modality
from common.config import Labels, Precision, PrepareConfig, Split, SyntheticConfig, label_columns
from common.data.dataset import LabelArray, MultimodalDataset
from common.data.federation import count_outputs
from common.data.formats.array_files import array_files
from common.data.formats.layouts import files_in
from common.data.formats.pickled import PUBLISHED
from common.data.formats.registry import check_format, read_source
from common.data.labels import label_warnings
from common.data.manifest import MANIFEST, Manifest, write_manifest
from common.data.partition import Dealt, Sides, deal, split_source
from common.data.shards import VERSION, ShardInfo, info_of, write_shard
from common.data.source import (
    Reading,
    ReadSettings,
    Source,
    check_tabular,
    check_there,
    paths_named,
)
from common.data.synthetic import VIEWS, make_synthetic
from common.errors import UserError, reason
from common.metrics import is_sentiment
from common.seal import SUFFIX
from common.task import Task
from server.preparation.statistics import LabelBins, sequence_statistics

#: Called with the stage, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], None]

#: The format that reads no file.
SYNTHETIC = "synthetic"

#: Sentiment is from minus this to this.
SENTIMENT = 3

_CHUNK = 1 << 22


@dataclass(frozen=True)
class ReadSource:
    """What was read from a source."""

    source: Source
    task: Task
    #: The format, how it was recognised, and the name, size and SHA-256 of every file.
    about: Mapping[str, Any]
    reading: Reading


def prepare(
    config: PrepareConfig, watch: Watch, draw: Callable[[Manifest], Mapping[str, bytes]]
) -> Manifest:
    """Prepare a folder of shards.

    `watch` follows the progress. `draw` makes further files for the folder, by name, such as a
    picture.

    Raises `UserError` if the source cannot be used as asked, or the folder cannot be written.
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


def clipped_labels(task: Task, labels: LabelArray, sides: Sides) -> tuple[str, ...]:
    """Warn where labels lie beyond those that evaluation takes for sentiment, and clips to."""
    beyond = int((np.abs(labels) > SENTIMENT).sum())
    if task is not Task.regression or beyond == 0:
        return ()
    if not is_sentiment(labels[np.concatenate([sides.validation, sides.test])]):
        return ()
    return (
        f"{beyond} labels lie beyond [-3, 3], and those for evaluation do not, so that they count "
        "as sentiment: acc5 and acc7 clip what is predicted to that",
    )


def _write(config: PrepareConfig, origin: ReadSource, folder: Path, watch: Watch) -> Manifest:
    """Split, deal out and write what was read."""
    items, task = origin.source.items, origin.task
    outputs = count_outputs(task, items.label_names, items.labels)
    bins = LabelBins.of(items.labels, task, items.label_names, outputs)
    sides = split_source(origin.source, config, config.seed)
    dealt = _deal(config, origin, sides.train)
    parts, left_out = _parts(items, dealt, sides)
    infos = {
        name: info_of(part, name.removesuffix(SUFFIX), task, outputs, origin.reading)
        for name, part in parts.items()
    }
    cleaning = {**items.cleaning, **items.not_finite()}
    if left_out:
        cleaning["items dealt to a client whose modality they lack, left out"] = left_out
    chosen = {"train": sides.train, "validation": sides.validation, "test": sides.test}
    # The settings that decide the result; paths of this machine are left out.
    here = ("path", "out", "describe", "overwrite", *vars(origin.reading))
    settings = {name: value for name, value in asdict(config).items() if name not in here}
    settings["arrays"] = {name: Path(path).name for name, path in config.arrays.items()}
    settings["clients"] = dict(Counter(key.modality for key in dealt))
    return Manifest(
        version=VERSION,
        source=origin.about,
        task=task,
        outputs=outputs,
        label_names=items.label_names,
        modalities={name: sequence_statistics(seqs) for name, seqs in items.sequences.items()},
        sides={name: _counts(items.select(index), bins) for name, index in chosen.items()},
        settings=settings | {"label_bins": bins.names},
        reading=origin.reading,
        cleaning=cleaning,
        warnings=(
            *label_warnings(task, items.labels, items.label_names),
            *clipped_labels(task, items.labels, sides),
            *sides.warnings,
        ),
        shards=_write_shards(folder, parts, infos, bins, config.dtype, watch),
    )


def _write_shards(
    folder: Path,
    parts: Mapping[str, MultimodalDataset],
    infos: Mapping[str, ShardInfo],
    bins: LabelBins,
    precision: Precision,
    watch: Watch,
) -> dict[str, dict[str, Any]]:
    """Write every shard and return its entry in the manifest."""
    dtype = None if precision is Precision.auto else np.dtype(precision.value)
    shards = {}
    for number, (name, part) in enumerate(parts.items()):
        watch("writing shards", number, len(parts))
        seal = write_shard(folder / name, part, infos[name], dtype)
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        shards[name] = {"sha256": digest, "seal": seal, "bytes": size, **_counts(part, bins)}
    watch("writing shards", len(parts), len(parts))
    return shards


def _counts(part: MultimodalDataset, bins: LabelBins) -> dict[str, Any]:
    groups = len(np.unique(part.groups))
    return {"items": len(part), "groups": groups, "labels": bins.statistics(part.labels)}


def _deal(config: PrepareConfig, origin: ReadSource, train: NDArray[np.int64]) -> Dealt:
    given = {name: count for name, count in config.clients.items() if count is not None}
    if (given and not any(given.values())) or config.split is Split.evaluation:
        return {}
    items = origin.source.items
    counts = clients_per_modality(config.clients, tuple(items.sequences))
    if config.partition.name == "natural" and given:
        raise UserError(
            "partition=natural makes each group a client, so clients.* says nothing; leave it "
            "out, or use partition=groups"
        )
    return deal(items, train, counts, config.partition, origin.task, config.seed)


def _parts(
    items: MultimodalDataset, dealt: Dealt, sides: Sides
) -> tuple[dict[str, MultimodalDataset], int]:
    """Return every shard's items by its file's name, and how many items lack their modality."""
    everything = list(items.sequences)
    chosen = {str(key): (index, [key.modality]) for key, index in dealt.items()}
    for name, index in (("validation", sides.validation), ("test", sides.test)):
        if len(index):
            chosen[name] = (index, everything)
    if not chosen:
        raise UserError("nothing to write: no clients and no items for evaluation")
    parts, left_out = {}, 0
    for name, (index, modalities) in chosen.items():
        part = items.select(index).in_modalities(modalities)
        present = np.flatnonzero(part.present())
        if len(present) == 0:
            raise UserError(f"{name} gets no item that has {', '.join(modalities)}")
        left_out += len(part) - len(present)
        parts[f"{name}{SUFFIX}"] = part.select(present)
    return parts, left_out


# Reading -----------------------------------------------------------------------------------------


def read(config: PrepareConfig, watch: Watch) -> ReadSource:
    """Read the source that a configuration names; `UserError` if it cannot be read."""
    check_format(config.format, more=[SYNTHETIC])
    task = Task.multilabel if config.task is Labels.emotion else Task(config.task)
    if config.format == SYNTHETIC:
        about: dict[str, Any] = {"format": SYNTHETIC, "why": "", "files": []}
        return ReadSource(_synthetic(config, task), task, about, Reading(config.max_seq_len))
    if config.path is None:
        raise UserError("path is required; give it as path=…, or format=synthetic")
    paths = paths_named("path", config.path)
    chosen = _files(paths)
    settings = ReadSettings(
        task=task,
        emotions=config.task is Labels.emotion,
        modalities=tuple(config.modalities),
        group=config.group,
        context=config.context,
        tabular=tuple(config.tabular),
        max_seq_len=config.max_seq_len,
        labels=label_columns(config),
        classes=tuple(config.classes),
        arrays=config.arrays,
    )
    other = ThreadPoolExecutor(1)
    try:
        hashing = [other.submit(_fingerprint, path, watch) for path in chosen]
        watch("reading", 0, 1)
        source, name, why = read_source(paths, config.format, settings)
        files = [each.result() for each in hashing]
    finally:
        other.shutdown(cancel_futures=True)
    if name == "table" and paths[0].is_file():
        # The files of a folder are all fingerprinted already.
        files += [_fingerprint(path, watch) for path in array_files(paths[0], settings).values()]
    watch("reading", 1, 1)
    for modality in source.items.sequences:
        check_modality_name(modality)
    check_tabular(source.items, settings)
    if len(source.items) == 0:
        raise UserError(f"{paths[0]}: no item is left after cleaning")
    about = {"format": name, "why": why, "files": files}
    reading = replace(settings.reading, extractors=source.extractors)
    return ReadSource(source, task, about, reading)


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
        check_there(path)
    listed = [[path] if path.is_file() else files_in(path) for path in paths]
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
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    sha256 = digest.hexdigest()
    about = {"name": path.name, "bytes": size, "sha256": sha256}
    known = PUBLISHED.get(sha256)
    return about | ({"known": f"{known} of MMSA"} if known else {})
