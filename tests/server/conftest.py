"""What tests of the server have in common."""

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made outside a Flower process, and compute as `server.app` does."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    torch.set_num_threads(1)
