"""From a configuration to what each side of the federation holds.

A dataset that holds every modality is split by group into train, validation and test. The server
keeps the last two, with every modality; the train items are dealt out to clients, each item to one
client, of which only one modality is kept. Shards were split and dealt out before, by
`utmp-prepare`. A deployed site brings a file of its own instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from common.clients import ClientKey, check_modality_name, clients_per_modality
from common.config import Config, NpzConfig, PartitionRule, ShardsConfig, SyntheticConfig
from common.data.dataset import (
    IntArray,
    LabelArray,
    MultimodalDataset,
    Sequences,
    describe_shape,
)
from common.data.formats.npz import read_npz
from common.data.partition import deal, partition_groups, split_groups
from common.data.shard_folder import load_shard_folder, read_listed_shard
from common.data.source import ReadSettings
from common.data.synthetic import VIEWS, make_synthetic
from common.errors import UserError
from common.seal import SUFFIX
from common.seeding import generator
from common.task import Task


@dataclass(frozen=True)
class ClientData:
    """What one client holds: items in one modality, split by group for its own validation.

    Attributes
    ----------
    modality
        Its name.
    task
        Kind of label.
    sequences, labels
        All of the client's items.
    groups
        Number of each item's group.
    train, validation
        Indices into them; `validation` is empty if the client has a single group.
    """

    modality: str
    task: Task
    sequences: Sequences
    labels: LabelArray
    groups: IntArray
    train: IntArray
    validation: IntArray


class FederatedDataset(Protocol):
    """What the server knows of the data, and where simulated clients find theirs."""

    @property
    def task(self) -> Task:
        """Kind of label."""

    @property
    def outputs(self) -> int:
        """Numbers that a model of these data predicts."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the outputs mean, where that is known."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Modality, in order, to the shape of its features' statistics."""

    @property
    def clients(self) -> Sequence[ClientKey]:
        """All clients, by modality."""

    @property
    def validation(self) -> MultimodalDataset:
        """Multimodal items for the curves."""

    @property
    def test(self) -> MultimodalDataset:
        """Multimodal items for the result."""

    @property
    def cleaning(self) -> Mapping[str, int]:
        """What was cleaned and how many times."""

    @property
    def warnings(self) -> Sequence[str]:
        """What a user should know before trusting a result."""

    def client_items(self, key: ClientKey) -> MultimodalDataset:
        """Return what a simulated client holds, in its modality."""


@dataclass(frozen=True)
class JointDataset:
    """A dataset that holds every modality, split for a simulated federation.

    Attributes
    ----------
    task
        Kind of label.
    items
        Everything that was read from the source.
    dealt
        Client to its train items, indices into `items`.
    validation, test
        The server's multimodal items.
    """

    task: Task
    items: MultimodalDataset
    dealt: Mapping[ClientKey, IntArray]
    validation: MultimodalDataset
    test: MultimodalDataset
    warnings: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Numbers that a model of these data predicts."""
        return count_outputs(self.task, self.items.labels, self.test.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the outputs mean, where that is known."""
        return self.items.label_names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality to the shape of its features' statistics."""
        return {name: each.statistics_shape for name, each in self.items.sequences.items()}

    @property
    def clients(self) -> tuple[ClientKey, ...]:
        """All clients, by modality."""
        return tuple(self.dealt)

    @property
    def cleaning(self) -> dict[str, int]:
        """What was cleaned and how many times: dropped items, values that were not finite."""
        return {**self.items.cleaning, **self.items.not_finite()}

    def client_items(self, key: ClientKey) -> MultimodalDataset:
        """Return the items dealt to a client, in its modality."""
        return self.items.select(self.dealt[key]).in_modalities([key.modality])


def count_outputs(task: Task, *labels: LabelArray) -> int:
    """Count the outputs that labels need: 1, or the number of classes or labels."""
    match task:
        case Task.regression:
            return 1
        case Task.classification:
            return max(int(each.max(initial=0)) for each in labels) + 1
        case Task.multilabel:
            return int(labels[0].shape[1])


def read_items(config: Config) -> MultimodalDataset:
    """Read or make the joint dataset that ``dataset.*`` names.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    dataset = config.dataset
    if isinstance(dataset, SyntheticConfig):
        if dataset.task is not Task.regression:
            raise UserError(f"dataset.task={dataset.task}: the synthetic dataset has regression")
        check_synthetic_modalities(dataset.modalities, "dataset.")
        return make_synthetic(dataset, config.seed)
    npz = cast(NpzConfig, dataset)
    items = read_npz(paths_of(npz.path, "dataset."), npz_settings(npz)).items
    unknown = sorted(set(npz.tabular) - set(items.sequences))
    if unknown:
        raise UserError(
            f"dataset.tabular: {unknown[0]!r} is not among {', '.join(items.sequences)}"
        )
    return items


def check_synthetic_modalities(modalities: Sequence[str], prefix: str) -> None:
    """Raise `UserError` for a modality that the synthetic dataset does not have."""
    if not modalities or set(modalities) - set(VIEWS):
        raise UserError(
            f"{prefix}modalities={list(modalities)}: the synthetic dataset has {', '.join(VIEWS)}"
        )


def npz_settings(dataset: NpzConfig, modalities: Sequence[str] | None = None) -> ReadSettings:
    """Return how ``dataset.*`` says that files are read."""
    return ReadSettings(
        task=dataset.task or Task.regression,
        modalities=tuple(modalities or dataset.modalities),
        group=dataset.group,
        context=dataset.context,
        tabular=tuple(dataset.tabular),
        max_seq_len=dataset.max_seq_len,
        prefix="dataset.",
    )


def load_federation(config: Config) -> FederatedDataset:
    """Load what ``dataset.*`` names, split and dealt out.

    Raises
    ------
    UserError
        If it cannot be read or does not fit ``clients.*``.
    """
    if isinstance(config.dataset, ShardsConfig):
        if config.partition.name is not PartitionRule.groups:
            raise UserError(
                f"partition={config.partition.name}: shards were dealt out by utmp-prepare; give "
                "partition to that command"
            )
        return load_shard_folder(config.dataset, config.clients)
    return load_joint(config)


def load_joint(config: Config) -> JointDataset:
    """Load a dataset that holds every modality and split it over the server and ``clients.*``.

    Returns
    -------
    JointDataset
        The same for the same configuration, whatever process loads it.

    Raises
    ------
    UserError
        If it cannot be read or is too small for so many clients.
    """
    items = read_items(config)
    for name in items.sequences:
        check_modality_name(name)
    counts = clients_per_modality(config.clients, tuple(items.sequences))
    train, validation, test = _split(items, config)
    task = config.dataset.task or Task.regression
    dealt = deal(items, train, counts, config.partition, task, config.seed)
    return JointDataset(task, items, dealt, validation, test)


def paths_of(setting: object, prefix: str) -> list[str]:
    """Return the paths that a setting names, one or several.

    Raises
    ------
    UserError
        If it names none.
    """
    paths = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{prefix}path={setting}: expected a path or a list of paths")
    return cast(list[str], paths)


def _split(
    items: MultimodalDataset, config: Config
) -> tuple[IntArray, MultimodalDataset, MultimodalDataset]:
    """Return the train items of the joint dataset, and the server's validation and test sets."""
    dataset = config.dataset
    if not isinstance(dataset, NpzConfig) or dataset.test_path is None:
        sides = split_groups(items, dataset.validation_fraction, dataset.test_fraction, config.seed)
        return sides.train, items.select(sides.validation), items.select(sides.test)
    test = read_npz([dataset.test_path], npz_settings(dataset, tuple(items.sequences))).items
    _check_test_set(items, test, dataset)
    sides = split_groups(items, dataset.validation_fraction, 0.0, config.seed)
    return sides.train, items.select(sides.validation), test


def _check_test_set(items: MultimodalDataset, test: MultimodalDataset, dataset: NpzConfig) -> None:
    path = str(dataset.test_path)
    for name, sequences in items.sequences.items():
        shapes = [each.statistics_shape for each in (sequences, test.sequences[name])]
        if shapes[0] != shapes[1]:
            here, there = map(describe_shape, shapes)
            raise UserError(f"{name} is {here} in dataset.path but {there} in {path}")
    if items.labels.shape[1:] != test.labels.shape[1:]:
        raise UserError(
            f"label is {items.labels.shape[1]} wide in dataset.path but {test.labels.shape[1]} in "
            f"{path}"
        )
    if dataset.group is None:
        same = Path(path).resolve() in {
            Path(each).resolve() for each in paths_of(dataset.path, "dataset.")
        }
        shared = {path} if same else set()
    else:
        shared = set(items.groups.tolist()) & set(test.groups.tolist())
    if shared:
        raise UserError(
            f"{path} shares the group {min(shared)!r} with dataset.path: "
            "its test items would not be new"
        )


def client_data_of(data: FederatedDataset, key: ClientKey, config: Config) -> ClientData:
    """Return what one simulated client holds.

    Raises
    ------
    UserError
        If there is no such client, or its items cannot be read.
    """
    if key not in data.clients:
        names = ", ".join(map(str, data.clients))
        raise UserError(f"there is no client {key}; clients.* gives {names}")
    found = _client_data(data.client_items(key), data.task, key, config)
    if key.part >= config.dataset.permuted_clients:
        return found
    return permuted(found, generator(config.seed, "permuted", str(key)))


def permuted(data: ClientData, rng: np.random.Generator) -> ClientData:
    """Give every item the label of another item of the client: a faulty site, for experiments."""
    return replace(data, labels=data.labels[rng.permutation(len(data.labels))])


def site_client_data(path: str | Path, key: ClientKey, config: Config) -> ClientData:
    """Read the file of one deployed site, a shard or an ``.npz``, all of which is that site's.

    Raises
    ------
    UserError
        If it cannot be read, lacks the modality, or has labels for another task than the run.
    """
    dataset = config.dataset
    if Path(path).suffix == SUFFIX:
        shard = read_listed_shard(Path(path))
        if key.modality not in shard.items.sequences:
            raise UserError(
                f"shard {path} holds {', '.join(shard.items.sequences)}, and this node is "
                f"{key.modality}: give it a shard of {key.modality}, or change modality in "
                "--node-config"
            )
        if dataset.task not in (None, shard.info.task):
            raise UserError(
                f"shard {path} was prepared for task={shard.info.task}, and the run has "
                f"dataset.task={dataset.task}"
            )
        items = shard.items.in_modalities([key.modality]).last_steps(dataset.max_seq_len)
        return _client_data(items, shard.info.task, key, config)
    if not isinstance(dataset, NpzConfig):
        raise UserError(
            f"data={str(path)!r} needs dataset=npz, and the run has dataset={dataset.name}; "
            "utmp-prepare makes a shard of it, which any run reads"
        )
    items = read_npz([path], npz_settings(dataset, [key.modality])).items
    return _client_data(items, dataset.task or Task.regression, key, config)


def _client_data(
    items: MultimodalDataset, task: Task, key: ClientKey, config: Config
) -> ClientData:
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
    _, numbers = np.unique(groups, return_inverse=True)
    return ClientData(key.modality, task, sequences, items.labels, numbers, train, validation)
