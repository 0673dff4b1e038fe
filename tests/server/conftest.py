"""What tests of the server have in common."""

from collections.abc import Iterator

import pytest
from tiny_runs import in_task


@pytest.fixture
def in_a_task() -> Iterator[None]:
    """Let messages be made outside a Flower process."""
    with in_task():
        yield
