"""The writer of checkpoints killed at any moment: the last one whose saving ended is there, whole.

A process that has its libraries forks a writer for each kill, so that kills hit the writing and not
the seconds before. ``UTMP_CHECKPOINT_KILLS=1000`` kills more often.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_checkpoints import checkpoint

from server.run.checkpoint import Checkpoints

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("UTMP_CHECKPOINT_KILLS", "40"))

# Forks a writer of rounds that says each round whose saving has ended, kills it, and prints what is
# there then: one JSON object a kill.
KILLER = """
import json, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path

import torch
from made_up_checkpoints import checkpoint
from server.run.checkpoint import Checkpoints
from wire import assert_same

torch.set_num_threads(1)
kept, kills, chance = Checkpoints(Path(sys.argv[1])), int(sys.argv[2]), random.Random(sys.argv[1])
plain = checkpoint(1, size=33_000)  # some 100,000 parameters, and their moments

def of_round(number):
    model = dict(plain.model, number=torch.full((1_000,), float(number)))
    return replace(plain, round=number, model=model)

def fork(first):
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for number in range(first, first + 1_000):
                kept.save(of_round(number), best=1)
                os.write(writes, number.to_bytes(8, "big"))
        finally:
            os._exit(1)
    os.close(writes)
    return child, reads

def kill(child):
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

kept.save(of_round(1))
times = []
for _ in range(9):
    child, reads = fork(2)
    began = time.perf_counter()
    os.read(reads, 8)
    times.append(time.perf_counter() - began)
    kill(child)
    os.close(reads)

seconds, done = sorted(times)[4], kept.rounds()[-1]
for _ in range(kills):
    child, reads = fork(done + 1)
    time.sleep(chance.uniform(0, 1.5 * seconds))
    status = kill(child)
    said = b"".join(iter(lambda: os.read(reads, 4096), b""))
    os.close(reads)
    told, aside = [], [each.name for each in kept.folder.glob(".*")]
    found = kept.latest(told.append)
    assert_same(found, of_round(found.round))
    reported = int.from_bytes(said[-8:], "big") if said else done
    print(json.dumps({
        "status": status, "before": done, "reported": reported, "found": found.round,
        "told": told, "aside": aside, "rounds": kept.rounds(),
    }), flush=True)
    done = found.round
"""


def test_killed_at_any_moment_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", KILLER, str(tmp_path / "kept"), str(KILLS)]
    printed = subprocess.check_output(command, env=environment, text=True, timeout=240)
    kills = [json.loads(line) for line in printed.splitlines()]
    assert len(kills) == KILLS
    for kill in kills:
        assert kill["status"] == -9
        assert kill["told"] == []
        # Its saving may have ended just before it could say so.
        assert kill["found"] in (kill["reported"], kill["reported"] + 1), kill
        assert {1, kill["found"]} <= set(kill["rounds"]), kill
    # A test of this test: kills hit the writing, at every step of it.
    aside = [name for kill in kills for name in kill["aside"]]
    assert sum(bool(kill["aside"]) for kill in kills) >= KILLS / 5
    assert any(name.endswith(".part") for name in aside), "synced, not yet renamed"
    assert any(name.startswith(".tmp") for name in aside), "in the midst of its arrays"
    assert sum(kill["found"] == kill["before"] for kill in kills) >= KILLS / 20
    assert sum(kill["found"] > kill["before"] for kill in kills) >= KILLS / 20
    # What they left goes with the next that is saved.
    kept, last = Checkpoints(tmp_path / "kept"), kills[-1]["found"]
    kept.save(checkpoint(last + 1), best=1)
    assert kept.rounds() == [1, last, last + 1]
    assert len(list(kept.folder.iterdir())) == 3
