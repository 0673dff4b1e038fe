"""A round on real processes, training included, against a round of Flower's that does nothing.

    python tests/benchmarks/real_rounds.py [--rounds 8] [--ways utmp-client …]

Three sites on loopback, a SuperLink for each measurement, one after the other: Flower's FedAvg with
`flower-supernode`, one tensor and a client that returns it; this project with `utmp-client`
and the default model; the same with `flower-supernode`; nine clients in three nodes. Seconds of a
round, without the first, which starts the processes that stay; and CPU seconds of all processes.
"""

import itertools
import json
import re
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from figures import Figure, main
from processes import Federation, flower_environment

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


def stock(federation: Federation, rounds: int) -> list[float]:
    """Return the seconds of each of Flower's rounds."""
    app = federation.folder / "app"
    app.mkdir()
    (app / "stock.py").write_text(STOCK.replace("ROUNDS", str(rounds)))
    (app / "pyproject.toml").write_text(PYPROJECT)
    for number in range(3):
        federation.add_flower_node(f"number={number}")
    printed = federation.run("flwr", "run", str(app), "loopback", "--stream")
    moments = map(float, re.findall(r"began \d+ ([\d.]+)", printed))
    return [after - before for before, after in itertools.pairwise(moments)]


def trained(
    add_node: Callable[[Federation, str], object], nodes: Iterable[str], clients: int
) -> Callable[[Federation, int], list[float]]:
    """Return what runs with so many clients of each modality on nodes of these configurations."""

    def run(federation: Federation, rounds: int) -> list[float]:
        for node in nodes:
            add_node(federation, node)
        folder = federation.folder / "run"
        federation.train([f"clients.default={clients}", f"rounds={rounds}", f"run_dir={folder}"])
        records = list(map(json.loads, (folder / "rounds.jsonl").read_text().splitlines()))
        assert all(record["clients"] == dict.fromkeys(MODALITIES, clients) for record in records)
        return [record["seconds"] for record in records]

    return run


SITES = [f'modality="{modality}"' for modality in MODALITIES]
WAYS = {
    "Flower's FedAvg, no-op": stock,
    "utmp-client": trained(Federation.add_node, SITES, clients=1),
    "flower-supernode": trained(Federation.add_flower_node, SITES, clients=1),
    "9 clients in 3 nodes": trained(
        Federation.add_node, [f"partition-id={n} num-partitions=3" for n in range(3)], clients=3
    ),
}


def figures(rounds: int = 6, ways: Sequence[str] = tuple(WAYS)) -> Iterator[Figure]:
    """Start a federation of each way, measure, stop it; Flower's own is the limit of the others."""
    limit = None
    for name in ways:
        with tempfile.TemporaryDirectory() as folder:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with Federation(Path(folder), flower_environment(Path(folder))) as federation:
                federation.start()
                first, *later = WAYS[name](federation, rounds)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken = statistics.median(later)
        span = f"{min(later):.2f} to {max(later):.2f}, first {first:.2f}"
        yield Figure(f"a round, {name} ({span})", taken, "s", limit, "no-op", cpu)
        limit = limit or taken


if __name__ == "__main__":
    main(figures)
