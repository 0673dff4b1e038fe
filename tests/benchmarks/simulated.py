"""Simulations: what a round costs over what its clients compute, and how it grows with clients.

    python tests/benchmarks/simulated.py [--clients 30 300 3000] [--runtime simulation]

The embedded dataset and the default model, unless it says otherwise.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from figures import BIN, Figure, Ran, print_figures, run_command

SIZES = (30, 300, 3_000)


def trained(folder: Path, *overrides: str) -> tuple[Ran, list[dict[str, Any]]]:
    """Run `utmp-train`; return what it took, of its largest process, and its rounds."""
    run = folder / "run"
    ran = run_command(BIN / "utmp-train", f"run_dir={run}", "tracking=none", *overrides)
    lines = (run / "rounds.jsonl").read_text().splitlines()
    return ran, [json.loads(line) for line in lines]


def overhead(rounds: int = 6) -> tuple[float, float]:
    """Return the median seconds of a round of nine clients, and of what the clients compute."""
    import client.app
    from client.app import given_config, make_client_app
    from common.config import compose_config
    from server.app import prepare
    from server.sequential import SequentialGrid

    computed: list[float] = []
    inner = client.app.run_round

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*given)
        finally:
            computed.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        run = prepare(
            compose_config(
                "config", ["runtime=sequential", f"rounds={rounds}", "clients.default=3"]
            ),
            Path(folder) / "run",
        )
        app = make_client_app(lambda context: given_config(run.config, context))
        client.app.run_round = timed
        try:
            run.execute(SequentialGrid(app, len(run.data.clients)))
        finally:
            client.app.run_round = inner
            run.folder.close()
        seconds = [record["seconds"] for record in run.records]
    pure = [sum(computed[at : at + 9]) for at in range(0, len(computed), 9)]
    return statistics.median(seconds[1:]), statistics.median(pure[1:])


def figures(sizes: Sequence[int] = SIZES, runtime: str = "processes") -> Iterator[Figure]:
    """Measure starts, overhead and growth."""
    where = f"runtime={runtime}"
    helped = [run_command(BIN / "utmp-train", "--help") for _ in range(3)]
    seconds = statistics.median(each.seconds for each in helped)
    yield Figure("utmp-train --help", seconds, "s", 1, "at once", helped[0].cpu)
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        ran, _ = trained(Path(folder), where, "rounds=1")
        first = (Path(folder) / "run" / "rounds.jsonl").stat().st_mtime - began
        yield Figure("start to the end of round 1", first, "s", 20, "soon")
        yield Figure("a run of one round, with its summary", ran.seconds, "s", cpu=ran.cpu)
    whole, pure = overhead()
    yield Figure("a round of 9 clients, in one process", whole, "s", pure + 0.3, "clients + .3")
    with tempfile.TemporaryDirectory() as folder:
        ran, rounds = trained(Path(folder), where, "rounds=6", "clients.default=3")
        shared = pure / (os.cpu_count() or 1)
        seconds = statistics.median(each["seconds"] for each in rounds[1:])
        yield Figure(
            f"a round of 9 clients, {where}",
            seconds,
            "s",
            shared + 0.3,
            "clients / cores + .3",
            ran.cpu,
        )
    for clients in sizes:
        items = max(2_400, 10 * clients)
        with tempfile.TemporaryDirectory() as folder:
            ran, rounds = trained(
                Path(folder),
                where,
                "rounds=1",
                f"clients.default={clients // 3}",
                f"dataset.num_items={items}",
                f"dataset.num_speakers={items}",
            )
        name = f"a round of {clients:,} clients, {where}"
        assert sum(rounds[0]["clients"].values()) == clients
        yield Figure(name, rounds[0]["seconds"], "s", cpu=ran.cpu)
        yield Figure(f"{name}: memory of the largest", ran.megabytes, "MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--runtime", default="processes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for figure in figures(given.clients, given.runtime):
        print_figures([figure])
