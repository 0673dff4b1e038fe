"""What a site that has 10 GB to say of itself costs the coordinator: memory, and the run nothing.

    python tests/benchmarks/huge_description.py [--stores memory file] [--kinds huge many]

Three honest sites; the other one (`tests/e2e/hostile_node.py`) comes in a round of a run, and is
asked who it is before the next. It has 10 GB in parts of 20 MiB, or 5 GB in parts as Flower cuts
them, more than which may not be announced. Memory is the peak of each of the coordinator's
processes, the SuperLink's and the ServerApp's, over two rounds before it came, and from then on.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from deadlines import HOSTILE, wait_for_rounds
from figures import Figure, main
from processes import TINY, Federation, flower_environment, wait_until
from test_faults import MODALITIES, join, records_of, submit, tree_of

#: MB that the memory of a process may grow by.
GROWTH = 50.0

#: Seconds for a round, on a machine that is busy.
PATIENCE = 600


def peaks(federation: Federation) -> dict[int, tuple[str, float]]:
    """Return the name and the peak of memory in MB of the coordinator's processes."""
    found = {}
    for number in tree_of(federation.processes[0]):
        words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
        status = Path(f"/proc/{number}/status").read_text()
        (kilobytes,) = map(int, re.findall(r"VmHWM:\s+(\d+)", status))
        name = "ServerApp" if any("serverapp" in word for word in words) else Path(words[1]).name
        found[number] = name, kilobytes * 1024 / 1e6
    return found


def reasons(run: Path) -> set[str]:
    """Return why sites were left out."""
    return {line for record in records_of(run) for line in record["rejected"]}


def measured(store: str, kind: str, folder: Path) -> Iterator[Figure]:
    """Run one federation."""
    run = folder / "run"
    with Federation(folder, flower_environment(folder)) as federation:
        federation.start(*(federation.database if store == "file" else ()))
        for modality in MODALITIES:
            join(federation, modality)
        settings = [*TINY, "rounds=100000", "client.local_epochs=10", f"run_dir={run}"]
        log = folder / "submitted.log"
        submit(federation, [*settings, "runtime.node_timeout=300"], log)
        wait_for_rounds(run, 2, PATIENCE)
        before, began = peaks(federation), len(records_of(run))
        address = ("--insecure", "--superlink", f"127.0.0.1:{federation.port}")
        said = federation.log_of("hostile")
        config = ("--node-config", 'modality="language" part=1')
        federation.spawn(sys.executable, HOSTILE, kind, *address, *config, log=said)
        wait_until(lambda: "uploaded" in said.read_text(), "the site to upload", PATIENCE)
        wait_for_rounds(run, len(records_of(run)) + 5, PATIENCE)
        after = peaks(federation)
    for number, (name, peak) in before.items():
        growth = after[number][1] - peak
        yield Figure(
            f"{kind}, {store}: {name}, {peak:.0f} MB before, grew by", growth, "MB", GROWTH, ""
        )
    sizes = [int(size) for size in re.findall(r"uploaded (\d+) MiB", said.read_text())]
    yield Figure(f"{kind}, {store}: before this it uploaded", max(sizes, default=-1), "MiB")
    print(*sorted(reasons(run)), sep="\n", flush=True)
    lost = sum(set(record["clients"]) != set(MODALITIES) for record in records_of(run)[began:])
    yield Figure(f"{kind}, {store}: rounds that lacked an honest site", lost, "", 0, "none")


def figures(
    stores: Sequence[str] = ("memory", "file"), kinds: Sequence[str] = ("huge", "many")
) -> Iterator[Figure]:
    """Run a federation on each store with a site of each kind."""
    for store in stores:
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                yield from measured(store, kind, Path(folder))


if __name__ == "__main__":
    main(figures)
