"""Time and peak memory of `utmp-predict` by the number of items: memory is to stay where it is.

    python tests/benchmarks/predict.py [--items 10000 100000 1000000] [--out csv] [--threads 1]
        [--folder DIR]

Writes a small model with random weights, and items of two modalities in a shard, and again as a
table with .npy arrays; predicts them, and prints for each the size of its features, items a second
and peak resident memory. A million items take some minutes. Threads of torch: on
layers this small more than one only wait for each other, and for whatever else the machine does.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "server"))
from figures import BIN, Figure, in_a_process, main, run_command
from made_up_models import WIDTHS, write_model

from common.data import shards
from common.data.dataset import MultimodalDataset, Sequences
from common.task import Task

STEPS = 4
MODALITIES = ("language", "audio")


def write_shard(path: Path, items: int) -> None:
    """Write a shard of sequences from one step to all of them."""
    rng = np.random.default_rng(0)
    sequences = {}
    for name in MODALITIES:
        lengths = rng.integers(1, STEPS + 1, size=items)
        values = rng.standard_normal((int(lengths.sum()), WIDTHS[name]), dtype=np.float32)
        sequences[name] = Sequences(values, np.cumsum(lengths) - lengths, lengths)
    ids = np.array([f"call-{number}" for number in range(items)])
    dataset = MultimodalDataset(ids, ids, np.zeros(items, np.float32), sequences)
    shards.write_shard(path, dataset, shards.info_of(dataset, "test", Task.regression, 1))


def write_table(path: Path, items: int) -> None:
    """Write a table, and an array beside it for each modality."""
    rng = np.random.default_rng(0)
    for name in MODALITIES:
        values = rng.standard_normal((items, STEPS, WIDTHS[name]), dtype=np.float32)
        np.save(path.with_name(f"{name}.npy"), values)
    with path.open("w") as file:
        file.write("id,note\n")
        file.writelines(f"call-{number},of no use\n" for number in range(items))


SOURCES = {"shard.safetensors": write_shard, "table.csv": write_table}


def figures(
    items: Sequence[int] = (100_000,),
    out: str = "csv",
    threads: int = 1,
    folder: str = tempfile.gettempdir(),
) -> Iterator[Figure]:
    """Predict so many items of each source."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for file, write in SOURCES.items():
        for count in items:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                # In processes of their own, whose memory is not that of the command.
                in_a_process(write, Path(name) / file, count)
                sources = [path for path in Path(name).iterdir() if path.suffix != ".csv"]
                size = sum(path.stat().st_size for path in sources) / 1e6
                in_a_process(write_model, Path(name) / "run")
                given = [f"model={name}/run", f"input={name}/{file}", f"out={name}/p.{out}"]
                ran = run_command(BIN / "utmp-predict", *given, "device=cpu")
            assert f"{count} items from language+audio" in ran.output
            what = f"predict {count:,} items of a {file.partition('.')[0]}"
            yield Figure(what, ran.seconds, "s")
            yield Figure(f"{what}, {size:.0f} MB: peak memory", ran.megabytes, "MB")


if __name__ == "__main__":
    main(figures)
