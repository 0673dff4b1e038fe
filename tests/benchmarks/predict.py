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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from figures import BIN, PROJECT, Figure, run_command

STEPS = 4
WIDTHS = {"language": 16, "audio": 8}
SOURCES = ("shard", "table")


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


def write_shard(folder: Path, items: int) -> None:
    """Write a shard of sequences from one step to all of them."""
    from common.data.dataset import MultimodalDataset, Sequences
    from common.data.shards import info_of
    from common.data.shards import write_shard as write
    from common.task import Task

    rng = np.random.default_rng(0)
    sequences = {}
    for name, width in WIDTHS.items():
        lengths = rng.integers(1, STEPS + 1, size=items)
        values = rng.standard_normal((int(lengths.sum()), width), dtype=np.float32)
        sequences[name] = Sequences(values, np.cumsum(lengths) - lengths, lengths)
    ids = np.array([f"call-{number}" for number in range(items)])
    dataset = MultimodalDataset(ids, ids, np.zeros(items, np.float32), sequences)
    write(folder / "shard.safetensors", dataset, info_of(dataset, "test", Task.regression, 1))


def write_table(folder: Path, items: int) -> None:
    """Write a table, and an array beside it for each modality."""
    rng = np.random.default_rng(0)
    for name, width in WIDTHS.items():
        values = rng.standard_normal((items, STEPS, width), dtype=np.float32)
        np.save(folder / f"{name}.npy", values)
    with (folder / "table.csv").open("w") as file:
        file.write("id,note\n")
        file.writelines(f"call-{number},of no use\n" for number in range(items))


def size_of(folder: Path, source: str) -> int:
    """Return the bytes of a source's features."""
    names = ["shard.safetensors"] if source == "shard" else [f"{name}.npy" for name in WIDTHS]
    return sum((folder / name).stat().st_size for name in names)


def in_a_process(call: str) -> None:
    """Write something in a process of its own, whose memory does not count."""
    paths = [str(Path(__file__).parent), str(PROJECT)]
    script = f"import sys; sys.path[:0] = {paths!r}; import predict; predict.{call}"
    subprocess.run([sys.executable, "-c", script], check=True)


def measured(
    folder: Path, source: str, items: int, suffix: str, threads: int
) -> tuple[float, float]:
    """Predict; return seconds and peak memory in MB."""
    file = "shard.safetensors" if source == "shard" else "table.csv"
    out = folder / f"predictions.{suffix}"
    given = [f"model={folder / 'model.safetensors'}", f"input={folder / file}", f"out={out}"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    ran = run_command(BIN / "utmp-predict", *given, "device=cpu")
    assert f"{items} items from language+audio" in ran.output
    out.unlink()
    return ran.seconds, ran.megabytes


def row(
    source: str, items: int, suffix: str, threads: int, folder: Path | None = None
) -> tuple[float, float, float]:
    """Write and predict; return MB of features, seconds and peak MB."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        inside = Path(name)
        in_a_process(f"write_model(predict.Path({str(inside / 'model.safetensors')!r}))")
        in_a_process(f"write_{source}(predict.Path({name!r}), {items})")
        size = size_of(inside, source) / 1e6
        seconds, peak = measured(inside, source, items, suffix, threads)
    return size, seconds, peak


def figures() -> Iterator[Figure]:
    """Predict a hundred thousand items of each source."""
    for source in SOURCES:
        _, seconds, peak = row(source, 100_000, "csv", 1)
        yield Figure(f"predict 100,000 items of a {source}", seconds, "s")
        yield Figure(f"predict 100,000 items of a {source}: peak memory", peak, "MB")


def main() -> None:
    """Write, predict, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", choices=("csv", "json", "jsonl", "parquet"), default="csv")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    print(f"{'source':>6} {'items':>9} {'MB':>7} {'seconds':>8} {'items/s':>8} {'peak MB':>8}")
    for source in SOURCES:
        for items in given.items:
            size, seconds, peak = row(source, items, given.out, given.threads, given.folder)
            line = f"{source:>6} {items:>9} {size:>7.1f} {seconds:>8.1f} {items / seconds:>8.0f}"
            print(f"{line} {peak:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
