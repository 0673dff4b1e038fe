"""Runs that are made once, and copies of them that look interrupted."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
from broken_runs import RUNS, begin, cut
from tiny_runs import in_task


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a finished run of `RUNS`, made once with all its checkpoints."""

    @cache
    def make(name: str = "adam") -> Path:
        folder = tmp_path_factory.mktemp(name) / "run"
        with in_task():
            begin(folder, *RUNS[name], "rounds=3", "checkpoint.keep=9")
        return folder

    return make


@pytest.fixture
def interrupted(whole: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy a run as it was after some rounds, with the checkpoints of some."""

    def copy(name: str = "adam", rounds: int = 1, checkpoints: int | None = None) -> Path:
        return cut(copytree(whole(name), tmp_path / "run"), rounds, checkpoints)

    return copy
