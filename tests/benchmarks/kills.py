"""Processes of a federation killed (``kill -9``) at random moments: what a run loses by it.

    python tests/benchmarks/kills.py [--whom worker client superlink] [--kills 20]

Three sites on loopback with `utmp-client`, a SuperLink with a ``--database``. Killed are a site's
worker; a site, which is started again at once; and the SuperLink, which is started again, and the
run resumed. Printed for each: the rounds that were lost, but for the one under way; in which round
a site is used again, counted from the one under way when it was back (1: the next one); seconds;
and how long processes that belonged to what was killed went on.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from figures import Figure, main
from processes import TINY, Federation, Node, flower_environment, wait_until
from test_faults import MODALITIES, records_of, submit, tree_of

#: Seconds until a new worker has imported what it needs, on a machine that is busy.
PATIENCE = 600

#: Seconds until those that belonged to a process that was killed have ended, too.
LATEST = 15.0

#: Processes that ought to have ended, and what says whether those that replace them are there.
Killed = tuple[list[int], Callable[[], bool]]


def ended_after(tree: Sequence[int]) -> float:
    """Wait until all processes of a tree whose root was killed have ended; return the seconds."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE and any(map(is_there, tree)):
        time.sleep(0.1)
    return time.monotonic() - began


def is_there(number: int) -> bool:
    """Whether there is a process that runs."""
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().split(") ")[1][0] not in "ZX"
    return False


class Sites:
    """A run that goes on and on, and the sites that take part in it."""

    def __init__(self, federation: Federation) -> None:
        self._federation, self.run = federation, federation.folder / "run"
        self.nodes = {name: self.start(name) for name in MODALITIES}
        timeouts = ("runtime.node_timeout=300", "runtime.round_timeout=300")
        settings = [*TINY, "rounds=100000", f"run_dir={self.run}", *timeouts]
        submit(federation, settings, federation.folder / "submitted.log")
        wait_until(lambda: self.done() > 0, "round 1", PATIENCE)

    def start(self, modality: str) -> Node:
        return self._federation.add_node(f'modality="{modality}" part=0')

    def done(self) -> int:
        return len(records_of(self.run))

    def used(self, modality: str, after: int) -> int:
        """Return the first round after another in which a site is used, 0 where there is none."""
        rounds = (r["round"] for r in records_of(self.run)[after:] if modality in r["clients"])
        return next(rounds, 0)

    def lost(self, modality: str, after: int, until: int) -> int:
        """Return in how many rounds another site than that one is missing."""
        others = set(MODALITIES) - {modality}
        return sum(not others <= set(r["clients"]) for r in records_of(self.run)[after:until])


def kill_worker(sites: Sites, modality: str) -> Killed:
    """Kill a site's worker; return it, and what says whether another is there."""
    tree = tree_of(sites.nodes[modality].process)
    commands = {number: Path(f"/proc/{number}/cmdline").read_text() for number in tree}
    (worker,) = (number for number in tree if "client.supernode.worker" in commands[number])
    os.kill(worker, signal.SIGKILL)
    return [worker], lambda: True


def kill_client(sites: Sites, modality: str) -> Killed:
    """Kill a site and start it again; return its processes, and what says whether it is back."""
    tree = tree_of(sites.nodes[modality].process)
    os.kill(tree[0], signal.SIGKILL)
    sites.nodes[modality].process.wait()
    node = sites.nodes[modality] = sites.start(modality)
    return tree, lambda: "SuperNode ID" in node.log.read_text()


def kills_of_sites(whom: str, kills: int, folder: Path) -> Iterator[Figure]:
    """Kill one site, or its worker, after the other."""
    kill, chance = {"worker": kill_worker, "client": kill_client}[whom], random.Random(0)
    with Federation(folder, flower_environment(folder)) as federation:
        federation.start(*federation.database)
        sites = Sites(federation)
        for number in range(1, kills + 1):
            # A worker that dies within ten seconds of its start ends its site.
            time.sleep(chance.uniform(11, 20))
            yield from kill_once(f"{whom} {number}", kill, sites, chance.choice(MODALITIES))


def kill_once(
    name: str, kill: Callable[..., Killed], sites: Sites, modality: str
) -> Iterator[Figure]:
    """Kill once, and wait until the site is used again."""
    before, began = sites.done(), time.monotonic()
    tree, is_back = kill(sites, modality)
    ended = ended_after(tree)
    wait_until(is_back, "the site", PATIENCE)
    back = sites.done()
    # The reply to the round under way may have been sent before the kill.
    after = max(back, before + 1)
    wait_until(lambda: sites.used(modality, after) > 0, "the site to be used", PATIENCE)
    first, taken = sites.used(modality, after), time.monotonic() - began
    title = f"{name}, {modality}, rounds {before + 1} to {first}: used again after"
    yield Figure(title, first - back - 1, "rounds", 1, "the next")
    yield Figure("  seconds, new processes' start included", taken, "s")
    yield Figure("  rounds that another site lost", sites.lost(modality, before, first), "")
    yield Figure("  its processes had ended after", ended, "s", LATEST, "none left behind")


def kills_of_superlink(kills: int, folder: Path) -> Iterator[Figure]:
    """Kill the SuperLink, start it again and resume the run."""
    chance, run, before = random.Random(1), folder / "run", 0

    def is_further() -> bool:
        return len(records_of(run)) > before

    settings = [*TINY, "rounds=100000", "runtime.node_timeout=300"]
    with Federation(folder, flower_environment(folder)) as federation:
        superlink = federation.start(*federation.database)
        for modality in MODALITIES:
            federation.add_node(f'modality="{modality}" part=0')
        for number in range(1, kills + 1):
            how = f"resume={run}" if number > 1 else f"run_dir={run}"
            began = time.monotonic()
            submitted = submit(federation, [*settings, how], folder / f"submitted-{number}.log")
            wait_until(is_further, "a round", PATIENCE)
            taken = time.monotonic() - began
            time.sleep(chance.uniform(0, 8))
            tree = tree_of(superlink)
            done = len(records_of(run))
            superlink.kill()
            superlink.wait()
            ended = ended_after(tree)
            submitted.wait(timeout=60)
            kept = [int(p.stem.removeprefix("round-")) for p in (run / "checkpoints").iterdir()]
            superlink = federation.start(*federation.database)
            before = len(records_of(run))
            name = f"superlink {number}, after round {done}: rounds lost"
            yield Figure(name, max(0, done - max(kept)), "", 0, "none but that under way")
            yield Figure("  seconds from resuming to a new round", taken, "s")
            yield Figure("  its processes had ended after", ended, "s", LATEST, "none left behind")


def figures(
    whom: Sequence[str] = ("worker", "client", "superlink"), kills: int = 20
) -> Iterator[Figure]:
    """Kill each so often, in a federation of its own."""
    for name in whom:
        with tempfile.TemporaryDirectory() as folder:
            if name == "superlink":
                yield from kills_of_superlink(kills, Path(folder))
            else:
                yield from kills_of_sites(name, kills, Path(folder))
            ended, left = time.monotonic(), 1
            while left and time.monotonic() - ended < LATEST:
                left = of_environment(folder)
        yield Figure(f"{name}: processes left behind at the end", left, "", 0, "none")


def of_environment(folder: str) -> int:
    """Return how many processes are there that were started with their files in a folder."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found += f"FLWR_HOME={folder}/".encode() in path.read_bytes()
    return found


if __name__ == "__main__":
    main(figures)
