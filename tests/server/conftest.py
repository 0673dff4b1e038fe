"""What tests of the server have in common."""

from collections.abc import Iterator

import pytest
import torch
from tiny_runs import in_task


@pytest.fixture(autouse=True)
def in_a_task() -> Iterator[None]:
    """Let messages be made outside a Flower process, and compute as `server.app` does."""
    torch.set_num_threads(1)
    with in_task():
        yield
