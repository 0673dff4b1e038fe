"""Fixtures that start federations."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from processes import TINY, Command, Federation, flower_environment, run_command


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return flower_environment(tmp_path)


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run a command of this environment in an empty folder to its end."""
    return partial(run_command, tmp_path, environment)


@pytest.fixture
def federation(tmp_path: Path, environment: dict[str, str]) -> Iterator[Federation]:
    with Federation(tmp_path, environment) as running:
        running.start(*running.database)
        yield running
