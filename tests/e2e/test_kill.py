"""`utmp-prepare` killed at any moment: its folder is whole or not there, and the next run makes it.

A process that has loaded its libraries and made its source forks for each preparation, of many
shards, so that most kills hit the writing and the renaming, and not the seconds before.
``UTMP_KILLS=20`` kills more often than a test suite has time for.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree

import pytest

from common.data.manifest import read_manifest
from common.data.shards import read_shard

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-m", "server.commands.prepare"]
SETTINGS = ["format=synthetic", "clients.default=12"]
MANY = ["format=synthetic", "clients.default=60"]
KILLS = int(os.environ.get("UTMP_KILLS", "4"))

# Reads {"argv", "folder"} line by line; answers with the fork's number, and with its status when it
# has ended.
FORKS = """
import json, os, sys, traceback
import server.preparation.partition_plot, server.commands.prepare, server.preparation.console
from common.config import SyntheticConfig
from common.data import synthetic
from server.preparation import reading

config = SyntheticConfig(modalities=list(synthetic.VIEWS), num_items=1200, num_speakers=400)
made = {seed: synthetic.make_synthetic(config, seed) for seed in (1, 1234)}
reading.make_synthetic = lambda config, seed, prefix: made[seed]
server.preparation.partition_plot.partition_plot = lambda manifest: b"a picture"

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(order["folder"])
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = order["argv"]
            server.commands.prepare.main()
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(child, flush=True)
    _, ended = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(ended), flush=True)
os._exit(0)
"""


class Forks:
    """Preparations in forks of one process, all in one folder."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, *arguments: str) -> int:
        """Start a preparation and return the number of its process."""
        argv = ["utmp-prepare", *MANY, *arguments]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"argv": argv, "folder": str(self.folder)}) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def end(self) -> int:
        """Wait for it and return its status."""
        return int(self.line())

    def run(self, *arguments: str) -> None:
        self.start(*arguments)
        assert self.end() == 0


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        forks = Forks(process, tmp_path)
        assert forks.line() == "ready"
        yield forks
        assert process.stdin is not None
        process.stdin.close()


def kill(number: int) -> None:
    """Kill -9, where it has not ended yet."""
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_whole(folder: Path, shards: int) -> None:
    """Every shard is there, and is the one that the manifest lists."""
    manifest = read_manifest(folder)
    assert len(manifest.shards) == shards
    assert {path.name for path in folder.iterdir()} == {
        *manifest.shards,
        "manifest.json",
        "partition.png",
    }
    for name, listed in manifest.shards.items():
        shard = read_shard(folder / name)
        assert shard.seal == listed["seal"]
        assert len(shard.items) == listed["items"]
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == listed["sha256"]


def moments(seconds: float) -> list[float]:
    """Random moments, one in each part of a run."""
    chance = random.Random(0)
    order = [seconds * (part + chance.random()) / KILLS for part in range(KILLS)]
    chance.shuffle(order)
    return order


def test_a_folder_is_whole_from_the_first_moment(forks: Forks, tmp_path: Path) -> None:
    forks.run("out=undisturbed")
    expected = {path.name for path in (tmp_path / "undisturbed").iterdir()}
    for name in ("one", "two", "three"):
        forks.start(f"out={name}")
        deadline = time.monotonic() + 60
        while not (tmp_path / name).exists() and time.monotonic() < deadline:
            pass  # as often as can be
        assert {path.name for path in (tmp_path / name).iterdir()} == expected
        assert forks.end() == 0


def test_killed_at_any_moment_a_folder_is_whole_or_not_there(forks: Forks, tmp_path: Path) -> None:
    forks.run("out=undisturbed")
    began = time.monotonic()
    forks.run("out=again")
    seconds = time.monotonic() - began
    check_whole(tmp_path / "undisturbed", 3 * 60 + 2)
    expected = contents(tmp_path / "undisturbed")
    assert contents(tmp_path / "again") == expected

    out, part = tmp_path / "shards", tmp_path / ".shards.part"
    written, shards = [], 3 * 60

    def until(count: int) -> None:
        """Wait for so many shards."""
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                if len(list(part.iterdir())) >= count:
                    return

    half = KILLS // 2
    waits = [partial(time.sleep, moment) for moment in moments(seconds)[half:]]
    waits += [partial(until, shards * number // (half + 1)) for number in range(1, half + 1)]
    for wait in waits:
        number = forks.start("out=shards")
        wait()
        kill(number)
        status = forks.end()
        assert status in (0, -signal.SIGKILL)
        written.append(len(list(part.iterdir())) if part.exists() else 0)
        if out.exists():
            assert contents(out) == expected
            rmtree(out)
        else:
            assert status != 0
        forks.run("out=shards")
        assert contents(out) == expected
        # What the killed run left is gone.
        assert {path.name for path in tmp_path.iterdir()} == {"undisturbed", "again", "shards"}
        rmtree(out)
    # A test of this test: kills hit the writing, at different shards.
    assert len({count for count in written if 0 < count < shards + 2}) >= 2, written


def test_killed_while_it_overwrites_one_of_both_folders_is_whole(
    forks: Forks, tmp_path: Path
) -> None:
    forks.run("out=new")
    forks.run("out=old", "seed=1")
    new, old = contents(tmp_path / "new"), contents(tmp_path / "old")
    began = time.monotonic()
    forks.run("out=old", "overwrite=true")
    seconds = time.monotonic() - began
    assert contents(tmp_path / "old") == new

    out, former = tmp_path / "shards", tmp_path / ".shards.former"
    forks.run("out=shards", "seed=1")
    for moment in moments(seconds)[: KILLS // 2]:
        number = forks.start("out=shards", "overwrite=true")
        time.sleep(moment)
        kill(number)
        forks.end()
        if out.exists():
            assert contents(out) in (old, new)
        else:
            # Between two renames: the former folder is beside its place.
            assert contents(former) == old
        forks.run("out=shards", "overwrite=true", "seed=1")
        assert contents(out) == old
        assert {path.name for path in tmp_path.iterdir()} == {"new", "old", "shards"}


def test_a_command_that_is_killed_while_it_writes_shards(tmp_path: Path) -> None:
    arguments = [*COMMAND, *SETTINGS, "out=shards"]
    out, part = tmp_path / "shards", tmp_path / ".shards.part"
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (part / "audio-0.safetensors").exists():
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (part / "language-0.safetensors").exists()
    assert not (part / "manifest.json").exists()

    for folder in ("shards", "undisturbed"):
        arguments[-1] = f"out={folder}"
        subprocess.run(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, check=True, timeout=60)
    check_whole(out, 3 * 12 + 2)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "undisturbed"}
