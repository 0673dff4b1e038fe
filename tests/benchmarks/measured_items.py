"""Over how many of a client's items second moments must be measured, for the merge that all give.

    python tests/benchmarks/measured_items.py [--steps 512 1024 …] [--seeds 1 2 3 4 5]

Nine clients of the embedded data train for a round of the default strategy, at the paper's sizes,
and are merged with moments over about so many steps of each one's items. Printed, as a mean over
seeds: how far the merged model is from the one with moments over all items, as a share of how far
that is from the one without moments; and the mean absolute error on the validation items.
"""

import io
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch
from figures import Figure, main
from safetensors.torch import load_file

import client.trainer
from common.config import Config, compose
from server.app import prepare
from server.runtimes.local import run_locally

STEPS = (512, 1024, 2048, 4096, 8192)
ALL = 10**9
SEEDS = (1, 2, 3, 4, 5)
SETTINGS = ("runtime=sequential", "rounds=1", "model=paper", "clients.default=3", "tracking=none")


def merged(seed: int, steps: int, *overrides: str) -> tuple[torch.Tensor, float]:
    """Return the merged model (P,) and its validation error."""
    client.trainer.MEASURED_STEPS = steps
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        settings = [*SETTINGS, "dataset.num_items=2400", f"seed={seed}", *overrides]
        run = prepare(compose(Config, settings), Path(folder) / "run")
        run_locally(run)
        run.folder.close()
        arrays = load_file(Path(folder) / "run" / "model.safetensors")
    error = run.records[0].validation["multimodal"]["mae"]
    return torch.cat([arrays[name].double().flatten() for name in sorted(arrays)]), error


def figures(steps: tuple[int, ...] = STEPS, seeds: tuple[int, ...] = SEEDS) -> Iterator[Figure]:
    """Compare merges."""
    shares: dict[int, list[float]] = {count: [] for count in steps}
    errors: dict[int, list[float]] = {count: [] for count in (0, *steps, ALL)}
    for seed in seeds:
        full, error = merged(seed, ALL)
        plain, without = merged(seed, 1, "strategy.posterior_rounds=0")
        errors[ALL].append(error)
        errors[0].append(without)
        for count in steps:
            model, error = merged(seed, count)
            shares[count].append(float((model - full).norm() / (plain - full).norm()))
            errors[count].append(error)
    for count, found in shares.items():
        yield Figure(
            f"moments over {count:,} steps: share of the effect", statistics.mean(found), ""
        )
    for count, found in errors.items():
        name = f"moments over {'all' if count == ALL else f'{count:,}'} steps: mae"
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        yield Figure(name, statistics.mean(found), f"± {spread:.3f}")


if __name__ == "__main__":
    main(figures)
