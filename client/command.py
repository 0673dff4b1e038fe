"""``utmp-client``: a site's part in a federation, with the options of ``flower-supernode``.

Flower's SuperNode runs in this process, and beside it one worker answers its messages, see
`client.worker`. What Flower's own command does differently: it starts a process for each message,
runs whatever code the SuperLink hands out, and looks for messages every three seconds.
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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flwr.supercore.address import resolve_bind_address
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, flower_supernode

from client.pauses import GrowingPause
from common.flower import ask_again_soon

#: A worker that ends sooner than this after its start, in seconds, would do so the next time too.
SOON = 10.0


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--port" for argument in arguments):
        arguments += ["--port", str(_free_port())]
    sys.argv = ["utmp-client", *arguments]
    options = _parse_args_run_supernode().parse_args()
    host = f"[{options.host}]" if ":" in options.host else options.host
    worker = [resolve_bind_address(f"{host}:{options.port}")]
    if options.ssl_ca_certfile:
        worker += ["--root-certificates", options.ssl_ca_certfile]
    _look_often()
    _let_go_of_ended_runs()
    secret = secrets.token_bytes(32)
    keeper = WorkerKeeper(worker, secret)
    try:
        with tempfile.TemporaryDirectory() as folder, keeper:
            path = Path(folder) / "secret"
            path.touch(mode=0o600)
            path.write_bytes(secret)
            sys.argv += ["--isolation", "process", "--superexec-auth-secret-file", str(path)]
            flower_supernode()
    finally:
        if keeper.failed:
            sys.exit(1)


def _look_often() -> None:
    """Have the SuperNode look for messages the sooner, the sooner the last one came."""
    ask_again_soon()
    start_client_internal.time = SimpleNamespace(  # type: ignore[assignment, attr-defined]
        sleep=GrowingPause().wait
    )


def _let_go_of_ended_runs() -> None:
    """Have the SuperNode drop a message whose run ends while its content is being fetched.

    Flower 1.41 keeps such a message without its content, and its task: whoever takes that waits
    for two hours. A fetch that fails for any other reason is cleared away, so it becomes one.
    """
    flowers_own = start_client_internal._pull_and_store_message

    def letting_go(**arguments: Any) -> int | None:
        for name in ("pull_object", "confirm_message_received"):
            arguments[name] = _failing(arguments[name])
        return flowers_own(**arguments)

    start_client_internal._pull_and_store_message = letting_go  # type: ignore[assignment]


def _failing(fetch: Callable[..., Any]) -> Callable[..., Any]:
    def fetch_or_fail(*arguments: Any) -> Any:
        try:
            return fetch(*arguments)
        except RunNotRunningException as error:
            raise RuntimeError("the run has ended") from error

    return fetch_or_fail


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class WorkerKeeper:
    """Keeps one worker running, as a context; one that dies is replaced.

    Parameters
    ----------
    arguments
        What `client.worker` takes.
    secret
        What the worker shows to the SuperNode.
    """

    def __init__(self, arguments: Sequence[str], secret: bytes) -> None:
        # -P: whatever folder the command was started in, its own package is meant.
        self._command = [sys.executable, "-P", "-m", "client.worker", *arguments]
        self._secret = secret
        self._ended = threading.Event()
        self.failed = False

    def __enter__(self) -> "WorkerKeeper":
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._process.kill()
        self._clear()

    def _start(self) -> None:
        self._began = time.monotonic()
        # In a group of its own: Ctrl-C is for the SuperNode, which then ends the worker.
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, process_group=0)
        assert self._process.stdin is not None
        # Left open: the worker ends when this process does.
        self._process.stdin.write(self._secret.hex().encode() + b"\n")
        self._process.stdin.flush()

    def _keep(self) -> None:
        while True:
            status = self._clear()
            if self._ended.is_set():
                return
            print(f"error: the worker ended with status {status}", file=sys.stderr, flush=True)
            if time.monotonic() - self._began < SOON:
                self.failed = True
                signal.raise_signal(signal.SIGTERM)
                return
            self._start()

    def _clear(self) -> int:
        """Wait for the worker's end; return its status."""
        status = self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return status
