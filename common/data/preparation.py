"""From a source to a folder of shards: read, split, deal out, write."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import atomic_folder
from common.clients import check_modality_name, clients_per_modality
from common.config import SyntheticConfig
from common.config.prepare import Format, Labels, Precision, PrepareConfig, Split
from common.data.dataset import IntArray, LabelArray, MultimodalDataset
from common.data.federation import check_synthetic_modalities, count_outputs, paths_of
from common.data.formats.array_files import array_files
from common.data.formats.registry import read_source
from common.data.known_files import name_of
from common.data.manifest import MANIFEST, Manifest, write_manifest
from common.data.partitioners import Dealt, deal
from common.data.shards import VERSION, info_of, write_shard
from common.data.source import ReadSettings, Source
from common.data.split import Sides, split_by_source, split_groups
from common.data.statistics import bin_edges, label_bins, label_statistics, sequence_statistics
from common.data.synthetic import VIEWS, make_synthetic
from common.errors import UserError
from common.seal import SUFFIX
from common.task import Task

#: Told what is being done, how much of it is done, and how much there is.
Watch = Callable[[str, int, int], None]

_CHUNK = 1 << 22


@dataclass(frozen=True)
class ReadSource:
    """A source that was read.

    Attributes
    ----------
    source
        Its items and sides.
    task
        Kind of label.
    about
        Format, what it was recognised by, and of each file its name, size and SHA-256.
    """

    source: Source
    task: Task
    about: Mapping[str, Any]


def read(config: PrepareConfig, watch: Watch) -> ReadSource:
    """Read the source that a configuration names.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    task = Task.multilabel if config.task is Labels.emotion else Task(config.task)
    if config.format is Format.synthetic:
        return ReadSource(_synthetic(config), task, {"format": "synthetic", "why": "", "files": []})
    if config.path is None:
        raise UserError("path is required; give it as path=…, or format=synthetic")
    paths = [Path(path) for path in paths_of(config.path, "")]
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
        # A folder's files were all looked at before.
        files += [_fingerprint(path, watch) for path in array_files(paths[0], settings).values()]
    watch("reading", 1, 1)
    for modality in source.items.sequences:
        check_modality_name(modality)
    unknown = sorted(set(config.tabular) - set(source.items.sequences))
    if unknown:
        raise UserError(f"tabular: {unknown[0]!r} is not among {', '.join(source.items.sequences)}")
    if len(source.items) == 0:
        raise UserError(f"{paths[0]}: no item is left after cleaning")
    return ReadSource(source, task, {"format": name, "why": why, "files": files})


def _synthetic(config: PrepareConfig) -> Source:
    if config.task is not Labels.regression:
        raise UserError(f"task={config.task}: the synthetic dataset has regression")
    modalities = config.modalities or list(VIEWS)
    check_synthetic_modalities(modalities, "")
    made = SyntheticConfig(modalities=modalities, max_seq_len=config.max_seq_len)
    items = make_synthetic(made, config.seed)
    return Source(items, np.full(len(items), "", dtype="U10"))


def _files(paths: list[Path]) -> list[Path]:
    """Return the files that paths stand for; those of a folder by name."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    found = [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.iterdir()))
        if file.is_file()
    ]
    return found


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
    known = name_of(sha256)
    about = {"name": path.name, "bytes": size, "sha256": sha256}
    return about | ({"known": known} if known else {})


def prepare(
    config: PrepareConfig, watch: Watch, draw: Callable[[Manifest], Mapping[str, bytes]]
) -> Manifest:
    """Prepare a folder of shards.

    Parameters
    ----------
    config
        Where from, where to, how.
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
        If the source cannot be read, split or dealt out as asked, or the folder not be written.
    """
    if not config.out:
        raise UserError("out is required; give it as out=…, or describe=true to write nothing")
    out = Path(config.out).absolute()
    with atomic_folder(out, config.overwrite, MANIFEST) as folder:
        found = read(config, watch)
        manifest = _Writer(config, found, folder, watch).write()
        write_manifest(folder, manifest)
        for name, content in draw(manifest).items():
            (folder / name).write_bytes(content)
    return manifest


@dataclass
class _Writer:
    """Splits, deals out and writes what was read."""

    config: PrepareConfig
    found: ReadSource
    folder: Path
    watch: Watch

    def __post_init__(self) -> None:
        self.items = self.found.source.items
        self.task = self.found.task
        self.outputs = count_outputs(self.task, self.items.labels)
        self.edges = bin_edges(self.items.labels) if self.task is Task.regression else None

    def write(self) -> Manifest:
        sides = self.split()
        dealt = self.deal(sides)
        evaluation = {
            name: index
            for name, index in (("validation", sides.validation), ("test", sides.test))
            if len(index)
        }
        names = [*map(str, dealt), *evaluation]
        if not names:
            raise UserError("nothing to write: no clients and no items for evaluation")
        shards = {}
        left_out = 0
        for number, (name, items) in enumerate(self.parts(dealt, evaluation)):
            self.watch("writing shards", number, len(names))
            lengths = np.stack([each.lengths for each in items.sequences.values()])
            present = items.select(np.flatnonzero((lengths > 0).any(axis=0)))
            left_out += len(items) - len(present)
            if len(present) == 0:
                raise UserError(f"{name} gets no item that has {', '.join(items.sequences)}")
            shards[f"{name}{SUFFIX}"] = self.shard(name, present)
        self.watch("writing shards", len(names), len(names))
        return self.manifest(sides, dealt, shards, left_out)

    def split(self) -> Sides:
        config, splits = self.config, self.found.source.splits
        rule = config.split
        if rule is Split.auto:
            rule = Split.source if (splits != "").all() else Split.random
        if rule is Split.source:
            return split_by_source(self.found.source, config.validation_fraction, config.seed)
        if rule is Split.none:
            none = np.empty(0, dtype=np.int64)
            return Sides(np.arange(len(self.items)), none, none)
        return split_groups(
            self.items, config.validation_fraction, config.test_fraction, config.seed
        )

    def deal(self, sides: Sides) -> Dealt:
        given = {name: count for name, count in self.config.clients.items() if count is not None}
        if given and not any(given.values()):
            return {}
        names = tuple(self.items.sequences)
        counts = clients_per_modality(self.config.clients, names)
        partition = self.config.partition
        if partition.name == "natural" and given:
            raise UserError(
                "partition=natural makes each group a client, so clients.* says nothing; leave it "
                "out, or use partition=groups"
            )
        return deal(self.items, sides.train, counts, partition, self.task, self.config.seed)

    def parts(
        self, dealt: Dealt, evaluation: Mapping[str, IntArray]
    ) -> Iterator[tuple[str, MultimodalDataset]]:
        for key, index in dealt.items():
            yield str(key), self.items.select(index).in_modalities([key.modality])
        for name, index in evaluation.items():
            yield name, self.items.select(index)

    def shard(self, name: str, items: MultimodalDataset) -> dict[str, Any]:
        path = self.folder / f"{name}{SUFFIX}"
        info = info_of(items, name, self.task, self.outputs)
        dtype = None if self.config.dtype is Precision.auto else np.dtype(self.config.dtype.value)
        seal = write_shard(path, items, info, dtype)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "sha256": digest,
            "seal": seal,
            "bytes": path.stat().st_size,
            **self.counts(items),
        }

    def counts(self, items: MultimodalDataset) -> dict[str, Any]:
        labels: LabelArray = items.labels
        return {
            "items": len(items),
            "groups": len(np.unique(items.groups)),
            "labels": label_statistics(labels, self.task, self.outputs, self.edges),
        }

    def manifest(
        self, sides: Sides, dealt: Dealt, shards: dict[str, Any], left_out: int
    ) -> Manifest:
        items, config = self.items, self.config
        cleaning = {**items.cleaning, **items.not_finite()}
        if left_out:
            cleaning["items dealt to a client whose modality they lack, left out"] = left_out
        here = ("path", "out", "describe", "overwrite")
        settings = {name: value for name, value in asdict(config).items() if name not in here}
        settings["arrays"] = {name: Path(path).name for name, path in config.arrays.items()}
        settings["clients"] = _counted(dealt)
        settings["label_bins"] = label_bins(
            items.labels, self.task, items.label_names, self.outputs
        )
        index = {"train": sides.train, "validation": sides.validation, "test": sides.test}
        return Manifest(
            version=VERSION,
            source=self.found.about,
            task=self.task,
            outputs=self.outputs,
            label_names=items.label_names,
            modalities={name: sequence_statistics(each) for name, each in items.sequences.items()},
            sides={name: self.counts(items.select(each)) for name, each in index.items()},
            settings=settings,
            cleaning=cleaning,
            warnings=sides.warnings,
            shards=shards,
        )


def _counted(dealt: Dealt) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key in dealt:
        counts[key.modality] = counts.get(key.modality, 0) + 1
    return counts
