"""Which items go to which side of the split and to which client.

Each item goes to at most one client, in one modality. The rules are the partitioners of Flower
Datasets (https://flower.ai/docs/datasets) over the items' metadata; our own are `partition_groups`,
which balances whole groups by their number of items (no partitioner there does), and the random
deal of items to modalities, in proportion to their numbers of clients, before such a rule applies.

Notation: N items.
"""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.clients import ClientKey
from common.config import DirichletConfig, PartitionConfig, PartitionRule, SizeConfig
from common.data.dataset import IntArray, MultimodalDataset
from common.errors import UserError
from common.seeding import derive_seed, generator
from common.task import Task

Dealt = dict[ClientKey, IntArray]


def partition_groups(
    groups: NDArray[np.str_], shares: Sequence[float], rng: np.random.Generator
) -> list[IntArray]:
    """Divide items into parts so that no group is in two of them.

    In random order, a group goes to the part that is the emptiest relative to its share. So equal
    parts differ by at most one group, and no part is empty.

    Parameters
    ----------
    groups
        (N,) group of each item.
    shares
        Relative size of each part, above 0.
    rng
        Source of the random order.

    Returns
    -------
    list of arrays
        Indices of each part's items, ascending.

    Raises
    ------
    UserError
        If there are fewer groups than parts.
    """
    names, membership, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise UserError(
            f"{len(shares)} parts need at least {len(shares)} groups of items, "
            f"and there are {len(names)}"
        )
    filled = np.zeros(len(shares))
    part_of_group = np.empty(len(names), dtype=np.int64)
    for group in rng.permutation(len(names)):
        part = int(np.argmin(filled / np.asarray(shares)))
        part_of_group[group] = part
        filled[part] += sizes[group]
    part_of_item = part_of_group[membership]
    return [np.flatnonzero(part_of_item == part) for part in range(len(shares))]


@dataclass(frozen=True)
class Sides:
    """The items of each side of the split, as indices.

    Attributes
    ----------
    train, validation, test
        Ascending.
    warnings
        What the user should know about this split.
    """

    train: IntArray
    validation: IntArray
    test: IntArray
    warnings: tuple[str, ...] = ()


def split_groups(
    items: MultimodalDataset, validation_fraction: float, test_fraction: float, seed: int
) -> Sides:
    """Split at random, whole groups at a time.

    Raises
    ------
    UserError
        If there are fewer groups than sides.
    """
    shares = {
        "train": 1 - validation_fraction - test_fraction,
        "validation": validation_fraction,
        "test": test_fraction,
    }
    used = [name for name, share in shares.items() if share > 0]
    parts = partition_groups(
        items.groups, [shares[name] for name in used], generator(seed, "split")
    )
    none = np.empty(0, dtype=np.int64)
    index = dict.fromkeys(shares, none) | dict(zip(used, parts, strict=True))
    return Sides(index["train"], index["validation"], index["test"])


def deal(
    items: MultimodalDataset,
    train: IntArray,
    counts: Mapping[str, int],
    partition: PartitionConfig,
    task: Task,
    seed: int,
) -> Dealt:
    """Deal train items out to clients.

    Parameters
    ----------
    items
        All items.
    train
        Indices of the items to deal out.
    counts
        Modality to its number of clients, above 0; not used by `natural`.
    partition
        The rule.
    task
        Kind of label.
    seed
        Seed of the run.

    Returns
    -------
    dict
        Client to its items, ascending.

    Raises
    ------
    UserError
        If there are too few items or groups, or a client gets fewer than `min_items`.
    """
    if partition.name is PartitionRule.groups:
        keys = [ClientKey(name, part) for name, count in counts.items() for part in range(count)]
        dealt = _by_groups(items.groups, train, keys, seed)
    elif partition.name is PartitionRule.natural:
        dealt = _natural(items, train, list(counts), seed)
    else:
        dealt = _by_rule(items, train, counts, partition, task, seed)
    _check(dealt, partition)
    return dealt


def _check(dealt: Dealt, partition: PartitionConfig) -> None:
    used = np.concatenate([*dealt.values(), np.empty(0, dtype=np.int64)])
    assert len(np.unique(used)) == len(used), "an item was dealt to two clients"
    for key, part in dealt.items():
        if len(part) < max(partition.min_items, 1):
            raise UserError(
                f"client {key} gets {len(part)} items with partition={partition.name}, fewer than "
                f"partition.min_items={max(partition.min_items, 1)}; use fewer clients, more data "
                "or another seed"
            )


def _by_groups(
    groups: NDArray[np.str_], train: IntArray, keys: list[ClientKey], seed: int
) -> Dealt:
    """Deal out whole groups, about as many items to every client."""
    try:
        parts = partition_groups(groups[train], [1.0] * len(keys), generator(seed, "clients"))
    except UserError as error:
        raise UserError(
            f"{len(keys)} clients are too many for the train items: {error}; use fewer clients or "
            "more data"
        ) from error
    return {key: train[part] for key, part in zip(keys, parts, strict=True)}


def _natural(items: MultimodalDataset, train: IntArray, names: list[str], seed: int) -> Dealt:
    """Make each group a client; groups go to modalities at random, evenly by items."""
    parts = partition_groups(items.groups[train], [1.0] * len(names), generator(seed, "natural"))
    dealt: Dealt = {}
    for name, part in zip(names, parts, strict=True):
        found = _load(_flower().NaturalIdPartitioner("group"), items, train[part], None)
        dealt |= {ClientKey(name, number): each for number, each in enumerate(found)}
    return dealt


def _by_rule(
    items: MultimodalDataset,
    train: IntArray,
    counts: Mapping[str, int],
    partition: PartitionConfig,
    task: Task,
    seed: int,
) -> Dealt:
    if len(train) < sum(counts.values()):
        raise UserError(f"{sum(counts.values())} clients are too many for {len(train)} train items")
    shuffled = generator(seed, "modalities").permutation(train)
    ends = np.cumsum(list(counts.values())) * len(train) // max(sum(counts.values()), 1)
    dealt: Dealt = {}
    for (name, count), part in zip(counts.items(), np.split(shuffled, ends[:-1]), strict=True):
        partitioner = _partitioner(partition, count, derive_seed(seed, "partition", name))
        bins = _label_bins(items, part, partition, task)
        try:
            found = _load(partitioner, items, part, bins)
        except ValueError as error:
            raise UserError(
                f"partition={partition.name} cannot deal {len(part)} items to {count} clients of "
                f"{name}: {' '.join(str(error).split())}"
            ) from error
        dealt |= {ClientKey(name, number): each for number, each in enumerate(found)}
    return dealt


def _flower() -> Any:
    try:
        import flwr_datasets.partitioner
    except ImportError as error:
        raise UserError(
            "partitions other than groups need flwr-datasets: pip install 'ha-fedformer[prepare]'"
        ) from error
    return flwr_datasets.partitioner


def _partitioner(partition: PartitionConfig, count: int, seed: int) -> Any:
    flower = _flower()
    if isinstance(partition, DirichletConfig):
        return flower.DirichletPartitioner(
            num_partitions=count,
            partition_by="bin",
            alpha=float(partition.alpha),
            min_partition_size=partition.min_items,
            self_balancing=False,
            seed=seed,
        )
    if isinstance(partition, SizeConfig):
        laws = {
            "linear": flower.LinearPartitioner,
            "square": flower.SquarePartitioner,
            "exponential": flower.ExponentialPartitioner,
        }
        return laws[partition.law](count)
    return flower.IidPartitioner(count)


def _label_bins(
    items: MultimodalDataset, part: IntArray, partition: PartitionConfig, task: Task
) -> IntArray | None:
    """Return the label by which items are skewed: quantile, class, or first label that is set."""
    if not isinstance(partition, DirichletConfig):
        return None
    labels = items.labels[part]
    match task:
        case Task.regression:
            shares = np.linspace(0, 1, partition.bins + 1)[1:-1]
            edges = np.unique(np.quantile(labels, shares))
            bins: IntArray = np.searchsorted(edges, labels, side="right")
            return bins
        case Task.classification:
            return labels.astype(np.int64)
        case Task.multilabel:
            first = labels.argmax(axis=1)
            firsts: IntArray = np.where(labels.any(axis=1), first, labels.shape[1])
            return firsts


def _load(
    partitioner: Any, items: MultimodalDataset, part: IntArray, bins: IntArray | None
) -> list[IntArray]:
    """Run a partitioner over the metadata of some items."""
    import datasets

    columns: dict[str, Any] = {"item": part, "group": items.groups[part].tolist()}
    if bins is not None:
        columns["bin"] = bins
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    # It warns about every draw that leaves a client too small (the last one raises an error) and
    # shows progress bars for what takes no time.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        parts = [
            np.asarray(partitioner.load_partition(number)["item"], dtype=np.int64)
            for number in range(partitioner.num_partitions)
        ]
    return [np.sort(each) for each in parts]
