"""Fixtures that start federations."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from processes import TINY, Command, Federation, SecureFederation, flower_environment, run_command


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture
def flower_home(tmp_path: Path) -> Path:
    home = tmp_path / "flower-home"
    home.mkdir()
    return home


@pytest.fixture
def environment(flower_home: Path) -> dict[str, str]:
    return flower_environment(flower_home)


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run a command of this environment in an empty folder to its end."""
    return partial(run_command, tmp_path, environment)


@pytest.fixture
def federation(tmp_path: Path, environment: dict[str, str]) -> Iterator[Federation]:
    running = Federation(tmp_path, environment)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def secure_federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    """A federation over TLS for all tests of a file; not started yet."""
    folder = tmp_path_factory.mktemp("secure")
    home = folder / "flower-home"
    home.mkdir()
    running = SecureFederation(folder, flower_environment(home))
    try:
        yield running
    finally:
        running.stop()
