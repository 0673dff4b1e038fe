"""``utmp-superlink``: Flower's SuperLink, which stands still for no site, with the same options.

A reply is announced by the names of its parts. Flower 1.42 notes them in one transaction of its
``--database``, 2 ms of a processor for each, and reads and deletes them as slowly. What else is to
be written meanwhile fails after five seconds, and the SuperLink ends if that was its own. Here an
error stands for a reply of too many parts, of which none is noted, and writing waits longer.

Parts are kept until the server fetches them, which between two rounds it does not. What a node says
of itself is measured here already, and so is every request.
"""

import sys
from dataclasses import dataclass
from typing import Any

from flwr.app import Error, MessageType, Metadata
from flwr.app.message import make_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse, Reconnect
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supercore import sql_mixin
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from common.flower import (
    BROKEN_REPLY,
    MAX_DESCRIPTION,
    MAX_PARTS,
    description_too_large,
    too_many_parts,
)

#: Milliseconds that writing to the database waits for other writing; callers wait 30 seconds.
BUSY_TIMEOUT = 25_000

#: Bytes of one request, at most: a part into which Flower cuts tensors, 5 MiB, and what is around.
MAX_REQUEST = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + (1 << 20)

#: Questions and answers that are remembered at a time, at most.
MOST_REMEMBERED = 10_000


def main() -> None:
    """Run the command."""
    wait_for_writing()
    measure_requests()
    Intake().put_before_flowers()
    # Flower would install this project anew for each run.
    sys.argv = ["utmp-superlink", *sys.argv[1:], "--disable-runtime-dependency-installation"]
    flower_superlink()


def wait_for_writing() -> None:
    """Let writing to a database wait for other writing for `BUSY_TIMEOUT`."""
    mixin: Any = sql_mixin
    pragmas = dict(mixin.SQLITE_PRAGMAS) | {"busy_timeout": str(BUSY_TIMEOUT)}
    mixin.SQLITE_PRAGMAS = tuple(pragmas.items())


@dataclass
class _Answer:
    """What a node says of itself, as far as it has come."""

    metadata: Metadata
    size: int = 0


class Intake:
    """Takes replies in, with Flower's handlers; an error is stored in place of one too large."""

    def __init__(self) -> None:
        self._send = runtime_handlers.push_messages
        self._announce, self._upload = fleet_handlers.push_messages, fleet_handlers.push_object
        #: Messages that ask a node who it is.
        self._questions: dict[str, None] = {}
        #: Their answers, by Flower's number of the upload.
        self._answers: dict[str, _Answer] = {}

    def put_before_flowers(self) -> None:
        """Have requests come here."""
        runtime_handlers.push_messages = self.sent
        fleet_handlers.push_messages = self.announced
        fleet_handlers.push_object = self.came

    def sent(
        self, request: PushAppMessagesRequest, state: Any, task: Any
    ) -> PushAppMessagesResponse:
        """Answer messages to nodes."""
        response = self._send(request=request, state=state, task=task)
        for key, message in zip(response.message_ids, request.messages_list, strict=True):
            if message.metadata.message_type == MessageType.QUERY:
                _remember(self._questions, key, None)
        return response

    def announced(self, request: PushMessagesRequest, state: Any) -> PushMessagesResponse:
        """Answer the announcement of a reply."""
        metadata = metadata_from_proto(request.messages_list[0].metadata)
        parts = {part.object_id for part in iterate_object_tree(request.message_object_trees[0])}
        if len(parts) > MAX_PARTS:
            key = metadata.message_id
            _store_error(state, metadata, too_many_parts(len(parts)))
            return PushMessagesResponse(reconnect=Reconnect(reconnect=5), results={key: 0})
        response = self._announce(request=request, state=state)
        if metadata.reply_to_message_id in self._questions:
            _remember(self._answers, response.session_id, _Answer(metadata))
        return response

    def came(self, request: PushObjectRequest, state: Any) -> PushObjectResponse:
        """Answer a part of a reply."""
        if not request.session_id:
            return PushObjectResponse(stored=False)  # as of SuperNodes before 1.42
        if answer := self._answers.get(request.session_id):
            answer.size += len(request.object_content)
            if answer.size > MAX_DESCRIPTION:
                self._answers.pop(request.session_id, None)
                state._cleanup_push_session(request.session_id, cleanup_messages=True)
                _store_error(state, answer.metadata, description_too_large())
        return self._upload(request=request, state=state)


def _remember(known: dict[str, Any], key: str, value: Any) -> None:
    known[key] = value
    if len(known) > MOST_REMEMBERED:
        known.pop(next(iter(known)), None)


def _store_error(state: Any, metadata: Metadata, reason: str) -> None:
    reply = make_message(metadata, error=Error(BROKEN_REPLY, reason))
    metadata.__dict__["_message_id"] = reply.object_id
    if state.store_message_res(reply):
        state._store_generated_message(reply)


def measure_requests() -> None:
    """Refuse requests that are larger than `MAX_REQUEST`, or do not say how large they are."""
    original = extensions.get_middleware
    extensions.get_middleware = lambda: (*original(), Middleware(MeasuredRequests))


class MeasuredRequests:
    """Passes requests of at most `MAX_REQUEST` bytes on to an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope.get("headers", ()))
        if b"transfer-encoding" in headers:
            await PlainTextResponse("Content-Length is missing", 411)(scope, receive, send)
        elif int(headers.get(b"content-length", 0)) > MAX_REQUEST:
            await PlainTextResponse("too large", 413)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


if __name__ == "__main__":
    main()
