"""Batches from a shard, against the same slices of an array in memory.

python tests/benchmarks/loading.py
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from figures import Figure, cpu_of, main

from common.data.batching import SequenceItems, batches
from common.data.dataset import MultimodalDataset, Sequences
from common.data.shards import info_of, read_shard, write_shard
from common.task import Task

ITEMS, STEPS, WIDTH, BATCH = 20_000, 20, 74, 24


def figures() -> Iterator[Figure]:
    """Read all items once, batch by batch."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((ITEMS * STEPS, WIDTH), dtype=np.float32)
    lengths = np.full(ITEMS, STEPS)
    sequences = Sequences(values, np.arange(ITEMS) * STEPS, lengths)
    ids = np.array([f"item-{number}" for number in range(ITEMS)])
    dataset = MultimodalDataset(ids, ids, np.zeros(ITEMS, np.float32), {"audio": sequences})
    every = np.arange(ITEMS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        write_shard(path, dataset, info_of(dataset, "train", Task.regression, 1))
        held: list[Sequences] = []
        opening = cpu_of(lambda: held.append(read_shard(path).items.sequences["audio"]))
        items = SequenceItems(held[0], dataset.labels, every)

        def ours() -> None:
            for _ in batches(items, BATCH, seed=1):
                pass

        def bare() -> None:
            whole = torch.from_numpy(values).view(ITEMS, STEPS, WIDTH)
            order = torch.randperm(ITEMS)
            for at in range(0, ITEMS, BATCH):
                whole[order[at : at + BATCH]]

        ours()
        bare()
        times = sorted((cpu_of(ours), cpu_of(bare)) for _ in range(5))[2]
    count = -(-ITEMS // BATCH)
    yield Figure("open and check a shard of 118 MB", opening, "s")
    yield Figure("a batch of 24 from a shard", 1e3 * times[0] / count, "ms CPU")
    yield Figure("a batch of 24 by indexing in memory", 1e3 * times[1] / count, "ms CPU")


if __name__ == "__main__":
    main(figures)
