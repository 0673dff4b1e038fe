"""`utmp-prepare` killed at any moment: its folder is whole or not there, and the next run makes it.

A process that has its libraries and its source forks for each preparation, of many shards, so that
most kills hit the writing and the renaming. ``UTMP_KILLS=20`` kills more often.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree

import pytest
from data_checks import files
from forked_command import ForkedCommand, forked_command

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("UTMP_KILLS", "4"))
CLIENTS = 60
SHARDS = 3 * CLIENTS

LOADS = """
import server.preparation.console
from common.config import SyntheticConfig
from common.data import synthetic
from server.commands.prepare import main
from server.preparation import preparation

config = SyntheticConfig(modalities=list(synthetic.VIEWS), num_items=1200, num_speakers=400)
made = {seed: synthetic.make_synthetic(config, seed) for seed in (1, 1234)}
preparation.make_synthetic = lambda config, seed, prefix: made[seed]
server.preparation.console.partition_plot = lambda manifest: b"a picture"
"""


class Preparations:
    """Preparations in forks of one process, all in one folder."""

    def __init__(self, command: ForkedCommand, folder: Path, streams: Path) -> None:
        self.command, self.folder, self.streams = command, folder, streams

    def start(self, *arguments: str) -> int:
        given = ("format=synthetic", f"clients.default={CLIENTS}", *arguments)
        return self.command.start(self.folder, self.streams, *given)

    def run(self, *arguments: str) -> float:
        """Prepare; return the seconds that it took."""
        began = time.monotonic()
        self.start(*arguments)
        assert self.command.end().status == 0
        return time.monotonic() - began

    def kill(self, number: int) -> int:
        """Kill -9, where it has not ended yet; return its status."""
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        status = self.command.end().status
        assert status in (0, -signal.SIGKILL)
        return status


@pytest.fixture
def forks(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparations]:
    with forked_command("utmp-prepare", LOADS) as command:
        yield Preparations(command, tmp_path, tmp_path_factory.mktemp("streams"))


def moments(seconds: float) -> list[float]:
    """Random moments, one in each part of a run."""
    chance = random.Random(0)
    order = [seconds * (part + chance.random()) / KILLS for part in range(KILLS)]
    chance.shuffle(order)
    return order


def wait_for(folder: Path, part: Path | None = None, count: int = 0) -> None:
    """Look as often as can be until a folder, or so many shards of its part, are there."""
    deadline = time.monotonic() + 60
    while not folder.exists() and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if part is not None and len(list(part.iterdir())) >= count:
                return


def test_a_folder_is_whole_from_the_first_moment(forks: Preparations, tmp_path: Path) -> None:
    forks.run("out=undisturbed")
    expected = {path.name for path in (tmp_path / "undisturbed").iterdir()}
    for name in ("one", "two", "three"):
        forks.start(f"out={name}")
        wait_for(tmp_path / name)
        assert {path.name for path in (tmp_path / name).iterdir()} == expected
        assert forks.command.end().status == 0


def test_killed_at_any_moment_a_folder_is_whole_or_not_there(
    forks: Preparations, tmp_path: Path
) -> None:
    forks.run("out=undisturbed")
    seconds = forks.run("out=again")
    expected = files(tmp_path / "undisturbed")
    # Those of the clients and of two sides, their manifest and their picture.
    assert len(expected) == SHARDS + 4
    assert files(tmp_path / "again") == expected

    out, part = tmp_path / "shards", tmp_path / ".shards.part"
    written = []

    half = KILLS // 2
    waits = [partial(time.sleep, moment) for moment in moments(seconds)[half:]]
    counts = [SHARDS * number // (half + 1) for number in range(1, half + 1)]
    waits += [partial(wait_for, out, part, count) for count in counts]
    for wait in waits:
        number = forks.start("out=shards")
        wait()
        status = forks.kill(number)
        written.append(len(list(part.iterdir())) if part.exists() else 0)
        if out.exists():
            assert files(out) == expected
            rmtree(out)
        else:
            assert status != 0
        forks.run("out=shards")
        assert files(out) == expected
        # What the killed run left is gone.
        assert {path.name for path in tmp_path.iterdir()} == {"undisturbed", "again", "shards"}
        rmtree(out)
    # A test of this test: kills hit the writing, at different shards.
    assert len({count for count in written if 0 < count < SHARDS + 2}) >= 2, written


def test_killed_while_it_overwrites_one_of_both_folders_is_whole(
    forks: Preparations, tmp_path: Path
) -> None:
    forks.run("out=new")
    forks.run("out=old", "seed=1")
    new, old = files(tmp_path / "new"), files(tmp_path / "old")
    seconds = forks.run("out=old", "overwrite=true")
    assert files(tmp_path / "old") == new

    out, former = tmp_path / "shards", tmp_path / ".shards.former"
    forks.run("out=shards", "seed=1")
    for moment in moments(seconds)[: KILLS // 2]:
        number = forks.start("out=shards", "overwrite=true")
        time.sleep(moment)
        forks.kill(number)
        # Between two renames, the former folder is beside its place.
        assert files(out) in (old, new) if out.exists() else files(former) == old
        forks.run("out=shards", "overwrite=true", "seed=1")
        assert files(out) == old
        assert {path.name for path in tmp_path.iterdir()} == {"new", "old", "shards"}
