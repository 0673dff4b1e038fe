"""`utmp-superlink`: what it changes in Flower's SuperLink."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flwr.app import ConfigRecord, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse
from flwr.supercore import sql_mixin
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink import extensions
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers

from common.flower import BROKEN_REPLY, MAX_DESCRIPTION, MAX_PARTS
from server import superlink

NODE, RUN, ASKED = 5, 7, "a" * 64


class State:
    """What the handlers use of a SuperLink's state: replies and their parts."""

    def __init__(self) -> None:
        self.replies: list[Message] = []
        self.parts: dict[str, bytes] = {}
        self.ended: list[str] = []

    def store_message_res(self, message: Message) -> str:
        self.replies.append(message)
        return message.metadata.message_id

    def _store_generated_message(self, message: Message) -> None:
        with no_object_id_recompute():
            for name, part in get_all_nested_objects(message).items():
                self.parts[name] = part.deflate()

    def _cleanup_push_session(self, session: str, *, cleanup_messages: bool) -> None:
        assert cleanup_messages
        self.ended.append(session)

    def fault(self) -> str:
        """What a server finds in place of the one reply that there is."""
        (stored,) = self.replies
        metadata = stored.metadata
        assert (metadata.src_node_id, metadata.reply_to_message_id) == (NODE, ASKED)
        assert list(self.parts) == [metadata.message_id]
        found = inflate_object_from_contents(metadata.message_id, self.parts)
        assert isinstance(found, Message) and found.error.code == BROKEN_REPLY
        return found.error.reason


class Handlers:
    """Flower's handlers, for which others were put; they answer nothing but their name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        session = PushMessagesResponse(session_id="upload")
        stored = PushObjectResponse(stored=True)
        sent = PushAppMessagesResponse(message_ids=[ASKED])
        monkeypatch.setattr(fleet_handlers, "push_messages", lambda request, state: session)
        monkeypatch.setattr(fleet_handlers, "push_object", lambda request, state: stored)
        monkeypatch.setattr(runtime_handlers, "push_messages", lambda request, state, task: sent)
        superlink.Intake().put_before_flowers()

    def ask(self, state: Any, kind: str) -> None:
        proto = message_to_proto(make_message(metadata(kind), content=RecordDict()))
        request = PushAppMessagesRequest(messages_list=[proto])
        runtime_handlers.push_messages(request, state, None)  # type: ignore[arg-type]

    def announce(self, state: Any, records: int) -> PushMessagesResponse:
        """Announce a reply, to whatever it says to answer, of so many records."""
        content = RecordDict({str(n): ConfigRecord({"n": n}) for n in range(records)})
        reply = make_message(metadata(MessageType.TRAIN), content=content)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            proto = message_to_proto(remove_content_from_message(reply))
            trees = [get_object_tree(reply)]
        request = PushMessagesRequest(messages_list=[proto], message_object_trees=trees)
        return fleet_handlers.push_messages(request=request, state=state)

    def upload(self, state: Any, size: int, session: str = "upload") -> bool:
        request = PushObjectRequest(session_id=session, object_content=bytes(size))
        return fleet_handlers.push_object(request=request, state=state).stored


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Handlers:
    return Handlers(monkeypatch)


def metadata(kind: str) -> Metadata:
    return Metadata(
        run_id=RUN,
        message_id="",
        src_node_id=NODE,
        dst_node_id=1,
        reply_to_message_id=ASKED,
        group_id="1",
        created_at=time.time(),
        ttl=60.0,
        message_type=kind,
    )


def test_an_error_is_stored_in_place_of_a_reply_of_too_many_parts(handlers: Handlers) -> None:
    state = State()
    answer = handlers.announce(state, 20 * MAX_PARTS)
    assert list(answer.results.values()) == [0] and not answer.objects_to_push
    assert state.fault() == "its reply has 20002 parts; 1000 are allowed"


def test_as_many_parts_as_are_allowed_are_flowers_to_note(handlers: Handlers) -> None:
    state = State()
    # Beside the records: the message, and what holds them.
    assert handlers.announce(state, MAX_PARTS - 2).session_id and not state.replies
    assert not handlers.announce(state, MAX_PARTS - 1).session_id and state.replies


def test_what_a_node_says_of_itself_is_measured_while_it_comes(handlers: Handlers) -> None:
    state, part = State(), MAX_DESCRIPTION // 4
    handlers.ask(state, MessageType.QUERY)
    handlers.announce(state, 1)
    assert all(handlers.upload(state, part) for _ in range(4))
    assert not state.ended
    handlers.upload(state, 1)
    assert state.ended == ["upload"]
    assert state.fault() == "its answer to who it is has more than 32 MiB"


def test_replies_to_other_messages_are_the_servers_to_measure(handlers: Handlers) -> None:
    state = State()
    handlers.ask(state, MessageType.TRAIN)
    handlers.announce(state, 1)
    assert handlers.upload(state, MAX_DESCRIPTION + 1) and not state.replies


def test_no_part_comes_without_its_upload(handlers: Handlers) -> None:
    assert not handlers.upload(State(), 1, session="")


def test_the_oldest_are_forgotten() -> None:
    known: dict[str, int] = {}
    for number in range(superlink.MOST_REMEMBERED + 3):
        superlink._remember(known, str(number), number)
    assert len(known) == superlink.MOST_REMEMBERED and min(known.values()) == 3


def test_requests_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "get_middleware", lambda: ())
    monkeypatch.setattr(superlink, "MAX_REQUEST", 100)
    superlink.measure_requests()
    app = FastAPI(middleware=list(extensions.get_middleware()))
    app.post("/")(lambda: "taken")

    async def in_pieces() -> AsyncIterator[bytes]:
        yield bytes(10)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            posted = [bytes(100), bytes(101), in_pieces()]
            answers = [await client.post("/", content=content) for content in posted]
            return [each.status_code for each in [*answers, await client.get("/docs")]]

    assert asyncio.run(statuses()) == [200, 413, 411, 200]


def test_another_writer_is_waited_for_longer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    superlink.wait_for_writing()
    state = sql_mixin.SqlMixin(str(tmp_path / "superlink.db"))
    monkeypatch.setattr(sql_mixin, "run_migrations", lambda engine: None)
    state.initialize()
    found = [state.query(f"PRAGMA {name}")[0] for name in ("busy_timeout", "foreign_keys")]
    assert [list(row.values()) for row in found] == [[superlink.BUSY_TIMEOUT], [1]]


def test_the_command_takes_flowers_options_and_installs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came: list[list[str]] = []
    for name in ("wait_for_writing", "measure_requests"):
        monkeypatch.setattr(superlink, name, lambda: None)
    nothing = SimpleNamespace(put_before_flowers=lambda: None)
    monkeypatch.setattr(superlink, "Intake", lambda: nothing)
    monkeypatch.setattr(superlink, "flower_superlink", lambda: came.append(sys.argv))
    monkeypatch.setattr(sys, "argv", ["…", "--insecure"])
    superlink.main()
    command = ["utmp-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    assert came == [command]
