"""The command of a file of tests, in forks of a process that has loaded it as its LOADS say."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from forked_command import ForkedCommand, Run, forked_command


@pytest.fixture(scope="module")
def forked(request: pytest.FixtureRequest) -> Iterator[ForkedCommand]:
    with forked_command(request.module.COMMAND, request.module.LOADS) as command:
        yield command


@pytest.fixture
def loaded(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forked: ForkedCommand) -> Run:
    """Run the command in an empty folder, with its libraries loaded already."""
    return partial(forked.run, tmp_path, tmp_path_factory.mktemp("streams"))
