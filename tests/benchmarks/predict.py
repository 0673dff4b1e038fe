"""Time and peak memory of `utmp-predict`, beside a loop of PyTorch, and by the number of items.

    python tests/benchmarks/predict.py [--items 100000 1000000] [--out csv] [--threads 1]
        [--repeats 5] [--folder DIR]

Writes a model of the sizes of ``model=small`` with random weights, and items of two modalities in a
shard, and again as a table with .npy arrays; predicts them, and prints for each the size of its
features, seconds and peak resident memory, which is to stay where it is. The loop
(``contestants/bare_predict.py``) reads the shard, and writes each item's id, prediction and
deviation, which are compared with ours; ours checks the shard, and says besides what each modality
predicts alone and contributes. Both in turns; printed are medians, and the ratio's range. Threads
of torch: on layers this small more than one only wait for each other, and for whatever else the
machine does.
"""

import csv
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "server"))
from figures import BIN, Figure, Ran, in_a_process, main, run_command
from made_up_models import WIDTHS, fusion_for, model_for

from common.config import Config, FusionRule, compose
from common.data import shards
from common.data.dataset import MultimodalDataset, Sequences
from common.task import Task
from server.model_file import model_bytes
from server.run.folder import MODEL

STEPS = 8
BARE = Path(__file__).parent / "contestants" / "bare_predict.py"
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


def write_model(folder: Path) -> None:
    """Write a run's model, with the default rule of fusion."""
    folder.mkdir()
    model = model_for(sizes=compose(Config, ["model=small"]).model)
    (folder / MODEL).write_bytes(model_bytes(model, fusion_for(rule=FusionRule.calibrated)))


def check_same(ours: Path, bare: Path) -> None:
    """Compare the predictions of two tables."""
    with ours.open() as first, bare.open() as second:
        for own, other in zip(csv.DictReader(first), csv.DictReader(second), strict=True):
            assert own["id"] == other["id"]
            for name in ("prediction", "std"):
                assert abs(float(own[name]) - float(other[name])) < 1e-4, (own, other)


SOURCES = {"shard.safetensors": write_shard, "table.csv": write_table}


def figures(
    items: Sequence[int] = (100_000,),
    out: str = "csv",
    threads: int = 1,
    repeats: int = 5,
    folder: str = tempfile.gettempdir(),
) -> Iterator[Figure]:
    """Predict so many items of each source."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for file, write in SOURCES.items():
        for count in items:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                place = Path(name)
                # In processes of their own, whose memory is not that of the command.
                in_a_process(write, place / file, count)
                sources = [path for path in place.iterdir() if path.suffix != ".csv"]
                size = sum(path.stat().st_size for path in sources) / 1e6
                in_a_process(write_model, place / "run")
                given = [f"model={name}/run", f"input={name}/{file}", f"out={name}/p.{out}"]
                ours: list[Ran] = []
                bare: list[Ran] = []
                for _ in range(repeats):
                    if file.endswith(".safetensors"):
                        others = (place / "run", place / file, place / "bare.csv")
                        bare.append(run_command(sys.executable, BARE, *others))
                    own = (*given, "overwrite=true", "device=cpu", f"threads={threads}")
                    ours.append(run_command(BIN / "utmp-predict", *own))
                    assert f"{count} items from language+audio" in ours[-1].output
                if bare and out == "csv":
                    check_same(place / "p.csv", place / "bare.csv")
            what = f"predict {count:,} items of a {file.partition('.')[0]}"
            yield Figure(what, statistics.median(ran.seconds for ran in ours), "s")
            most = max(ran.megabytes for ran in ours)
            yield Figure(f"{what}, {size:.0f} MB: peak memory", most, "MB")
            if bare:
                yield Figure(f"{what}, loop", statistics.median(ran.seconds for ran in bare), "s")
                pairs = zip(ours, bare, strict=True)
                ratios = sorted(own.seconds / other.seconds for own, other in pairs)
                spread = f"{what}, times the loop ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                yield Figure(spread, statistics.median(ratios), "", 1.3, "of the loop")


if __name__ == "__main__":
    main(figures)
