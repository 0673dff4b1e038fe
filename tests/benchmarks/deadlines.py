"""How long a round takes on real processes whose deadline bad sites leave something half done at.

    python tests/benchmarks/deadlines.py [--ways part die records] [--deadline 60] [--rounds 5]
        [--stores memory file]

Three honest sites, and a bad one (`tests/e2e/hostile_node.py`) in every round: it uploads a part of
its reply and no more, ends while it uploads, or sends 20,000 records. The SuperLink keeps its state
in memory, or in a file (``--database``). A round is measured by the clock on the wall, from the end
of the one before to its own; the first, which starts processes, from its own beginning.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from figures import Figure, main
from processes import TINY, Federation, flower_environment
from test_faults import MODALITIES, join, records_of, submit

HOSTILE = Path(__file__).parents[1] / "e2e" / "hostile_node.py"


def keep_bad_sites(federation: Federation, how: str, parts: int, over: threading.Event) -> None:
    """Have one bad site there until it is over: another, with the next part, when one has died."""
    for part in range(1, parts + 1):
        address = ("--insecure", "--superlink", f"127.0.0.1:{federation.port}")
        config = ("--node-config", f'modality="language" part={part}')
        bad = federation.spawn(sys.executable, HOSTILE, how, *address, *config)
        while bad.poll() is None:
            if over.wait(0.2):
                return


def wait_for_rounds(run: Path, rounds: int, patience: float) -> list[float]:
    """Return when each round ended; fewer of them where none ends for so many seconds."""
    ends, last = list[float](), time.monotonic()
    while len(ends) < rounds and time.monotonic() - last < patience:
        time.sleep(0.1)
        if new := len(records_of(run)) - len(ends):
            last = time.monotonic()
            ends += [last] * new
    return ends


def measured(how: str, store: str, deadline: float, rounds: int, folder: Path) -> Iterator[Figure]:
    """Run one federation with bad sites of a kind."""
    over = threading.Event()
    with Federation(folder, flower_environment(folder)) as federation:
        federation.start(*(federation.database if store == "file" else ()))
        for modality in MODALITIES:
            join(federation, modality)
        parts = rounds + 2 if how == "die" else 1
        given = (federation, how, parts, over)
        threading.Thread(target=keep_bad_sites, args=given, daemon=True).start()
        run = folder / "run"
        settings = [
            *(*TINY, f"rounds={rounds}", f"clients.language={1 + parts}", f"run_dir={run}"),
            *(f"runtime.round_timeout={deadline:g}", "runtime.node_timeout=200"),
            "strategy.screening.max_faults=null",
        ]
        log = folder / "submitted.log"
        submit(federation, settings, log)
        ends = wait_for_rounds(run, rounds, 300 + 3 * deadline)
        over.set()
    records = records_of(run)
    if len(records) < rounds:
        for log in sorted(folder.glob("*.log")):
            print(f"==== {log.name}", log.read_text()[-4000:], sep="\n", flush=True)
    for number, record in enumerate(records):
        took = ends[number] - ends[number - 1] if number else record["seconds"]
        bad = [line for line in record["rejected"] if not line.startswith("language-0")]
        said = "; ".join(line.split(": ", 1)[1][:60] for line in bad) or "nothing"
        lost = 3 - sum(min(1, count) for count in record["clients"].values())
        lost += record["clients"].get("language", 0) != 1
        name = f"{how}, {store}, round {number + 1} ({said}; honest missing {lost})"
        yield Figure(name, took, "s", deadline + 5, "deadline + 5 s")
        phases = ", ".join(f"{phase} {s:.1f}" for phase, s in record["phases"].items())
        print(f"  {record['seconds']:.1f} s: {phases}", flush=True)
    yield Figure(
        f"{how}, {store}: rounds that were not there", rounds - len(records), "", 0, "none"
    )


def figures(
    ways: Sequence[str] = ("part", "die", "records"),
    stores: Sequence[str] = ("memory", "file"),
    deadline: float = 60.0,
    rounds: int = 5,
) -> Iterator[Figure]:
    """Run a federation of each way on each store."""
    for store in stores:
        for how in ways:
            with tempfile.TemporaryDirectory() as folder:
                yield from measured(how, store, deadline, rounds, Path(folder))


if __name__ == "__main__":
    main(figures)
