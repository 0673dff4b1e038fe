"""Time and peak memory of `utmp-predict` by the number of items: memory is to stay where it is.

    python tests/benchmarks/predict.py [--items 10000 100000 1000000] [--out csv] [--threads 1]
        [--folder DIR]

Writes a small model of two modalities with random weights, and items of random features in a shard,
and again as a table with .npy arrays; predicts them, and prints for each the size of its features,
items a second and peak resident memory. A million items take some minutes. Threads of torch: on
layers this small more than one only wait for each other, and for whatever else the machine does.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from figures import BIN, Figure, in_a_process, print_figures, run_command

STEPS = 4
WIDTHS = {"language": 16, "audio": 8}


def write_model(path: Path) -> None:
    """Write a model that nobody trained."""
    from common.config import FusionRule, ModelConfig
    from common.model.fusion import Expert, Fusion
    from common.model.ha_fedformer import ModelSpec, build_model
    from common.task import Task
    from server.model_file import model_bytes

    sizes = ModelConfig(width=8, heads=2, layers=1, decoder_layers=1)
    features = {name: (width,) for name, width in WIDTHS.items()}
    model = build_model(ModelSpec(features, 1, Task.regression, sizes), seed=0)
    experts = {name: Expert(information=0.5, unexplained=0.7, count=100) for name in WIDTHS}
    fusion = Fusion(FusionRule.reliability, Task.regression, (0.0, 1.0), experts)
    path.write_bytes(model_bytes(model, fusion))


def write_shard(path: Path, items: int) -> None:
    """Write a shard of sequences from one step to all of them."""
    from common.data.dataset import MultimodalDataset, Sequences
    from common.data.shards import info_of, write_shard
    from common.task import Task

    rng = np.random.default_rng(0)
    sequences = {}
    for name, width in WIDTHS.items():
        lengths = rng.integers(1, STEPS + 1, size=items)
        values = rng.standard_normal((int(lengths.sum()), width), dtype=np.float32)
        sequences[name] = Sequences(values, np.cumsum(lengths) - lengths, lengths)
    ids = np.array([f"call-{number}" for number in range(items)])
    dataset = MultimodalDataset(ids, ids, np.zeros(items, np.float32), sequences)
    write_shard(path, dataset, info_of(dataset, "test", Task.regression, 1))


def write_table(path: Path, items: int) -> None:
    """Write a table, and an array beside it for each modality."""
    rng = np.random.default_rng(0)
    for name, width in WIDTHS.items():
        values = rng.standard_normal((items, STEPS, width), dtype=np.float32)
        np.save(path.with_name(f"{name}.npy"), values)
    with path.open("w") as file:
        file.write("id,note\n")
        file.writelines(f"call-{number},of no use\n" for number in range(items))


SOURCES = {"shard.safetensors": write_shard, "table.csv": write_table}


def figures(
    counts: Sequence[int] = (100_000,),
    suffix: str = "csv",
    threads: int = 1,
    folder: Path | None = None,
) -> Iterator[Figure]:
    """Predict so many items of each source."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for file, write in SOURCES.items():
        for items in counts:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                # In processes of their own, whose memory is not that of the command.
                in_a_process(write, Path(name) / file, items)
                sources = [path for path in Path(name).iterdir() if path.suffix != ".csv"]
                size = sum(path.stat().st_size for path in sources) / 1e6
                in_a_process(write_model, Path(name) / "model")
                given = [f"model={name}/model", f"input={name}/{file}", f"out={name}/p.{suffix}"]
                ran = run_command(BIN / "utmp-predict", *given, "device=cpu")
            assert f"{items} items from language+audio" in ran.output
            what = f"predict {items:,} items of a {file.partition('.')[0]}"
            yield Figure(what, ran.seconds, "s")
            yield Figure(f"{what}, {size:.0f} MB: peak memory", ran.megabytes, "MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", choices=("csv", "json", "jsonl", "parquet"), default="csv")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    print_figures(figures(given.items, given.out, given.threads, given.folder))
