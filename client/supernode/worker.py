"""One process that answers all messages of a site's SuperNode.

Flower starts a process for each message, which has to import PyTorch and read the data before it
can begin. ``utmp-client`` starts this one once. It keeps both, and runs the code that is installed
here, whatever code the SuperLink hands out.
"""

import argparse
import os
import sys
import threading
from importlib import import_module
from importlib.metadata import version
from logging import ERROR
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore import log
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.app import app
from client.supernode.pauses import GrowingPause
from common.flower import shorten_backoff

#: Longest pause between two looks for a message, in seconds.
LONGEST_PAUSE = 0.5

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class Worker:
    """Takes a SuperNode's tasks one by one, and answers them with a ClientApp.

    Parameters
    ----------
    secret
        Shared with the SuperNode, which gives tasks to nobody else.
    certificates
        The authority of the Runtime API's certificate, PEM; None if the API is not encrypted.
    installed
        The version of the code here; runs of another version are refused.
    """

    def __init__(
        self,
        client_app: ClientApp,
        address: str,
        secret: bytes,
        certificates: bytes | None = None,
        installed: str | None = None,
    ) -> None:
        self._app, self._address, self._certificates = client_app, address, certificates
        self._secret = secret
        self._installed = installed or version("ha-fedformer")

    def run(self) -> NoReturn:
        """Answer messages for ever.

        A `KeyboardInterrupt` ends the current task only: Flower raises it when a run is over. The
        process ends with the SuperNode's, see `main`.
        """
        pause = GrowingPause()
        signed = SuperExecAuthHttpInterceptor(
            master_secret=self._secret, protected_methods={_ACQUIRE}
        )
        node = self._connect("SuperExec", signed)
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        while True:
            try:
                acquired = node.AcquireTask(request)
                if acquired.token:
                    self._work(acquired.token)
                    pause.reset()
                else:
                    pause.wait(LONGEST_PAUSE)
            except KeyboardInterrupt:
                continue
            except (Exception, RunNotRunningException) as error:
                # Whatever went wrong with this message, the next one is answered.
                log(ERROR, "A message could not be answered: %s", _describe(error))
                pause.wait(LONGEST_PAUSE)

    def _connect(self, component: str, *more: ProtobufClientInterceptor) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=self._certificates is None,
            root_certificates=self._certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), *more],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def _work(self, token: str) -> None:
        """Answer one message."""
        node = self._connect("flwr-clientapp", RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(node))
        context: Context | None = None
        status, details = SubStatus.FAILED, "the run ended meanwhile"
        heartbeat.start()
        try:
            message, context, run, _ = pull_task_input(node)
            try:
                reply = self.answer(message, context, run.fab_version)
                status, details = SubStatus.COMPLETED, ""
            except Exception as error:
                log(ERROR, "A message could not be answered", exc_info=error)
                details = _describe(error)
                reply = Message(
                    Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, details), reply_to=message
                )
            push_message(node, reply, context)
        finally:
            try:
                push_task_output(node, context, status, details)
            finally:
                heartbeat.stop()
                node.close()

    def answer(self, message: Message, context: Context, wanted: str) -> Message:
        """Run the app on a message; refuse a run of another version than is installed."""
        if wanted != self._installed:
            reason = (
                f"the run is of ha-fedformer {wanted} and this site has {self._installed} "
                "installed; install the same version on both sides"
            )
            return Message(Error(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, reason), reply_to=message)
        return self._app(message=message, context=context)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def main() -> NoReturn:
    """Work for the SuperNode that started this process, and end when it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("secret", type=Path, help="file that holds it")
    parser.add_argument("--root-certificates", type=Path)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    secret, authority = arguments.secret.read_bytes(), arguments.root_certificates
    shorten_backoff()
    # torch.optim takes two seconds to import this at its first use; now, nobody waits.
    import_module("torch._dynamo")
    certificates = authority.read_bytes() if authority else None
    Worker(app, arguments.address, secret, certificates).run()


def _end_with_parent() -> None:
    """End when standard input ends, which the SuperNode's process holds open while it lives."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
