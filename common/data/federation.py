"""From a configuration to what each side of the federation holds.

A dataset that holds every modality is split by group into train, validation and test. The server
keeps the last two, with every modality; the train items are dealt out to clients, each item to one
client, of which only one modality is kept. Shards were split and dealt out before, by
`utmp-prepare`. A deployed site brings a file of its own instead.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from common.clients import ClientKey, check_modality_name, clients_per_modality
from common.config import (
    Config,
    DatasetConfig,
    FileConfig,
    PartitionRule,
    ShardsConfig,
    Split,
    SyntheticConfig,
    label_columns,
)
from common.data.dataset import IntArray, LabelArray, MultimodalDataset, Sequences, describe_shape
from common.data.formats.registry import read_source
from common.data.labels import class_names, label_warnings
from common.data.manifest import MANIFEST, Manifest, read_listed_shard, read_manifest
from common.data.partition import Sides, deal, partition_groups, split_groups, split_source
from common.data.source import Reading, ReadSettings, Source, check_tabular, paths_named
from common.data.synthetic import make_synthetic
from common.errors import UserError, printable
from common.seal import SUFFIX
from common.seeding import generator
from common.task import Task


@dataclass(frozen=True)
class ClientData:
    """What one client holds: items in one modality, split by group for its own validation."""

    modality: str
    task: Task
    #: All of the client's items.
    sequences: Sequences
    labels: LabelArray
    #: Indices into the items; `validation` is empty if the client has a single group.
    train: IntArray
    validation: IntArray
    #: What the classes or labels are called, where that is known.
    label_names: tuple[str, ...] = ()
    #: Identity of what made the features; empty if that is not known.
    extractor: str = ""


@dataclass(frozen=True)
class FederatedDataset:
    """What the server knows of the data, and where simulated clients find theirs."""

    task: Task
    #: Numbers that a model of these data predicts.
    outputs: int
    #: What the outputs mean, where that is known.
    label_names: tuple[str, ...]
    #: Modality, in order, to the shape of its features' statistics.
    shapes: Mapping[str, tuple[int, ...]]
    #: All clients, by modality.
    clients: tuple[ClientKey, ...]
    #: The server's multimodal items, for the curves and for the result.
    validation: MultimodalDataset
    test: MultimodalDataset
    #: What was cleaned, to how many times: dropped items, values that were not finite.
    cleaning: Mapping[str, int]
    #: What a user should know before trusting a result.
    warnings: tuple[str, ...]
    #: How the items were read.
    reading: Reading
    #: Returns what a simulated client holds, in its modality; shards are read when asked for.
    client_items: Callable[[ClientKey], MultimodalDataset]
    #: In a line, what was read and how it was split; nothing for the embedded dataset.
    origin: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class JointDataset(FederatedDataset):
    """A dataset that holds every modality, split for a simulated federation."""

    #: Everything that was read from the source.
    items: MultimodalDataset
    #: Client to its train items, indices into `items`.
    dealt: Mapping[ClientKey, IntArray]


def count_outputs(task: Task, names: Sequence[str], *labels: LabelArray) -> int:
    """Count the outputs that labels need: 1, or the number of classes or labels.

    `names` are those of the classes, where they have some.
    """
    match task:
        case Task.regression:
            return 1
        case Task.classification:
            return max(len(names), *(int(part.max(initial=0)) + 1 for part in labels))
        case Task.multilabel:
            return int(labels[0].shape[1])


def load_federation(config: Config) -> FederatedDataset:
    """Load what ``dataset.*`` names, split and dealt out.

    Raises `UserError` if it cannot be read or does not fit ``clients.*``.
    """
    if not isinstance(config.dataset, ShardsConfig):
        return load_joint(config)
    if config.partition.name is not PartitionRule.groups:
        raise UserError(
            f"partition={config.partition.name}: shards were dealt out by utmp-prepare; give "
            "partition to that command"
        )
    return load_shard_folder(config.dataset, config.clients)


# A dataset that holds every modality -------------------------------------------------------------


def load_joint(config: Config) -> JointDataset:
    """Load a dataset that holds every modality and split it over the server and ``clients.*``.

    The result is the same for the same configuration, whatever process loads it.

    Raises `UserError` if it cannot be read or is too small for so many clients.
    """
    dataset, test = config.dataset, None
    source, origin = read_joint(config)
    items, task = source.items, dataset.task or Task.regression
    for name in items.sequences:
        check_modality_name(name)
    counts = clients_per_modality(config.clients, tuple(items.sequences))
    if isinstance(dataset, FileConfig) and dataset.test_path is not None:
        test = _read_test_set(items, dataset)
    sides = _sides(source, config)
    # Of a file of its own.
    of_test = (
        {f"{what}, in dataset.test_path": n for what, n in test.cleaning.items()} if test else {}
    )
    test = items.select(sides.test) if test is None else test
    dealt = dict.fromkeys(_keys(counts), sides.train)  # nothing, where nobody trains on them
    if len(sides.train):
        dealt = deal(items, sides.train, counts, config.partition, task, config.seed)
    return JointDataset(
        task=task,
        outputs=count_outputs(task, items.label_names, items.labels, test.labels),
        label_names=items.label_names,
        shapes={name: seqs.statistics_shape for name, seqs in items.sequences.items()},
        clients=tuple(dealt),
        validation=items.select(sides.validation),
        test=test,
        cleaning={**items.cleaning, **items.not_finite(), **of_test},
        warnings=(*label_warnings(task, items.labels, items.label_names), *sides.warnings),
        reading=replace(reading_of(dataset), extractors=source.extractors),
        client_items=lambda key: items.select(dealt[key]).in_modalities([key.modality]),
        items=items,
        dealt=dealt,
        origin=origin,
    )


def _keys(counts: Mapping[str, int]) -> list[ClientKey]:
    return [ClientKey(name, part) for name, count in counts.items() for part in range(count)]


def _sides(source: Source, config: Config) -> Sides:
    """Split a joint dataset; without a test side where that has a file of its own."""
    dataset = config.dataset
    if isinstance(dataset, FileConfig) and dataset.test_path is None:
        return split_source(source, dataset, config.seed, "dataset.")
    way_out = "give dataset.group=… another array, or leave it out where each item is by itself"
    test = 0.0 if isinstance(dataset, FileConfig) else dataset.test_fraction
    return split_groups(source.items, dataset.validation_fraction, test, config.seed, way_out)


def read_joint(config: Config) -> tuple[Source, str]:
    """Read or make the joint dataset that ``dataset.*`` names, and say in a line what it is.

    Raises `UserError` if that fails.
    """
    dataset = config.dataset
    if isinstance(dataset, SyntheticConfig):
        items = make_synthetic(dataset, config.seed)
        return Source(items, np.full(len(items), "")), ""
    file = cast(FileConfig, dataset)
    paths = paths_named("dataset.path", file.path)
    settings = file_settings(file)
    source, name, why = read_source(paths, file.format, settings)
    check_tabular(source.items, settings)
    own = (source.splits != "").all() and file.split in (Split.auto, Split.source)
    split = "as it says" if own and file.test_path is None else "by group"
    read = "" if file.format == name else f", read as {name} ({why})"
    return source, f"{', '.join(map(str, paths))}{read}; split {split}"


def reading_of(dataset: DatasetConfig) -> Reading:
    """Return how ``dataset.*`` of a dataset that holds every modality says that it is read."""
    if isinstance(dataset, FileConfig):
        return file_settings(dataset).reading
    return Reading(dataset.max_seq_len)


def file_settings(dataset: FileConfig, modalities: Sequence[str] | None = None) -> ReadSettings:
    """Return how ``dataset.*`` says that files are read."""
    return ReadSettings(
        task=dataset.task or Task.regression,
        classes=tuple(dataset.classes),
        modalities=tuple(modalities or dataset.modalities),
        group=dataset.group,
        context=dataset.context,
        tabular=tuple(dataset.tabular),
        labels=label_columns(dataset),
        arrays=dataset.arrays,
        max_seq_len=dataset.max_seq_len,
        prefix="dataset.",
    )


def _read_test_set(items: MultimodalDataset, dataset: FileConfig) -> MultimodalDataset:
    """Read ``dataset.test_path``, which must fit the items to train on and share no group."""
    path = str(dataset.test_path)
    settings = file_settings(dataset, tuple(items.sequences))
    if settings.task is Task.classification:  # as the items to train on number them
        outputs = count_outputs(settings.task, items.label_names, items.labels)
        settings = replace(settings, classes=class_names(items.label_names, outputs))
    test = read_source([Path(path)], "auto", settings)[0].items
    for name, sequences in items.sequences.items():
        shapes = [side.statistics_shape for side in (sequences, test.sequences[name])]
        if shapes[0] != shapes[1]:
            here, there = map(describe_shape, shapes)
            raise UserError(f"{name} is {here} in dataset.path but {there} in {path}")
    if items.labels.shape[1:] != test.labels.shape[1:]:
        raise UserError(
            f"label is {items.labels.shape[1]} wide in dataset.path but {test.labels.shape[1]} in "
            f"{path}"
        )
    if dataset.group is None:
        paths = [other.resolve() for other in paths_named("dataset.path", dataset.path)]
        shared = {path} if Path(path).resolve() in paths else set()
    else:
        shared = set(items.groups.tolist()) & set(test.groups.tolist())
    if shared:
        raise UserError(
            f"{path} shares the group {min(shared)!r} with dataset.path: "
            "its test items would not be new"
        )
    return test


# Shards ------------------------------------------------------------------------------------------


def load_shard_folder(dataset: ShardsConfig, clients: Mapping[str, int | None]) -> FederatedDataset:
    """Open a folder of shards; without a count in ``clients.*``, all of its clients take part.

    Raises `UserError` if the folder is not whole, or does not hold what is asked for.
    """
    folder = Path(dataset.path)
    manifest = read_manifest(folder)
    if dataset.task not in (None, manifest.task):
        raise UserError(
            f"dataset.task={dataset.task}: {folder} was prepared with task={manifest.task}"
        )
    names = list(dict.fromkeys(dataset.modalities or manifest.modalities))
    unknown = sorted(set(names) - set(manifest.modalities))
    if unknown:
        raise UserError(
            f"dataset.modalities: {folder} has no {unknown[0]!r}; it has "
            f"{', '.join(manifest.modalities)}"
        )
    reading = manifest.reading.shorter(dataset.max_seq_len)
    if dataset.max_seq_len not in (None, reading.max_seq_len):
        raise UserError(
            f"dataset.max_seq_len={dataset.max_seq_len}: {folder} was prepared with "
            f"max_seq_len={reading.max_seq_len}; prepare it again, or leave it out"
        )
    validation, test = (_read(dataset, side, manifest, names) for side in ("validation", "test"))
    return FederatedDataset(
        task=manifest.task,
        outputs=manifest.outputs,
        label_names=manifest.label_names,
        # The steps of a table that no item of one side has are those in the other.
        shapes={
            name: max(side.sequences[name].statistics_shape for side in (validation, test))
            for name in names
        },
        clients=_clients(manifest, names, clients, folder),
        validation=validation,
        test=test,
        cleaning={**manifest.cleaning, **_cut(validation, test)},
        warnings=manifest.warnings,
        reading=reading,
        client_items=lambda key: _read(dataset, str(key), manifest, [key.modality]),
        origin=printable(f"{folder}, shards of utmp-prepare ({manifest.source.get('format')})"),
    )


def _cut(*sides: MultimodalDataset) -> dict[str, int]:
    """Count what this run cut of the evaluation items; clients cut their own."""
    counts = sum((Counter(side.cleaning) for side in sides), Counter[str]())
    return {f"{what}, of validation and test": count for what, count in counts.items()}


def _clients(
    manifest: Manifest, names: list[str], clients: Mapping[str, int | None], folder: Path
) -> tuple[ClientKey, ...]:
    prepared = manifest.clients()
    there = {name: sum(key.modality == name for key in prepared) for name in names}
    # An evaluation folder has no client shards: its clients are sites with files of their own.
    counts = clients_per_modality(clients, names, there if prepared else None)
    for name, count in counts.items():
        if prepared and count > there[name]:
            raise UserError(
                f"clients.{name}={count}: {folder} was prepared for {there[name]}; prepare it "
                f"again with clients.{name}={count}"
            )
    return tuple(ClientKey(name, part) for name in names for part in range(counts[name]))


def _read(
    dataset: ShardsConfig, shard: str, manifest: Manifest, names: list[str]
) -> MultimodalDataset:
    """Read the shard of a client, or of an evaluation side, in some modalities."""
    folder, file = Path(dataset.path), f"{shard}{SUFFIX}"
    if file not in manifest.shards:
        raise UserError(f"{folder / MANIFEST} lists no {file}: {folder} was prepared without it")
    listed = read_listed_shard(folder / file, manifest)
    said, there = manifest, listed.info
    lacking = set(names) - set(there.modalities)
    if (there.task, there.outputs) != (said.task, said.outputs) or lacking:
        raise UserError(
            f"{folder / MANIFEST} says {', '.join(names)} for {said.task} with {said.outputs} "
            f"outputs, and {file} holds {', '.join(there.modalities)} for {there.task} with "
            f"{there.outputs}; prepare the data again"
        )
    return listed.items.in_modalities(names).last_steps(dataset.max_seq_len)


# What a client holds -----------------------------------------------------------------------------


def client_data_of(data: FederatedDataset, key: ClientKey, config: Config) -> ClientData:
    """Return what one simulated client holds.

    Raises `UserError` if there is no such client, or its items cannot be read.
    """
    if key not in data.clients:
        names = ", ".join(map(str, data.clients))
        raise UserError(f"there is no client {key}; clients.* gives {names}")
    client = split_client(data.client_items(key), data.task, key, config, data.reading)
    if key.part >= config.dataset.permuted_clients:
        return client
    # A faulty site, for experiments: every item has the label of another item of the client.
    order = generator(config.seed, "permuted", str(key)).permutation(len(client.labels))
    return replace(client, labels=client.labels[order])


def split_client(
    items: MultimodalDataset,
    task: Task,
    key: ClientKey,
    config: Config,
    reading: Reading | None = None,
) -> ClientData:
    """Return items as what a client holds: some are held back, for its own validation."""
    sequences, groups = items.sequences[key.modality], items.groups
    present = np.flatnonzero(sequences.present)
    share = config.client.validation_fraction
    train, validation = present, np.empty(0, dtype=np.int64)
    if share > 0 and len(np.unique(groups[present])) > 1:
        parts = partition_groups(
            groups[present], [1 - share, share], generator(config.seed, "validation", str(key))
        )
        train, validation = (present[part] for part in parts)
    if len(train) == 0:
        raise UserError(f"client {key} has no item with {key.modality}")
    extractor = reading.extractors.get(key.modality, "") if reading else ""
    rows = (sequences, items.labels, train, validation)
    return ClientData(key.modality, task, *rows, items.label_names, extractor)
