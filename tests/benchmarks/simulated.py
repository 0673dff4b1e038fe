"""Simulations: what a round costs over what its clients compute, and how it grows with clients.

    python tests/benchmarks/simulated.py [--clients 30 300 3000] [--runtime simulation]

The embedded dataset and the default model, unless it says otherwise.
"""

import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from operator import sub
from pathlib import Path
from typing import Any

import torch
from figures import BIN, Figure, Ran, main, run_command

SIZES = (30, 300, 3_000)


def trained(folder: Path, *overrides: str) -> tuple[Ran, list[dict[str, Any]]]:
    """Run `utmp-train`; return what it took, of its largest process, and its rounds."""
    run = folder / "run"
    ran = run_command(BIN / "utmp-train", f"run_dir={run}", "tracking=none", *overrides)
    lines = (run / "rounds.jsonl").read_text().splitlines()
    return ran, [json.loads(line) for line in lines]


def overhead(runtime: str, rounds: int = 6) -> tuple[float, float]:
    """Return the median seconds of a round of nine clients, and of what they do not compute.

    What clients compute is of the same run, ``sequential`` or ``processes``: seconds of the process
    that each is in, divided by how many there are. The first round is left out.
    """
    import client.app
    from common.config import Config, compose
    from server.app import prepare
    from server.runtimes.local import clients_at_once, run_locally

    inner = client.app.run_round
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        computed = Path(folder) / "computed"

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            uplink = inner(*given)
            # A copy of this process inherits this function, and one write is one line.
            with computed.open("a") as file:
                file.write(f"{uplink.round} {time.perf_counter() - began}\n")
            return uplink

        overrides = [f"runtime={runtime}", f"rounds={rounds}", "clients.default=3"]
        run = prepare(compose(Config, overrides), Path(folder) / "run")
        client.app.run_round = timed
        try:
            run_locally(run)
        finally:
            client.app.run_round = inner
            run.folder.close()
        pure = [0.0] * rounds
        for line in computed.read_text().splitlines():
            number, seconds = line.split()
            pure[int(number) - 1] += float(seconds)
        cores = 1 if runtime == "sequential" else clients_at_once(run.config.runtime)
        whole = [record.seconds for record in run.records]
        shares = [each / cores for each in pure]
        over = statistics.median(map(sub, whole[1:], shares[1:]))
    return statistics.median(whole[1:]), over


def figures(clients: Sequence[int] = SIZES, runtime: str = "processes") -> Iterator[Figure]:
    """Measure starts, overhead and growth."""
    torch.set_num_threads(1)
    where = f"runtime={runtime}"
    helped = [run_command(BIN / "utmp-train", "--help") for _ in range(3)]
    seconds = statistics.median(ran.seconds for ran in helped)
    yield Figure("utmp-train --help", seconds, "s", 1, "at once", helped[0].cpu)
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        ran, _ = trained(Path(folder), where, "rounds=1")
        first = (Path(folder) / "run" / "rounds.jsonl").stat().st_mtime - began
        yield Figure("start to the end of round 1", first, "s", 20, "soon")
        yield Figure("a run of one round, with its summary", ran.seconds, "s", cpu=ran.cpu)
    for each in dict.fromkeys(("sequential", runtime)):
        name = f"a round of 9 clients, runtime={each}"
        forked = sys.platform == "linux" and not torch.cuda.is_available()
        if each == "simulation" or (each == "processes" and not forked):
            with tempfile.TemporaryDirectory() as folder:
                ran, rounds = trained(Path(folder), where, "rounds=6", "clients.default=3")
            middle = statistics.median(record["seconds"] for record in rounds[1:])
            yield Figure(name, middle, "s", cpu=ran.cpu)
        else:
            whole, over = overhead(each)
            yield Figure(name, whole, "s")
            yield Figure(f"{name}, but for what they compute", over, "s", 0.3, "an overhead")
    for count in clients:
        items = max(2_400, 10 * count)
        with tempfile.TemporaryDirectory() as folder:
            data = [f"dataset.num_{what}={items}" for what in ("items", "speakers")]
            each = f"clients.default={count // 3}"
            ran, rounds = trained(Path(folder), where, "rounds=1", each, *data)
        name = f"a round of {count:,} clients, {where}"
        assert sum(rounds[0]["clients"].values()) == count
        yield Figure(name, rounds[0]["seconds"], "s", cpu=ran.cpu)
        yield Figure(f"{name}: memory of the largest", ran.megabytes, "MB")


if __name__ == "__main__":
    main(figures)
