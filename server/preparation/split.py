"""Which items of a source are for training, validation and test."""

import numpy as np
from numpy.typing import NDArray

from common.config import PrepareConfig, Split
from common.data.dataset import MultimodalDataset
from common.data.partition import Sides, partition_groups, split_groups
from common.data.source import Source
from common.errors import UserError
from common.seeding import generator


def split_source(source: Source, config: PrepareConfig) -> Sides:
    """Split as ``split`` says; `UserError` if that cannot be done."""
    rule, items = config.split, source.items
    if rule is Split.auto:
        rule = Split.source if (source.splits != "").all() else Split.random
    if rule is Split.source:
        return split_by_source(source, config.validation_fraction, config.seed)
    if rule is Split.none:
        none = np.empty(0, dtype=np.int64)
        return Sides(np.arange(len(items)), none, none)
    return split_groups(items, config.validation_fraction, config.test_fraction, config.seed)


def split_by_source(source: Source, validation_fraction: float, seed: int) -> Sides:
    """Split as the source says; without a validation side, one is taken from train.

    Raises `UserError` if the source leaves an item without a side, or has no train or test items.
    """
    if (source.splits == "").any():
        raise UserError("the source does not say which items are for training and which for test")
    train, validation, test = (
        np.flatnonzero(source.splits == name) for name in ("train", "validation", "test")
    )
    for name, side in (("train", train), ("test", test)):
        if len(side) == 0:
            raise UserError(f"the source has no {name} items; split=random makes a split")
    if len(validation) == 0 and validation_fraction > 0:
        shares = [1 - validation_fraction, validation_fraction]
        rng = generator(seed, "validation")
        kept, held_back = partition_groups(source.items.groups[train], shares, rng)
        train, validation = train[kept], train[held_back]
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
