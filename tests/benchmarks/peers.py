"""A federation of ours beside those of others: CPU and memory of whole process trees.

    python tests/benchmarks/peers.py [--clients 9] [--rounds 3] [--repeats 5] [--pfl PYTHON]

The same module, items, optimiser and FedAvg in a loop of PyTorch (``bare``), with `utmp-train`,
with Flower's own FedAvg on Ray and with pfl-research, one after the other, so many times. All
evaluate the merged model on the validation items after every round. pfl-research has requirements
that ours exclude, so it is run by a Python of another environment that has both it and torch;
without ``--pfl`` it is left out. Printed are medians, and ratios to the bare loop with their range:

- a client's round: CPU of the rounds after the first, per client;
- to the end of round 1: CPU from the start;
- the whole command: CPU, with what ours adds, a summary, a model file and diagnostics;
- memory: the peak of the proportional set size of all processes.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "contestants"))
from figures import BIN, Figure, main
from work import MARKS, prepare

CONTESTANTS = Path(__file__).parent / "contestants"
TICK = os.sysconf("SC_CLK_TCK")

#: Names of ours to their overrides; the others are scripts of `contestants`.
OURS = {
    "ours, sequential": ["runtime=sequential", "strategy=fedavg"],
    "ours, processes": ["runtime=processes", "strategy=fedavg"],
    "ours, default strategy": ["runtime=sequential"],
}

#: Of ratios to the bare loop: a client's round, and memory.
LIMITS = {
    "ours, sequential": (1.10, 1.3),
    "ours, processes": (1.10, 1.6),
    "ours, default strategy": (1.15, 1.3),
}

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Measured:
    """CPU seconds and peak memory of a command."""

    client_round: float
    first: float
    whole: float
    megabytes: float


def tree(root: int) -> Iterator[tuple[int, float]]:
    """Yield the processes below one, and the CPU seconds of each and of those it waited for."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / TICK
    found = [root]
    for number in found:
        found += children.get(number, [])
        yield number, seconds.get(number, 0.0)


def memory(numbers: Sequence[int]) -> float:
    """Return the proportional set size of some processes, in MB."""
    total = 0
    for number in numbers:
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def watch(command: Sequence[str | Path], marks: Path, clients: int, rounds: int) -> Measured:
    """Run a command to its end; `marks` has a line for each round that has ended."""
    # Processes whose parents end become ours, so that what they used is not lost.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own = os.times()
    at: list[float] = []
    most, looked = 0.0, 0.0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        while running.poll() is None:
            ended = marks.read_text().count("\n") if marks.exists() else 0
            if ended > len(at) or time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                below = dict(tree(os.getpid()))
                reaped = os.times()
                used = sum(below.values()) - below[os.getpid()]
                used += reaped.children_user + reaped.children_system
                used -= own.children_user + own.children_system
                at += [used] * (ended - len(at))
                most = max(most, memory([each for each in below if each != os.getpid()]))
            time.sleep(0.01)
        left = [each for each, _ in tree(os.getpid()) if each != os.getpid()]
        for number in left:
            os.kill(number, 9)
        while left:
            try:
                os.wait()
            except ChildProcessError:
                break
        if running.returncode or len(at) < rounds:
            log.seek(0)
            sys.exit(f"{command[0]} exited with {running.returncode}:\n{log.read()[-3000:]}")
    done = os.times()
    whole = done.children_user + done.children_system - own.children_user - own.children_system
    return Measured((at[-1] - at[0]) / (clients * (rounds - 1)), at[0], whole, most)


def contest(name: str, overrides: Sequence[str], clients: int, rounds: int, pfl: str) -> Measured:
    """Measure one contestant."""
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        if name in OURS:
            run = folder / "run"
            command = [BIN / "utmp-train", *overrides, *OURS[name], f"rounds={rounds}"]
            command += [f"run_dir={run}", "tracking=none"]
            return watch(command, run / "rounds.jsonl", clients, rounds)
        prepare(folder, [*overrides, "strategy=fedavg"])
        python = pfl if name == "pfl_research" else sys.executable
        script = CONTESTANTS / f"{name}.py"
        return watch([python, script, folder, str(rounds)], folder / MARKS, clients, rounds)


def figures(
    clients: int = 9,
    rounds: int = 3,
    repeats: int = 5,
    pfl: str = "",
    items: int = 2_400,
    only: Sequence[str] = ("bare", *OURS, "stock_flower", "pfl_research"),
    json_file: str = "",
) -> Iterator[Figure]:
    """Measure all, in turns."""
    overrides = [f"clients.default={clients // 3}", "model=paper", f"dataset.num_items={items}"]
    names = [name for name in only if pfl or name != "pfl_research"]
    turns: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            turns[name].append(contest(name, overrides, clients, rounds, pfl))
            print(f"  {name:24} {turns[name][-1]}", file=sys.stderr, flush=True)
    if json_file:
        rows = {name: [vars(each) for each in found] for name, found in turns.items()}
        Path(json_file).write_text(json.dumps(rows, indent=1) + "\n")
    bare = turns["bare"]
    for name, found in turns.items():
        most = LIMITS.get(name, (None, None))
        for what, limit, unit in (
            ("client_round", most[0], "s CPU"),
            ("first", None, "s CPU"),
            ("whole", None, "s CPU"),
            ("megabytes", most[1], "MB"),
        ):
            value = statistics.median(getattr(each, what) for each in found)
            start = 1.5 * statistics.median(each.first for each in bare) + 1
            kept = start if what == "first" and name in OURS else None
            yield Figure(f"{name}: {what}", value, unit, kept, "1.5 times bare and 1 s")
            ratios = sorted(
                getattr(one, what) / getattr(other, what)
                for one, other in zip(found, bare, strict=True)
            )
            if name != "bare":
                spread = f"{name}: {what}, times bare ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                yield Figure(spread, statistics.median(ratios), "", limit, "of bare")


if __name__ == "__main__":
    main(figures)
