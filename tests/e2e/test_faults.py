"""Faults on real processes: runs in which some are killed, hang or come late.

``UTMP_KILLS=20`` kills the SuperLink more often than a test suite has time for.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import BIN, Federation, run_command, training, wait_until
from tiny_runs import left_in

pytestmark = pytest.mark.e2e

MODALITIES = ("language", "audio", "vision")
KILLS = int(os.environ.get("UTMP_KILLS", "1"))


def join(federation: Federation, modality: str) -> subprocess.Popen[bytes]:
    return federation.add_node(f'modality="{modality}" part=0').process


def submit(federation: Federation, overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Submit a run and stream what it prints to a file."""
    name, *arguments = training(overrides)
    return federation.spawn(BIN / name, *arguments, log=log)


def records_of(run: Path) -> list[dict[str, Any]]:
    """The rounds that a run has written so far, without a line that is being written."""
    path = run / "rounds.jsonl"
    content = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_round(run: Path, number: int) -> None:
    wait_until(lambda: len(records_of(run)) >= number, f"round {number}", seconds=180)


def wait_for_summary(run: Path) -> dict[str, Any]:
    wait_until((run / "summary.json").exists, "the summary", seconds=240)
    return json.loads((run / "summary.json").read_text())


def tree_of(process: subprocess.Popen[bytes]) -> list[int]:
    """A process and all its descendants."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, check=True)
    parents = dict(map(int, line.split()) for line in listed.stdout.decode().splitlines())
    tree = [process.pid]
    for known in tree:
        tree += [number for number, parent in parents.items() if parent == known]
    return tree


def send(signal_number: int, tree: list[int]) -> None:
    for number in tree:
        with suppress(ProcessLookupError):
            os.kill(number, signal_number)


def test_superlink_killed_at_any_moment_loses_at_most_a_round(
    federation: Federation, tiny: list[str], tmp_path: Path
) -> None:
    rounds = 3 * KILLS + 1
    settings = [*tiny, f"rounds={rounds}", "client.device=cpu", "strategy=fedavgm"]
    run, chance = tmp_path / "run", random.Random(0)
    for modality in MODALITIES:
        join(federation, modality)

    before, superlink = 0, federation.processes[0]
    for kill in range(KILLS):
        how = f"resume={run}" if kill else f"run_dir={run}"
        log = tmp_path / f"submitted-{kill}.log"
        submitted = submit(federation, [*settings, how], log)
        wait_for_round(run, before + 1)
        time.sleep(chance.uniform(0, 8))
        superlink.kill()
        superlink.wait()
        submitted.wait(timeout=60)
        done = len(records_of(run))
        # What was on disk when this one was submitted is still there.
        assert done > before, log.read_text()
        kept = [int(path.stem.removeprefix("round-")) for path in (run / "checkpoints").iterdir()]
        assert max(kept) >= done - 1
        before = done
        if (run / "summary.json").exists():
            break
        superlink = federation.start(*federation.database)
        if before == rounds:
            # The ServerApp may have outlived the SuperLink, and write its summary yet.
            break
    submit(federation, [*settings, f"resume={run}"], tmp_path / "last.log").wait(timeout=240)
    wait_for_summary(run)

    overrides = [*settings, "runtime=sequential", f"run_dir={tmp_path}/unbroken"]
    run_command(tmp_path, federation.environment, "utmp-train", *overrides)
    assert left_in(run) == left_in(tmp_path / "unbroken")


def test_a_site_that_dies_hangs_or_comes_late(
    federation: Federation, tiny: list[str], tmp_path: Path
) -> None:
    run, log, deadline = tmp_path / "run", tmp_path / "submitted.log", 20
    timeouts = [f"runtime.round_timeout={deadline}", "runtime.node_timeout=90"]
    settings = [*tiny, "rounds=9", f"run_dir={run}", *timeouts]
    nodes = {modality: join(federation, modality) for modality in ("language", "vision")}
    submitted = submit(federation, settings, log)

    # Late: the run waits for it by name.
    wait_until(lambda: "waiting for audio: 0 of 1, " in log.read_text(), "the wait", seconds=90)
    nodes["audio"] = join(federation, "audio")
    wait_for_round(run, 1)
    assert records_of(run)[0]["clients"] == dict.fromkeys(MODALITIES, 1)

    # Hung: the round ends at its deadline, and the next ones do without it.
    hung = tree_of(nodes["audio"])
    send(signal.SIGSTOP, hung)
    late = first_without(run, "audio")
    assert "audio-0: no reply" in late["rejected"]
    assert deadline <= late["seconds"] < deadline + 5
    wait_for_round(run, late["round"] + 1)
    rejected = records_of(run)[late["round"]]["rejected"]
    assert any(re.match("audio-0: (not asked|skipped)", line) for line in rejected), rejected
    send(signal.SIGCONT, hung)
    wait_until(lambda: not records_of(run)[-1]["reused"], "audio, which is back again", seconds=180)

    # Dead: the others go on.
    send(signal.SIGKILL, tree_of(nodes["vision"]))
    dead = first_without(run, "vision")
    assert dead["clients"] == {"language": 1, "audio": 1}
    assert dead["seconds"] < deadline + 5
    submitted.wait(timeout=240)
    assert wait_for_summary(run)["rounds"] == 9


def first_without(run: Path, modality: str) -> dict[str, Any]:
    """Wait for the first round without a modality."""

    def found() -> list[dict[str, Any]]:
        return [record for record in records_of(run) if modality in record["reused"]]

    wait_until(lambda: bool(found()), f"a round without {modality}", seconds=120)
    return found()[0]
