"""Whether honest sites that are unlike each other are ever left out, and the odd one is named.

    python tests/benchmarks/honest_runs.py [--runs 200] [--first-seed 1] [-- rounds=3 …]

Each run has four sites of each of two modalities, of 20 to 2,000 items (uniform in the logarithm),
whose classes are drawn from Dirichlet(.1); the features of one site are in other units, 1,000 times
as large. Printed are the runs in which an honest site was left out, the runs in which the odd site
was named before round 1, how often a change was scaled down, and the accuracies.
"""

import argparse
import io
import logging
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import client.node
from client.app import given_config, make_client_app
from common.clients import ClientKey
from common.config import Config, compose
from common.data.dataset import MultimodalDataset
from server.app import prepare
from server.run.federation import federate
from server.runtimes.local import LocalGrid

CLASSES, WIDTH, MODALITIES = 5, 6, ("language", "audio")
ODD = ClientKey("audio", 2)
SETTINGS = (
    *("dataset=file", "dataset.task=classification", "dataset.modalities=[language,audio]"),
    *("dataset.tabular=[language,audio]", "clients.default=4", "rounds=3", "model=small"),
    *("model.width=10", "model.layers=1", "client.lr=0.003", "client.local_epochs=2"),
    *("tracking=none", "runtime=sequential"),
)


def write_items(path: Path, rng: np.random.Generator, count: int = 2000) -> None:
    """Write items of which both modalities tell the class, with noise."""
    labels = rng.integers(CLASSES, size=count)
    arrays = {
        name: rng.normal(size=(CLASSES, WIDTH))[labels] + rng.normal(size=(count, WIDTH))
        for name in MODALITIES
    }
    groups = (np.arange(count) // 5).astype(str)
    np.savez(path, label=labels, group=groups, **{k: v.astype("f4") for k, v in arrays.items()})


def unlike(data: MultimodalDataset, seed: int) -> Callable[[ClientKey], MultimodalDataset]:
    """Return what each site holds: items of its own number, classes and units."""

    def items(key: ClientKey) -> MultimodalDataset:
        rng = np.random.default_rng([seed, MODALITIES.index(key.modality), key.part])
        size = int(np.exp(rng.uniform(np.log(20), np.log(2000))))
        share = rng.dirichlet(np.full(CLASSES, 0.1))[data.labels]
        drawn = data.select(rng.choice(len(data), size=size, p=share / share.sum()))
        sequences = drawn.sequences[key.modality].select(np.arange(size))
        if key == ODD:
            sequences = replace(sequences, values=1000 * sequences.values)
        return replace(drawn, sequences={key.modality: sequences})

    return items


def run_once(seed: int, overrides: list[str]) -> tuple[list[str], bool, int, float]:
    """Return who was left out, whether the odd site was named, scalings, and the accuracy."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "items.npz"
        write_items(path, np.random.default_rng(seed))
        given = [*SETTINGS, f"dataset.path={path}", f"seed={seed}", *overrides]
        config: Config = compose(Config, given)
        run = prepare(config, Path(folder) / "run")
        said: list[str] = []
        assert hasattr(run.data, "items")
        mine = replace(run.data, client_items=unlike(run.data.items, seed))
        app = make_client_app(partial(given_config, config))
        with (
            patch.object(client.node, "_federation", lambda _: mine),
            patch.object(run.console, "tell", lambda line, *_, **__: said.append(line)),
        ):
            summary = federate(run, LocalGrid(app, len(run.data.clients)))  # type: ignore[arg-type]
    left_out = [line for record in run.records for line in record.rejected]
    named = any(line.startswith(f"{ODD}: odd features") for line in said)
    scaled = sum(len(record.clipped) for record in run.records)
    return left_out, named, scaled, summary["test"]["multimodal"]["accuracy"]


def main() -> None:
    """Print what happened to honest sites."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = []
    for seed in range(given.first_seed, given.first_seed + given.runs):
        results.append(run_once(seed, given.overrides))
        for line in results[-1][0]:
            print(f"seed {seed}: left out: {line}", flush=True)
    accuracies = [accuracy for *_, accuracy in results]
    print(f"{len(results)} runs; {sum(bool(left) for left, *_ in results)} left a site out")
    print(f"the odd site was named in {sum(named for _, named, *_ in results)}")
    print(f"changes scaled down: {sum(scaled for _, _, scaled, _ in results)}")
    print(f"accuracy {np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}")


if __name__ == "__main__":
    main()
