"""From a configuration to what each side of the federation holds.

A joint dataset is split by group into train, validation and test. The server keeps the last two,
with every modality; the train items are dealt out to clients, each item to one client, of which
only one modality is kept. A deployed site brings a file of its own instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from common.clients import ClientKey, check_modality_name, clients_per_modality
from common.config import Config, NpzConfig, SyntheticConfig
from common.data.dataset import (
    IntArray,
    LabelArray,
    MultimodalDataset,
    Sequences,
    describe_shape,
)
from common.data.formats.npz import read_npz
from common.data.partition import partition_groups
from common.data.synthetic import VIEWS, make_synthetic
from common.errors import UserError
from common.seeding import generator
from common.task import Task


@dataclass(frozen=True)
class ClientData:
    """What one client holds: items in one modality, split by group for its own validation.

    Attributes
    ----------
    modality
        Its name.
    sequences, labels
        All of the client's items.
    groups
        Number of each item's group.
    train, validation
        Indices into them; `validation` is empty if the client has a single group.
    """

    modality: str
    sequences: Sequences
    labels: LabelArray
    groups: IntArray
    train: IntArray
    validation: IntArray


@dataclass(frozen=True)
class JointDataset:
    """A dataset that holds every modality, split for a simulated federation.

    Attributes
    ----------
    modalities
        In order.
    items
        Everything that was read from the source.
    clients
        Client to its train items, indices into `items`.
    validation, test
        The server's multimodal items.
    """

    modalities: tuple[str, ...]
    items: MultimodalDataset
    clients: Mapping[ClientKey, IntArray]
    validation: MultimodalDataset
    test: MultimodalDataset

    @property
    def cleaning(self) -> dict[str, int]:
        """What was cleaned and how many times: dropped items, values that were not finite."""
        counts = dict(self.items.cleaning)
        for name, sequences in self.items.sequences.items():
            bad = int((~np.isfinite(sequences.values[sequences.rows()])).sum())
            if bad:
                counts[f"{name} values not finite, set to the mean"] = bad
        return counts


def read_items(config: Config) -> MultimodalDataset:
    """Read or make the joint dataset that ``dataset.*`` names.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    dataset = config.dataset
    if isinstance(dataset, SyntheticConfig):
        unknown = sorted(set(dataset.modalities) - set(VIEWS))
        if unknown or not dataset.modalities:
            raise UserError(
                f"dataset.modalities={dataset.modalities}: the synthetic dataset has "
                f"{', '.join(VIEWS)}"
            )
        if dataset.task is not Task.regression:
            raise UserError(f"dataset.task={dataset.task}: the synthetic dataset has regression")
        return make_synthetic(dataset, config.seed)
    return read_npz(_paths(cast(NpzConfig, dataset).path), cast(NpzConfig, dataset))


def load_joint(config: Config) -> JointDataset:
    """Load the dataset and split it over the server and ``clients.*``.

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
    modalities = tuple(items.sequences)
    for name in modalities:
        check_modality_name(name)
    counts = clients_per_modality(config.clients, modalities)
    keys = [ClientKey(name, part) for name, count in counts.items() for part in range(count)]
    train, validation, test = _split(items, config)
    try:
        parts = partition_groups(
            items.groups[train], [1.0] * len(keys), generator(config.seed, "clients")
        )
    except UserError as error:
        raise UserError(
            f"{len(keys)} clients are too many for the train items: {error}; use fewer clients or "
            "more data"
        ) from error
    clients = {key: train[part] for key, part in zip(keys, parts, strict=True)}
    return JointDataset(modalities, items, clients, validation, test)


def _paths(setting: object) -> list[str]:
    paths = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"dataset.path={setting}: expected a path or a list of paths")
    return cast(list[str], paths)


def _split(
    items: MultimodalDataset, config: Config
) -> tuple[IntArray, MultimodalDataset, MultimodalDataset]:
    """Return the train items of the joint dataset, and the server's validation and test sets."""
    dataset = config.dataset
    validation_share, test_share = dataset.validation_fraction, dataset.test_fraction
    test_path = getattr(dataset, "test_path", None)
    if test_path is not None:
        test = read_npz([test_path], cast(NpzConfig, dataset), tuple(items.sequences))
        _check_test_set(items, test, test_path)
        test_share = 0.0
    shares = {
        "train": 1 - validation_share - test_share,
        "validation": validation_share,
        "test": test_share,
    }
    used = [name for name, share in shares.items() if share > 0]
    parts = partition_groups(
        items.groups, [shares[name] for name in used], generator(config.seed, "split")
    )
    none = np.empty(0, dtype=np.int64)
    index = dict.fromkeys(shares, none) | dict(zip(used, parts, strict=True))
    if test_path is None:
        test = items.select(index["test"])
    return index["train"], items.select(index["validation"]), test


def _check_test_set(items: MultimodalDataset, test: MultimodalDataset, path: str) -> None:
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
    shared = set(items.groups.tolist()) & set(test.groups.tolist())
    if shared:
        raise UserError(
            f"{path} shares the group {min(shared)!r} with dataset.path: "
            "its test items would not be new"
        )


def joint_client_data(joint: JointDataset, key: ClientKey, config: Config) -> ClientData:
    """Return what one simulated client holds of the joint dataset.

    Raises
    ------
    UserError
        If ``clients.*`` has no such client.
    """
    if key not in joint.clients:
        raise UserError(f"there is no client {key}; clients.* gives {_names(joint.clients)}")
    items = joint.clients[key]
    return _client_data(
        key.modality,
        joint.items.sequences[key.modality].select(items),
        joint.items.labels[items],
        joint.items.groups[items],
        config,
        str(key),
    )


def site_client_data(path: str | Path, key: ClientKey, config: Config) -> ClientData:
    """Read the file of one deployed site, all of which is that site's.

    Raises
    ------
    UserError
        If it cannot be read or lacks the modality.
    """
    if not isinstance(config.dataset, NpzConfig):
        raise UserError(
            f"data={str(path)!r} needs dataset=npz, and the run has dataset={config.dataset.name}"
        )
    items = read_npz([path], config.dataset, [key.modality])
    sequences = items.sequences[key.modality]
    return _client_data(key.modality, sequences, items.labels, items.groups, config, str(key))


def _client_data(
    modality: str,
    sequences: Sequences,
    labels: LabelArray,
    groups: NDArray[np.str_],
    config: Config,
    name: str,
) -> ClientData:
    present = np.flatnonzero(sequences.lengths > 0)
    share = config.client.validation_fraction
    train, validation = present, np.empty(0, dtype=np.int64)
    if share > 0 and len(np.unique(groups[present])) > 1:
        parts = partition_groups(
            groups[present], [1 - share, share], generator(config.seed, "validation", name)
        )
        train, validation = (present[part] for part in parts)
    if len(train) == 0:
        raise UserError(f"client {name} has no item with {modality}")
    _, numbers = np.unique(groups, return_inverse=True)
    return ClientData(modality, sequences, labels, numbers, train, validation)


def _names(keys: Sequence[ClientKey] | Mapping[ClientKey, IntArray]) -> str:
    return ", ".join(str(key) for key in keys)
