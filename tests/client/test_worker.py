"""A worker that stays: what it answers, whom it works for, and when it ends."""

import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

import client.command
from client.command import WorkerKeeper
from client.worker import Worker
from common.protocol import decode_description, encode_query


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def worker(installed: str | None = None) -> Worker:
    from client.app import app

    return Worker(app, "127.0.0.1:1", b"secret", installed=installed)


def query() -> tuple[Message, Context]:
    context = Context(
        1,
        1,
        {"modality": "audio"},
        RecordDict(),
        {"config-name": "config", "overrides": "rounds=nonsense"},
    )
    return Message(encode_query(), 1, MessageType.QUERY), context


def test_it_answers_with_the_code_that_is_installed() -> None:
    reply = worker("1.2.3").answer(*query(), "1.2.3")
    # A mistake in the run's settings, of which the app itself tells.
    assert "rounds" in decode_description(reply.content).error


def test_a_run_of_another_version_is_refused_with_both() -> None:
    reply = worker("1.2.3").answer(*query(), "2.0.0")
    assert reply.has_error()
    assert reply.error.reason == (
        "the run is of ha-fedformer 2.0.0 and this site has 1.2.3 installed; install the same "
        "version on both sides"
    )


def test_an_app_that_fails_is_left_to_the_caller() -> None:
    def explode(message: Message, context: Context) -> Message:
        raise RuntimeError("boom")

    app = ClientApp()
    app.query()(explode)
    with pytest.raises(RuntimeError, match="boom"):
        Worker(app, "127.0.0.1:1", b"s", installed="1").answer(*query(), "1")


class Tokens:
    """A SuperNode that has a task at every look."""

    def AcquireTask(self, _request: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(token="t")


@pytest.mark.parametrize(
    "mishap",
    [ObjectPullError("1", "gone"), RunNotRunningException(), RuntimeError("no message"), OSError()],
    ids=lambda mishap: type(mishap).__name__,
)
def test_what_becomes_of_one_message_is_nothing_to_the_next(
    monkeypatch: pytest.MonkeyPatch, mishap: BaseException
) -> None:
    outcomes = iter([mishap, SystemExit])

    def work(_token: str) -> None:
        raise next(outcomes)

    tried = worker("1")
    monkeypatch.setattr(tried, "_connect", lambda *_: Tokens())
    monkeypatch.setattr(tried, "_work", work)
    with pytest.raises(SystemExit):
        tried.run()


# --- Its process ------------------------------------------------------------------------------

#: In place of a worker: reads its secret, then does as it is told.
STAND_IN = "import sys; print(sys.stdin.readline(), end='', file=sys.stderr, flush=True); "


@pytest.fixture
def raised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that this process would have had."""
    signals: list[int] = []
    monkeypatch.setattr(client.command.signal, "raise_signal", signals.append)
    return signals


def keeper(script: str) -> WorkerKeeper:
    made = WorkerKeeper(["x"], b"\x01\xff")
    made._command = [sys.executable, "-c", STAND_IN + script]
    return made


def test_a_worker_is_told_the_secret_and_ends_with_the_node(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with keeper("sys.stdin.read()") as running:
        process = running._process
        assert process.poll() is None
    assert process.poll() is not None and not running.failed
    assert "error" not in capfd.readouterr().err


def test_a_worker_that_dies_after_a_while_is_replaced(
    monkeypatch: pytest.MonkeyPatch, raised: list[int]
) -> None:
    monkeypatch.setattr(client.command, "SOON", 0.0)
    with keeper("sys.stdin.read()") as running:
        first = running._process
        first.kill()
        for _ in range(100):
            if running._process is not first:
                break
            running._ended.wait(0.1)
        assert running._process is not first and running._process.poll() is None
    assert raised == [] and not running.failed


def test_a_worker_that_cannot_start_ends_the_node(
    raised: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with keeper("sys.exit(3)") as running:
        for _ in range(100):
            if raised:
                break
            running._ended.wait(0.1)
    assert running.failed and raised == [signal.SIGTERM]
    assert "error: the worker ended with status 3" in capfd.readouterr().err


def test_the_process_ends_when_its_input_does() -> None:
    """The operating system closes it when the SuperNode's process dies, however it does."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "client.worker", address], stdin=subprocess.PIPE
        )
        process.communicate(b"ff\n", timeout=60)
    assert process.returncode == 0
