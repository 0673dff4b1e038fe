"""What the tests of clients share."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made outside a Flower process."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)
