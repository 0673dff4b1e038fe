"""Replies from a SuperLink, each when all of it has come, so that none holds up the others.

A node announces a reply by the names of its parts, and uploads the parts after that. Flower 1.42
waits for them itself, one reply after the other, for an hour and more. Here a reply of which parts
are missing is left for the next look.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid.http_grid import HttpGrid

from common.flower import (
    BROKEN_REPLY,
    MAX_DESCRIPTION,
    MAX_PARTS,
    description_too_large,
    too_many_parts,
)
from server.roster.exchange import PartwiseGrid

#: How long a call of the SuperLink takes at most, before it is tried again; and how long it may
#: take even when the deadline is past.
LONGEST_SECONDS, LEAST_SECONDS = 30.0, 0.5

#: How long one look for replies fetches parts.
LOOK_SECONDS = 1.0


@dataclass
class _Begun:
    """A reply that was announced, as the SuperLink has checked it, and its parts that came."""

    metadata: Metadata
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    #: Whether the SuperLink did not have the next part at the last look.
    waits: bool = False
    fault: str = ""


class WholeReplyGrid(HttpGrid, PartwiseGrid):
    """The grid that Flower made, with its connection; replies are pulled part by part."""

    def __init__(self, grid: HttpGrid) -> None:
        self.__dict__.update(vars(grid))
        #: By the key of the message that it answers.
        self._begun: dict[str, _Begun] = {}
        self.most = {}
        self.deadline = math.inf

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies to some keys that are whole, once, and an error for each broken one."""
        until = time.monotonic() + LOOK_SECONDS
        keys = set(message_ids)
        self._forget_expired()
        self._note(keys - self._begun.keys())
        # Small ones first: they do not wait for one of a thousand parts.
        for key in sorted(keys & self._begun.keys(), key=lambda key: len(self._begun[key].missing)):
            begun = self._begun[key]
            self._fetch(begun, until)
            if begun.fault or not begun.missing:
                del self._begun[key]
                yield self._made(begun)

    def abandon(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield an error for each reply of which parts are still to be uploaded; forget them."""
        for key in message_ids:
            if (begun := self._begun.get(key)) and begun.waits:
                del self._begun[key]
                whole = len(begun.parts) + len(begun.missing)
                begun.fault = f"its reply came only in part ({len(begun.parts)} of {whole})"
                yield self._made(begun)

    def _ask(self, call: Callable[[Any], Any], request: Any) -> Any:
        """Call the SuperLink; return None if it does not answer by the deadline, or cannot now."""
        left = max(self.deadline - time.monotonic(), LEAST_SECONDS)
        client, retries = self._runtime_client._client, self._retry_invoker
        former, client.timeout = client.timeout, min(left, LONGEST_SECONDS)
        retries.max_time = left
        try:
            return call(request)
        except httpx.TransportError:
            return None
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            return None
        finally:
            client.timeout, retries.max_time = former, None

    def _forget_expired(self) -> None:
        now = time.time()
        self._begun = {
            key: begun
            for key, begun in self._begun.items()
            if begun.metadata.created_at + begun.metadata.ttl > now
        }

    def _note(self, keys: Iterable[str]) -> None:
        """Ask which replies have been announced; the SuperLink says so once of each."""
        if not (message_ids := sorted(keys)):
            return
        request = PullAppMessagesRequest(message_ids=message_ids)
        if (answer := self._ask(self._runtime_client.PullMessages, request)) is None:
            return
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            names = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            begun = _Begun(metadata_from_proto(message.metadata), names)
            if len(names) > MAX_PARTS:
                begun.fault = too_many_parts(len(names))
            self._begun[begun.metadata.reply_to_message_id] = begun

    def _fetch(self, begun: _Begun, until: float) -> None:
        """Fetch parts until one has not been uploaded yet, or the time is over."""
        begun.waits = False
        while begun.missing and not begun.fault and not begun.waits and time.monotonic() < until:
            request = PullObjectRequest(
                node=self.node, run_id=begun.metadata.run_id, object_id=begun.missing[0]
            )
            if (answer := self._ask(self._runtime_client.PullObject, request)) is None:
                return
            if answer.object_available:
                begun.parts[begun.missing.pop(0)] = answer.object_content
                begun.fault = self._excess(begun)
            elif answer.object_found:
                begun.waits = True
            else:
                why = "too large, or no more of it came"
                begun.fault = f"its reply came only in part, and the SuperLink gave it up: {why}"

    def _excess(self, begun: _Begun) -> str:
        """Say why a reply is too large; let go of it then."""
        most = self.most.get(begun.metadata.reply_to_message_id)
        if sum(map(len, begun.parts.values())) <= (most or MAX_DESCRIPTION):
            return ""
        begun.parts.clear()
        return f"its reply has more than {most:,} bytes" if most else description_too_large()

    def _made(self, begun: _Begun) -> Message:
        """Put a reply together, with what the SuperLink has checked of it, or say why not."""
        metadata, key = begun.metadata, begun.metadata.message_id
        # It deletes the parts, and ends an upload that nobody waits for any more.
        confirm = ConfirmMessageReceivedRequest(
            node=self.node, run_id=metadata.run_id, message_object_id=key
        )
        self._ask(self._runtime_client.ConfirmMessageReceived, confirm)
        if not begun.fault:
            try:
                made = inflate_object_from_contents(key, begun.parts)
                if not isinstance(made, Message):
                    raise TypeError(f"it is a {type(made).__name__}")
                if made.has_error():
                    return make_message(metadata, error=made.error)
                return make_message(metadata, content=made.content)
            except Exception as error:
                # What nobody foresaw in what one node sent must not end the run of the others.
                begun.fault = f"its reply cannot be read: {type(error).__name__}: {error}"
        return make_message(metadata, error=Error(BROKEN_REPLY, begun.fault))
