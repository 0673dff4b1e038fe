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
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from figures import Figure, print_figures
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
    moments = map(float, re.findall(r"began \d+ ([\d.]+)", printed))
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


WAYS = {
    "Flower's FedAvg, no-op": stock,
    "utmp-client": ours,
    "flower-supernode": plain,
    "9 clients in 3 nodes": hosted,
}


def figures(rounds: int = 6, ways: Sequence[str] = tuple(WAYS)[:2]) -> Iterator[Figure]:
    """Start a federation of each way, measure, stop it; Flower's own is the limit of the others."""
    limit = None
    for name in ways:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "flower-home"
            home.mkdir()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with Federation(Path(folder), flower_environment(home)) as federation:
                federation.start()
                first, *later = WAYS[name](federation, rounds)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken = statistics.median(later)
        span = f"{min(later):.2f} to {max(later):.2f}, first {first:.2f}"
        yield Figure(f"a round, {name} ({span})", taken, "s", limit, "no-op", cpu)
        limit = limit or taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    print_figures(figures(parser.parse_args().rounds, tuple(WAYS)))
