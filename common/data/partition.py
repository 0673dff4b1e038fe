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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.clients import ClientKey
from common.config import DirichletConfig, PartitionConfig, PartitionRule, SizeConfig, Split
from common.data.dataset import IntArray, LabelArray, MultimodalDataset
from common.data.source import Source
from common.errors import UserError
from common.seeding import derive_seed, generator
from common.task import Task

Dealt = dict[ClientKey, IntArray]


def partition_groups(
    groups: NDArray[np.str_],
    shares: Sequence[float],
    rng: np.random.Generator,
    way_out: str = "use more data",
) -> list[IntArray]:
    """Divide items into parts of relative sizes `shares`, so that no group is in two of them.

    In random order, a group goes to the part that is the emptiest relative to its share. So equal
    parts differ by at most one group, and no part is empty. Returns the ascending indices of each
    part's items.

    Raises `UserError` if there are fewer groups than parts; it ends with the way out.
    """
    names, membership, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise UserError(
            f"{len(shares)} parts need at least {len(shares)} groups of items, which stay whole, "
            f"and there {'is' if len(names) == 1 else 'are'} {len(names)}; {way_out}"
        )
    filled = np.zeros(len(shares))
    part_of_group = np.empty(len(names), dtype=np.int64)
    for group in rng.permutation(len(names)):
        part = int(np.argmin(filled / np.asarray(shares)))
        part_of_group[group] = part
        filled[part] += sizes[group]
    part_of_item = part_of_group[membership]
    return [np.flatnonzero(part_of_item == part) for part in range(len(shares))]


class Sides(NamedTuple):
    """The items of each side of the split, as ascending indices."""

    train: IntArray
    validation: IntArray
    test: IntArray
    #: What the user should know about this split.
    warnings: tuple[str, ...] = ()


def split_groups(
    items: MultimodalDataset,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    way_out: str,
) -> Sides:
    """Split at random, whole groups at a time; `UserError` as `partition_groups`."""
    train_fraction = max(1 - validation_fraction - test_fraction, 0.0)
    shares = np.array([train_fraction, validation_fraction, test_fraction])
    sides = [np.empty(0, dtype=np.int64)] * len(shares)
    used = np.flatnonzero(shares > 0)
    rng = generator(seed, "split")
    parts = partition_groups(items.groups, shares[used].tolist(), rng, way_out)
    for side, part in zip(used, parts, strict=True):
        sides[side] = part
    train, validation, test = sides
    return Sides(train, validation, test)


def split_source(source: Source, settings: Any, seed: int, prefix: str = "") -> Sides:
    """Split as ``split`` of some settings says, with their fractions.

    A source without a validation side gets one of its train items. With ``evaluation`` all items
    are for validation and test. Raises `UserError` if the split is the source's and leaves an item
    without a side, or has no train or test items, or if there are too few groups.
    """
    rule, items = settings.split, source.items
    validation, test = settings.validation_fraction, settings.test_fraction
    way_out = (
        f"give {prefix}group=… another column, as {prefix}group=id where each item is by itself, "
        f"or {prefix}split=none where all items are for training, as at a site"
    )
    complete = bool((source.splits != "").all())
    trained = bool((source.splits == "train").any())
    if rule is Split.none:
        return split_groups(items, 0.0, 0.0, seed, way_out)
    if rule is Split.evaluation and not (complete and not trained):
        whole = validation + test
        return split_groups(items, validation / whole, 1 - validation / whole, seed, way_out)
    if rule is Split.random or (rule is Split.auto and not complete):
        return split_groups(items, validation, test, seed, way_out)
    if not complete:
        raise UserError("the source does not say which items are for training and which for test")
    return _sides_of(source, validation, seed, way_out, rule is Split.evaluation)


def _sides_of(source: Source, fraction: float, seed: int, way_out: str, untrained: bool) -> Sides:
    """Split as the source says; a share of the train items is for validation, if it has none."""
    train, validation, test = (
        np.flatnonzero(source.splits == name) for name in ("train", "validation", "test")
    )
    for name, side in (("train", train), ("test", test)):
        if len(side) == 0 and not (untrained and name == "train"):
            raise UserError(
                f"the source has no {name} items; split=random makes a split, and split=evaluation "
                "is for data that nobody trains on"
            )
    if len(validation) == 0 and fraction > 0:
        rng, divided = generator(seed, "validation"), test if untrained else train
        parts = partition_groups(
            source.items.groups[divided], [1 - fraction, fraction], rng, way_out
        )
        rest, validation = (divided[part] for part in parts)
        train, test = (train, rest) if untrained else (rest, test)
    return Sides(train, validation, test, shared_groups(source.items, source.splits))


def shared_groups(items: MultimodalDataset, splits: NDArray[np.str_]) -> tuple[str, ...]:
    """Warn where a source has groups on more than one side of its own split."""
    groups = [np.unique(items.groups[splits == name]) for name in np.unique(splits)]
    names, counts = np.unique(np.concatenate(groups), return_counts=True)
    shared = names[counts > 1]
    if len(shared) == 0:
        return ()
    return (
        f"the source's own split has {len(shared)} groups (videos, speakers) on more than one "
        f"side, as {shared[0]}: scores will be better than on new ones; split=random keeps groups "
        "apart",
    )


def deal(
    items: MultimodalDataset,
    train: IntArray,
    counts: Mapping[str, int],
    partition: PartitionConfig,
    task: Task,
    seed: int,
) -> Dealt:
    """Deal train items, given as indices, out to clients.

    `counts` has the number of clients of each modality, above 0; `natural` does not use it. Returns
    the ascending indices of each client's items.

    Raises `UserError` if there are too few items or groups for all clients or for `min_items`.
    """
    if partition.name is PartitionRule.groups:
        dealt = _by_groups(items.groups, train, counts, seed)
    elif partition.name is PartitionRule.natural:
        dealt = _natural(items, train, list(counts), partition, seed)
    else:
        dealt = _by_rule(items, train, counts, partition, task, seed)
    least = max(partition.min_items, 1)
    for key, part in dealt.items():
        if len(part) < least:
            raise UserError(
                f"client {key} gets {len(part)} items with partition={partition.name}, fewer than "
                f"partition.min_items={least}; use fewer clients, more data or another seed"
            )
    used = np.concatenate([*dealt.values()])
    assert len(np.unique(used)) == len(used), "an item was dealt to two clients"
    return dealt


def _by_groups(
    groups: NDArray[np.str_], train: IntArray, counts: Mapping[str, int], seed: int
) -> Dealt:
    """Deal out whole groups, about as many items to every client."""
    keys = [ClientKey(name, part) for name, count in counts.items() for part in range(count)]
    rng, way_out = generator(seed, "clients"), "use fewer clients or more data"
    try:
        parts = partition_groups(groups[train], [1.0] * len(keys), rng, way_out)
    except UserError as error:
        raise UserError(f"{len(keys)} clients are too many for the train items: {error}") from error
    return {key: train[part] for key, part in zip(keys, parts, strict=True)}


def _natural(
    items: MultimodalDataset, train: IntArray, names: list[str], rule: PartitionConfig, seed: int
) -> Dealt:
    """Make each group a client; groups go to modalities at random, evenly by items."""
    rng, way_out = generator(seed, "natural"), "use partition=groups, or fewer modalities"
    parts = partition_groups(items.groups[train], [1.0] * len(names), rng, way_out)
    dealt: Dealt = {}
    for name, part in zip(names, parts, strict=True):
        columns = {"group": items.groups[train[part]].tolist()}
        dealt |= _dealt(_partitioner(rule, 0, seed), name, train[part], columns)
    return dealt


def _by_rule(
    items: MultimodalDataset,
    train: IntArray,
    counts: Mapping[str, int],
    partition: PartitionConfig,
    task: Task,
    seed: int,
) -> Dealt:
    """Deal items to modalities at random, and those of a modality to its clients by the rule."""
    clients = np.cumsum(list(counts.values()))
    if len(train) < clients[-1]:
        raise UserError(f"{clients[-1]} clients are too many for {len(train)} train items")
    shuffled = generator(seed, "modalities").permutation(train)
    ends = clients * len(train) // clients[-1]
    dealt: Dealt = {}
    for (name, count), part in zip(counts.items(), np.split(shuffled, ends[:-1]), strict=True):
        partitioner = _partitioner(partition, count, derive_seed(seed, "partition", name))
        columns: dict[str, Any] = {}
        if isinstance(partition, DirichletConfig):
            columns["bin"] = _bins(items.labels[part], task, partition.bins)
        try:
            dealt |= _dealt(partitioner, name, part, columns)
        except ValueError as error:
            raise UserError(
                f"partition={partition.name} cannot deal {len(part)} items to {count} clients of "
                f"{name}: {' '.join(str(error).split())}"
            ) from error
    return dealt


def _partitioner(partition: PartitionConfig, count: int, seed: int) -> Any:
    try:
        import flwr_datasets.partitioner as flower
    except ImportError as error:
        raise UserError(
            "partitions other than groups need flwr-datasets: pip install 'ha-fedformer[prepare]'"
        ) from error
    match partition:
        case DirichletConfig():
            return flower.DirichletPartitioner(
                num_partitions=count,
                partition_by="bin",
                alpha=float(partition.alpha),
                min_partition_size=partition.min_items,
                self_balancing=False,
                seed=seed,
            )
        case SizeConfig():
            return getattr(flower, f"{partition.law.capitalize()}Partitioner")(count)
    if partition.name is PartitionRule.natural:
        return flower.NaturalIdPartitioner("group")
    return flower.IidPartitioner(count)


def _bins(labels: LabelArray, task: Task, bins: int) -> IntArray:
    """Return what items are skewed by: the label's quantile, class, or first label that is set."""
    if task is Task.regression:
        edges = np.unique(np.quantile(labels, np.linspace(0, 1, bins + 1)[1:-1]))
        return np.searchsorted(edges, labels, side="right")
    if task is Task.classification:
        return labels.astype(np.int64)
    first: IntArray = np.where(labels.any(axis=1), labels.argmax(axis=1), labels.shape[1])
    return first


def _dealt(partitioner: Any, modality: str, part: IntArray, columns: dict[str, Any]) -> Dealt:
    """Run a partitioner over some items and their metadata."""
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"item": part, **columns})
    # It warns about every draw that leaves a client too small (the last one raises an error) and
    # shows progress bars for what takes no time.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return {
            ClientKey(modality, number): np.sort(
                np.asarray(partitioner.load_partition(number)["item"], dtype=np.int64)
            )
            for number in range(partitioner.num_partitions)
        }
