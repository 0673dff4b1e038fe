"""`utmp-client`: what it changes in Flower's SuperNode, and the worker that answers for it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, Mock

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory
from hypothesis import given
from hypothesis import strategies as st

from client.app import app
from client.supernode import command
from client.supernode.pauses import GrowingPause
from client.supernode.worker import Worker
from common.protocol import decode_description, encode_query

RUN = 7


pytestmark = pytest.mark.usefixtures("in_a_task")


@given(longest=st.floats(0.1, 10), looks=st.integers(1, 200))
def test_each_pause_is_a_tenth_of_the_wait_and_at_most_the_longest(
    longest: float, looks: int
) -> None:
    slept: list[float] = []
    pause = GrowingPause(slept.append)
    for _ in range(looks):
        pause.wait(longest)
    for number, seconds in enumerate(slept):
        assert seconds == pytest.approx(min(0.05 + 0.1 * sum(slept[:number]), longest), rel=1e-6)


def test_pauses_start_anew_after_a_reset_and_for_another_limit() -> None:
    slept: list[float] = []
    pause = GrowingPause(slept.append)
    for longest in (9, 9, 5, 9, 9, None, 9):
        pause.wait(longest) if longest else pause.reset()
    assert slept == pytest.approx([0.05, 0.055, 0.05, 0.05, 0.055, 0.05])


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
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    original = start_client_internal._pull_and_store_message
    monkeypatch.setattr(start_client_internal, "_pull_and_store_message", original)
    command._drop_messages_of_ended_runs()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("ends", ["never", "while fetching", "while confirming"])
def test_a_message_is_kept_unless_its_run_ends(ends: str) -> None:
    node = SuperNode()
    pull = ended if ends == "while fetching" else node.content
    confirm = ended if ends == "while confirming" else lambda *_: None
    assert node.pull(pull, confirm) == (RUN if ends == "never" else None)
    assert node.waiting() == ((1, 1) if ends == "never" else (0, 0))
    assert ends == "never" or len(node.store) == 0


def test_flower_itself_leaves_a_task_without_content() -> None:
    """The reason for the patch: once Flower cleans up here itself, this fails and it can go."""
    node = SuperNode()
    assert node.pull(ended, lambda *_: None) is None
    assert node.waiting() == (1, 1)


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_message_of_a_worker_that_died_is_answered_at_once_or_given_back(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    node, original = SuperNode(), Mock()
    monkeypatch.setattr(start_client_internal, "_push_messages", original)
    fail_tasks = command._make_tasks_fail()
    fail_tasks()  # nothing has come yet
    assert node.pull(node.content, lambda *_: None) == RUN
    start_client_internal._push_messages(state=node.state, object_store=node.store)  # type: ignore[call-arg]
    original.assert_called_once_with(state=ANY, object_store=node.store)
    (task,) = node.state.get_tasks(statuses=["pending"])
    assert node.state.claim_task(task.task_id)
    (taken,) = node.state.get_messages_legacy(is_reply=False)
    if begun:
        assert node.state.activate_task(task.task_id)
    assert node.state.get_messages_legacy(is_reply=True) == []

    fail_tasks()
    replies = node.state.get_messages_legacy(is_reply=True)
    assert [reply.metadata.reply_to_message_id for reply in replies] == (
        [taken.metadata.message_id] if begun else []
    )
    assert all(reply.error.code == ErrorCode.CLIENT_APP_CRASHED for reply in replies)
    assert len(node.state.get_tasks(statuses=["pending"])) == (0 if begun else 1)


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "goes on"])
def test_half_a_reply_is_not_handed_out(monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    node, states = SuperNode(), list[Any]()
    monkeypatch.setattr(
        start_client_internal, "_push_messages", lambda **arguments: states.append(arguments)
    )
    fail_tasks = command._make_tasks_fail()
    node.pull(node.content, lambda *_: None)
    start_client_internal._push_messages(state=node.state)  # type: ignore[call-arg]
    handed_out = states[0]["state"].get_messages_legacy
    (task,) = node.state.get_tasks(statuses=["pending"])
    assert node.state.claim_task(task.task_id) and node.state.activate_task(task.task_id)
    (taken,) = node.state.get_messages_legacy(is_reply=False)

    reply = Message(RecordDict({"of": ConfigRecord({"n": 1})}), reply_to=taken)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    upload, tree = node.state.start_session(RUN), get_object_tree(reply)
    node.state.store_message_and_object_tree(reply, tree, upload)
    first, *others = get_all_nested_objects(reply).items()
    assert node.state.store_object(RUN, upload, first[0], first[1].deflate())
    assert handed_out(is_reply=True) == []
    if dies:
        fail_tasks()
        (error,) = handed_out(is_reply=True)
        assert error.error.code == ErrorCode.CLIENT_APP_CRASHED
        assert reply.metadata.message_id not in node.store
    else:
        for name, part in others:
            assert node.state.store_object(RUN, upload, name, part.deflate())
        assert handed_out(is_reply=True) == [reply]


def worker() -> Worker:
    return Worker(app, "127.0.0.1:1", b"secret", installed="1.2.3")


def query() -> tuple[Message, Context]:
    run_config: dict[str, Any] = {"config-name": "config", "overrides": "rounds=nonsense"}
    context = Context(1, 1, {"modality": "audio"}, RecordDict(), run_config)
    return Message(encode_query(), 1, MessageType.QUERY), context


def test_it_answers_with_the_installed_code_and_refuses_runs_of_another_version() -> None:
    reply = worker().answer(*query(), "1.2.3")
    # The app itself answers with the mistake in the run's settings.
    assert "rounds" in decode_description(reply.content).error
    reason = worker().answer(*query(), "2.0.0").error.reason
    assert "2.0.0" in reason and "1.2.3 installed" in reason


@pytest.mark.parametrize(
    "mishap",
    [ObjectPullError("1", "gone"), RunNotRunningException(), RuntimeError(), KeyboardInterrupt()],
    ids=lambda mishap: type(mishap).__name__,
)
def test_a_message_that_fails_does_not_keep_the_next_from_being_answered(
    monkeypatch: pytest.MonkeyPatch, mishap: BaseException
) -> None:
    tried = worker()
    tasks = SimpleNamespace(AcquireTask=lambda _request: SimpleNamespace(token="t"))
    monkeypatch.setattr(tried, "_connect", lambda *_: tasks)
    monkeypatch.setattr(tried, "_work", Mock(side_effect=[mishap, SystemExit]))
    with pytest.raises(SystemExit):
        tried.run()


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that this process would have received."""
    signals: list[int] = []
    monkeypatch.setattr(command.signal, "raise_signal", signals.append)
    return signals


def keeper(script: str, died: Callable[[], object] = lambda: None) -> command.WorkerKeeper:
    """A keeper of a worker that runs a script."""
    made = command.WorkerKeeper([], died)
    made._command = [sys.executable, "-c", f"import sys; {script}"]
    return made


def wait_for(condition: Callable[[], bool], running: command.WorkerKeeper) -> None:
    for _ in range(100):
        if condition():
            return
        running._ended.wait(0.1)
    pytest.fail("waited 10 s")


def test_a_worker_ends_with_the_node(capfd: pytest.CaptureFixture[str]) -> None:
    with keeper("sys.stdin.read()") as running:
        process = running._process
        assert process.poll() is None
    assert process.poll() is not None and not running.failed
    assert "error" not in capfd.readouterr().err


def test_a_worker_that_dies_later_is_replaced(
    monkeypatch: pytest.MonkeyPatch, raised: list[int]
) -> None:
    monkeypatch.setattr(command, "TOO_SOON", 0.0)
    died: list[subprocess.Popen[bytes]] = []
    with keeper("sys.stdin.read()", lambda: died.append(running._process)) as running:
        first = running._process
        first.kill()
        wait_for(lambda: running._process is not first, running)
        assert running._process.poll() is None
    assert died == [first]
    assert raised == [] and not running.failed


def test_a_worker_that_cannot_start_ends_the_node(
    raised: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with keeper("sys.exit(3)") as running:
        wait_for(lambda: bool(raised), running)
    assert running.failed and raised == [signal.SIGTERM]
    assert "error: the worker ended with status 3" in capfd.readouterr().err


def test_the_process_ends_when_its_input_does(tmp_path: Path) -> None:
    """The operating system closes it when the SuperNode's process dies, however it does."""
    (tmp_path / "secret").write_bytes(b"secret")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "client.supernode.worker", address, tmp_path / "secret"],
            stdin=subprocess.PIPE,
        )
        process.communicate(timeout=60)
    assert process.returncode == 0
