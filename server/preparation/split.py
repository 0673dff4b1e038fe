"""The split that a source comes with."""

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.data.partition import Sides, partition_groups
from common.data.source import Source
from common.errors import UserError
from common.seeding import generator


def split_by_source(source: Source, validation_fraction: float, seed: int) -> Sides:
    """Split as the source says; what it has no validation side for is taken from train.

    Raises
    ------
    UserError
        If the source leaves an item without a side, or has no train or test items.
    """
    if (source.splits == "").any():
        raise UserError("the source does not say which items are for training and which for test")
    sides = {
        name: np.flatnonzero(source.splits == name) for name in ("train", "validation", "test")
    }
    for name in ("train", "test"):
        if len(sides[name]) == 0:
            raise UserError(f"the source has no {name} items; split=random makes a split")
    groups = source.items.groups
    if len(sides["validation"]) == 0 and validation_fraction > 0:
        train = sides["train"]
        kept, held_back = partition_groups(
            groups[train],
            [1 - validation_fraction, validation_fraction],
            generator(seed, "validation"),
        )
        sides |= {"train": train[kept], "validation": train[held_back]}
    warnings = shared_groups(source.items, source.splits)
    return Sides(sides["train"], sides["validation"], sides["test"], warnings)


def shared_groups(items: MultimodalDataset, splits: NDArray[np.str_]) -> tuple[str, ...]:
    """Warn where a source has groups on more than one side of its own split."""
    found = [np.unique(items.groups[splits == name]) for name in np.unique(splits)]
    names, counts = np.unique(np.concatenate(found), return_counts=True)
    shared = names[counts > 1]
    if len(shared) == 0:
        return ()
    return (
        f"the source's own split has {len(shared)} groups (videos, speakers) on more than one "
        f"side, as {shared[0]}: scores will be better than on new ones; split=random keeps groups "
        "apart",
    )
