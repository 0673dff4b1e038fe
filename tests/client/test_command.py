"""What `utmp-client` changes of Flower's SuperNode, on Flower's own code."""

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from client.command import _let_go_of_ended_runs

RUN = 7


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, RUN)


def ended(*_: object) -> Any:
    raise RunNotRunningException


class SuperNode:
    """A SuperNode's memory, and one message that waits for it at the SuperLink."""

    def __init__(self) -> None:
        store = ObjectStoreFactory()
        self.state = NodeStateFactory(store).state()
        self.store = store.store()
        self.state.set_node_id(1)
        self.state.store_run(Run.create_empty(RUN))
        self.message = Message(RecordDict(), 1, MessageType.TRAIN)
        self.message.metadata.__dict__["_message_id"] = self.message.object_id

    def content(self, _run: int, number: str) -> bytes:
        return get_all_nested_objects(self.message)[number].deflate()

    def pull(self, pull_object: Callable[[int, str], bytes], confirm: Callable[..., None]) -> Any:
        """Fetch the message with Flower's function, as its loop does."""
        return start_client_internal._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (self.message, get_object_tree(self.message)),
            get_run=ended,
            get_fab=ended,
            pull_object=pull_object,
            confirm_message_received=confirm,
            trusted_entities=None,
        )

    def waiting(self) -> tuple[int, int]:
        """How many tasks and messages a worker would be handed."""
        tasks = self.state.get_tasks(statuses=["pending"])
        assert all(task.type == TaskType.CLIENT_APP for task in tasks)
        return len(tasks), len(self.state.get_messages_legacy(is_reply=False))


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = start_client_internal._pull_and_store_message
    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", own)
    _let_go_of_ended_runs()


@pytest.mark.usefixtures("changed")
def test_a_message_of_a_run_that_goes_on_is_kept() -> None:
    node = SuperNode()
    assert node.pull(node.content, lambda *_: None) == RUN
    assert node.waiting() == (1, 1)


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("when", ["while it is fetched", "once it is fetched"])
def test_a_message_whose_run_ends_leaves_nothing_to_wait_for(when: str) -> None:
    node = SuperNode()
    if when == "while it is fetched":
        assert node.pull(ended, lambda *_: None) is None
    else:
        assert node.pull(node.content, ended) is None
    assert node.waiting() == (0, 0)
    assert len(node.store) == 0


def test_flower_itself_leaves_a_task_without_content() -> None:
    """Why we change it: this test fails when Flower mends it."""
    node = SuperNode()
    assert node.pull(ended, lambda *_: None) is None
    assert node.waiting() == (1, 1)
