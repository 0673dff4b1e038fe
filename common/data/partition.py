"""Who holds which items: whole groups, dealt out in proportion to shares."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.clients import ClientKey
from common.data.dataset import IntArray
from common.errors import UserError
from common.seeding import generator


def partition_groups(
    groups: NDArray[np.str_], shares: Sequence[float], rng: np.random.Generator
) -> list[IntArray]:
    """Deal groups out to parts so that no group is in two of them.

    Groups come in random order; each goes to the part that is the emptiest for its share, so equal
    parts differ by one group at most, and none is empty while there are enough groups.

    Parameters
    ----------
    groups
        (N,) group of each item.
    shares
        Relative size of each part, above 0.
    rng
        Decides the order.

    Returns
    -------
    list of arrays
        The items of each part, ascending.

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


def deal_groups(
    groups: NDArray[np.str_], train: IntArray, keys: Sequence[ClientKey], seed: int
) -> dict[ClientKey, IntArray]:
    """Deal whole groups of train items out to clients, about as many items to each.

    Raises
    ------
    UserError
        If there are fewer groups than clients.
    """
    try:
        parts = partition_groups(groups[train], [1.0] * len(keys), generator(seed, "clients"))
    except UserError as error:
        raise UserError(
            f"{len(keys)} clients are too many for the train items: {error}; use fewer clients or "
            "more data"
        ) from error
    return {key: train[part] for key, part in zip(keys, parts, strict=True)}
