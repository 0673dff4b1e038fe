"""A round on real processes, training included, against a round of Flower's that does nothing.

    python tests/benchmarks/real_rounds.py [--rounds 8]

Three sites on loopback, a SuperLink for each measurement, one after the other: Flower's FedAvg with
`flower-supernode`, one tensor and a client that returns it; this project with `utmp-client`
and the default model; the same with `flower-supernode`; nine clients in three nodes. Seconds of a
round, without the first, which starts the processes that stay; and CPU seconds of all processes.
"""

import argparse
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from figures import Figure
from processes import BIN, PROJECT, Federation, flower_environment

MODALITIES = ("language", "audio", "vision")

STOCK = """
import time
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()

@client.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)

class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print(f"began {server_round} {time.time()}", flush=True)
        return super().configure_train(server_round, arrays, config, grid)

server = ServerApp()

@server.main()
def main(grid, context):
    arrays = ArrayRecord({"w": Array(np.zeros(10, np.float32))})
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS)
    print(f"began {ROUNDS + 1} {time.time()}", flush=True)
"""

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "stock"
version = "1.0.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "stock:server"
clientapp = "stock:client"
[tool.flwr.app.config]
"""


def cpu() -> float:
    """Return the CPU seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def submit(federation: Federation, app: str, *more: str) -> str:
    """Run an app to its end; return what it printed."""
    done = subprocess.run(
        [BIN / "flwr", "run", app, "loopback", "--stream", *more],
        cwd=federation.folder,
        env=federation.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def stock(federation: Federation, rounds: int) -> list[float]:
    """Return the seconds of each of Flower's rounds."""
    app = federation.folder / "app"
    app.mkdir()
    (app / "stock.py").write_text(STOCK.replace("ROUNDS", str(rounds)))
    (app / "pyproject.toml").write_text(PYPROJECT)
    for number in range(3):
        federation.add_flower_node(f"number={number}")
    printed = submit(federation, str(app))
    moments = [float(each) for each in re.findall(r"began \d+ ([\d.]+)", printed)]
    return [after - before for before, after in itertools.pairwise(moments)]


def ours(federation: Federation, rounds: int) -> list[float]:
    """Return the seconds of each of this project's rounds."""
    for modality in MODALITIES:
        federation.add_node(f'modality="{modality}"')
    return trained(federation, rounds, clients=1)


def plain(federation: Federation, rounds: int) -> list[float]:
    """Return the seconds of each of this project's rounds at sites that run Flower's command."""
    for modality in MODALITIES:
        federation.add_flower_node(f'modality="{modality}"')
    return trained(federation, rounds, clients=1)


def hosted(federation: Federation, rounds: int) -> list[float]:
    """Return the seconds of each round of nine clients, three in each node."""
    for number in range(3):
        federation.add_node(f"partition-id={number} num-partitions=3")
    return trained(federation, rounds, clients=3)


def trained(federation: Federation, rounds: int, clients: int) -> list[float]:
    """Run with so many clients of each modality; return the seconds of each round."""
    run = federation.folder / "run"
    overrides = f"clients.default={clients} rounds={rounds} run_dir={run}"
    submit(federation, str(PROJECT), "--run-config", f'overrides="{overrides}"')
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert all(record["clients"] == dict.fromkeys(MODALITIES, clients) for record in records)
    return [record["seconds"] for record in records]


@dataclass(frozen=True)
class Measured:
    """What a federation took: seconds of each round, and of all with its start; CPU seconds."""

    rounds: list[float]
    whole: float
    cpu: float

    @property
    def later(self) -> list[float]:
        """Seconds of rounds without the first, which starts what stays."""
        return self.rounds[1:]


def run(measure: Callable[[Federation, int], list[float]], rounds: int) -> Measured:
    """Start a federation, measure, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "flower-home"
        home.mkdir()
        federation = Federation(Path(folder), flower_environment(home))
        before, began = cpu(), time.monotonic()
        try:
            federation.start()
            seconds = measure(federation, rounds)
        finally:
            federation.stop()
        return Measured(seconds, time.monotonic() - began, cpu() - before)


def figures() -> Iterator[Figure]:
    """Measure both."""
    theirs, own = run(stock, 6), run(ours, 6)
    limit = statistics.median(theirs.later)
    yield Figure("a round of Flower's FedAvg, no-op", limit, "s", cpu=theirs.cpu)
    taken = statistics.median(own.later)
    yield Figure("a round with utmp-client, training too", taken, "s", limit, "no-op", own.cpu)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, 3 nodes, {arguments.rounds} rounds")
    for name, measure in (
        ("Flower, no-op", stock),
        ("utmp-client", ours),
        ("flower-node", plain),
        ("9 in 3 nodes", hosted),
    ):
        found = run(measure, arguments.rounds)
        print(
            f"{name:14} {statistics.median(found.later):6.2f} s a round "
            f"({min(found.later):.2f} to {max(found.later):.2f}), first {found.rounds[0]:.2f}; "
            f"all {found.whole:.0f} s, CPU {found.cpu:.0f} s"
        )


if __name__ == "__main__":
    main()
