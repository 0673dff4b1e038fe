"""``utmp-client``: a site's part in a federation, with the options of ``flower-supernode``.

Flower's SuperNode runs in this process, and one worker beside it answers its messages, see
`client.supernode.worker`. Flower's own command starts a process for each message, runs whatever
code the SuperLink hands out, and looks for messages every three seconds.
"""

import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.supercore.address import resolve_bind_address
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, flower_supernode

from client.supernode.checks import check_site, explain_refusals
from client.supernode.pauses import GrowingPause
from common.errors import UserError
from common.flower import shorten_backoff

#: A worker that ends within this time of its start, in seconds, is not started again.
TOO_SOON = 10.0


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--port" for argument in arguments):
        arguments += ["--port", str(_free_port())]
    sys.argv = ["utmp-client", *arguments]
    options = _parse_args_run_supernode().parse_args()
    try:
        print(check_site(options), flush=True)
    except UserError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
    explain_refusals()
    host = f"[{options.host}]" if ":" in options.host else options.host
    shorten_backoff()
    _shorten_pauses()
    _drop_messages_of_ended_runs()
    fail_tasks = _make_tasks_fail()
    with tempfile.TemporaryDirectory() as folder:
        # Shared with the worker, so that no other process of this machine is given tasks.
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(secrets.token_bytes(32))
        worker = [resolve_bind_address(f"{host}:{options.port}"), str(secret)]
        if options.ssl_ca_certfile:
            worker += ["--root-certificates", options.ssl_ca_certfile]
        sys.argv += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        keeper = WorkerKeeper(worker, fail_tasks)
        try:
            with keeper:
                flower_supernode()
        finally:
            if keeper.failed:
                sys.exit(1)


def _shorten_pauses() -> None:
    """Make the SuperNode look for messages more often, the more recently one came."""
    start_client_internal.time = SimpleNamespace(  # type: ignore[assignment, attr-defined]
        sleep=GrowingPause().wait
    )


def _drop_messages_of_ended_runs() -> None:
    """Make the SuperNode drop a message whose run ends while its content is being fetched.

    Flower 1.42 keeps the task of such a message without its content, and a worker that takes the
    task waits two hours for it. Flower does clean up after other failures of a fetch, so the end
    of the run is raised as one of those.
    """
    original = start_client_internal._pull_and_store_message

    def pull_and_store(**arguments: Any) -> int | None:
        for name in ("pull_object", "confirm_message_received"):
            arguments[name] = _failing(arguments[name])
        return original(**arguments)

    start_client_internal._pull_and_store_message = pull_and_store  # type: ignore[assignment]


def _failing(fetch: Callable[..., Any]) -> Callable[..., Any]:
    def fetch_or_fail(*arguments: Any) -> Any:
        try:
            return fetch(*arguments)
        except RunNotRunningException as error:
            raise RuntimeError("the run has ended") from error

    return fetch_or_fail


def _make_tasks_fail() -> Callable[[], None]:
    """Return what makes the SuperNode answer at once for a worker that has died.

    Flower does so itself when it has not heard of a worker for a minute: with an error, or, where
    the worker had not begun, by giving the message to the next one. Of a reply that is half there
    it waits for the other half, for ever, and for no message any more.
    """
    original, states = start_client_internal._push_messages, list[Any]()

    def push_messages(**arguments: Any) -> None:
        states[:] = [arguments["state"]]
        original(**arguments | {"state": _WholeReplies(arguments["state"])})

    def fail_tasks() -> None:
        for state in states:
            for upload in list(state._object_push_sessions):
                state._cleanup_push_session(upload, cleanup_messages=True)
            with state.lock_task_store:
                for record in state.task_token_store.values():
                    record.active_until = datetime.now(UTC) - timedelta(seconds=1)

    start_client_internal._push_messages = push_messages  # type: ignore[assignment]
    return fail_tasks


class _WholeReplies:
    """A SuperNode's state that hands out a reply when all of it has come from the worker."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **filters: Any) -> Any:
        with self._state._lock_object_push_sessions:
            if self._state._object_push_sessions:
                return []
            return self._state.get_messages_legacy(**filters)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class WorkerKeeper:
    """A context in which one worker runs, with a command line; one that dies is replaced.

    When one has died, `died` is called. A worker that ends soon after its start has `failed`, and
    the SuperNode is ended, too.
    """

    def __init__(self, arguments: Sequence[str], died: Callable[[], None]) -> None:
        # -P: whatever folder the command was started in, its own package is meant.
        self._command = [sys.executable, "-P", "-m", "client.supernode.worker", *arguments]
        self._died, self._ended = died, threading.Event()
        self.failed = False

    def __enter__(self) -> "WorkerKeeper":
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._started = time.monotonic()
        # In a group of its own: Ctrl-C is for the SuperNode, which then ends the worker. Its
        # standard input is never written to: the worker ends when this process closes it by dying.
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, process_group=0)

    def _keep(self) -> None:
        while True:
            with self._process as process:
                status = process.wait()
            if self._ended.is_set():
                return
            print(f"error: the worker ended with status {status}", file=sys.stderr, flush=True)
            if time.monotonic() - self._started < TOO_SOON:
                self.failed = True
                signal.raise_signal(signal.SIGTERM)
                return
            self._died()
            self._start()
