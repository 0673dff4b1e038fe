"""Batches of items with one modality, and of items with all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.batching import Padded, SequenceItems, batches, pad_all
from common.data.dataset import IntArray, MultimodalDataset, Sequences, concatenate
from common.data.federation import ClientData
from common.seeding import generator

#: The title of what has every modality, in losses as in scores.
MULTIMODAL = "multimodal"


class Batch(NamedTuple):
    """Labelled items.

    Attributes
    ----------
    title
        Whose loss theirs is: a modality's, or ``multimodal``.
    inputs
        Modality to the items' sequences.
    labels
        Theirs.
    """

    title: str
    inputs: Mapping[str, Padded]
    labels: Tensor


def pooled_items(sites: Sequence[ClientData]) -> SequenceItems:
    """Join the train items of clients of one modality, client after client."""
    parts = [_compact(site.sequences.select(site.train)) for site in sites]
    labels = np.concatenate([site.labels[site.train] for site in sites])
    return SequenceItems(concatenate(parts), labels, np.arange(len(labels)))


def _compact(sequences: Sequences) -> Sequences:
    """Drop the rows that are of no item: clients' sequences may be windows into one table."""
    rows = sequences.rows()
    return replace(
        sequences,
        values=sequences.values[rows],
        # A window's rows are all there, so they stay next to each other.
        starts=np.searchsorted(rows, sequences.starts),
    )


def one_modality_pass(
    items: Mapping[str, SequenceItems], batch_size: int, num_workers: int, seed: int
) -> Iterator[Batch]:
    """Iterate once over items that have one modality each, batches of all modalities mixed.

    Parameters
    ----------
    items
        Modality to its items.
    batch_size, num_workers
        See `common.data.batching.batches`.
    seed
        Shuffles each modality's items, as at a client, and the batches.
    """
    sources = {
        name: batches(each, batch_size, seed=seed, num_workers=num_workers)
        for name, each in items.items()
    }
    turns = [name for name, each in items.items() for _ in range(-(-len(each) // batch_size))]
    for turn in generator(seed, "turns").permutation(len(turns)):
        padded, labels = next(sources[turns[turn]])
        yield Batch(turns[turn], {turns[turn]: padded}, labels)


def paired_pass(items: MultimodalDataset, batch_size: int, seed: int) -> Iterator[Batch]:
    """Iterate once over items with all their modalities, in an order of that seed."""
    order = generator(seed, "order").permutation(len(items))
    for start in range(0, len(items), batch_size):
        chosen = order[start : start + batch_size]
        labels = torch.from_numpy(items.labels[chosen])
        yield Batch(MULTIMODAL, padded_inputs(items.sequences, chosen), labels)


def padded_inputs(sequences: Mapping[str, Sequences], items: IntArray) -> dict[str, Padded]:
    """Return some items in every modality."""
    return {name: pad_all(each.select(items)) for name, each in sequences.items()}


def only(sequences: Mapping[str, Sequences], modalities: Sequence[str]) -> dict[str, Sequences]:
    """Keep some modalities; of the others every item has no step."""
    return {
        name: each if name in modalities else replace(each, lengths=np.zeros_like(each.lengths))
        for name, each in sequences.items()
    }
