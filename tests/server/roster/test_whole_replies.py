"""Replies whose parts come one by one: none is waited for, and none ends the run."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from common.flower import BROKEN_REPLY, MAX_DESCRIPTION, MAX_PARTS
from server.roster.exchange import exchange
from server.roster.whole_replies import WholeReplyGrid

pytestmark = pytest.mark.usefixtures("in_a_task")


@dataclass
class SuperLink:
    """Replies that were announced, by the key of what they answer, and parts that are there."""

    announced: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    parts: dict[str, bytes] = field(default_factory=dict)
    #: Names of all parts of a reply.
    names: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    slow: float = 0.0
    #: How long the client of the connection waits for an answer; the one to fail with.
    _client: Any = field(default_factory=lambda: SimpleNamespace(timeout=30.0))
    fails: httpx.HTTPError | None = None

    def work(self) -> None:
        time.sleep(min(self.slow, self._client.timeout))
        if self.slow > self._client.timeout:
            raise httpx.ReadTimeout("")
        if self.fails:
            raise self.fails

    def answer(
        self,
        key: str,
        content: RecordDict,
        node: int = 1,
        **metadata: object,
    ) -> None:
        """Announce a reply, of which no part is there yet."""
        message = Message(RecordDict(), node, MessageType.TRAIN)
        message.metadata.__dict__["_message_id"] = key
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            proto = message_to_proto(remove_content_from_message(reply))
            for name, value in metadata.items():
                setattr(proto.metadata, name, value)
            self.announced[key] = proto, get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            self.names[key] = list(objects)
            self.contents |= {name: each.deflate() for name, each in objects.items()}

    def upload(self, names: Iterable[str]) -> None:
        self.parts |= {name: self.contents[name] for name in names}

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        self.work()
        found = [self.announced.pop(k) for k in request.message_ids if k in self.announced]
        messages, trees = [m for m, _ in found], [t for _, t in found]
        return PullAppMessagesResponse(messages_list=messages, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        self.work()
        content = self.parts.get(request.object_id, b"")
        found = request.object_id not in self.lost
        return PullObjectResponse(
            object_found=found, object_available=content != b"", object_content=content
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(link: SuperLink) -> WholeReplyGrid:
    made = HttpGrid(insecure=True, token="token")
    made.set_run(Run.create_empty(1))
    made._client = link
    return WholeReplyGrid(made)


def content_of(number: int) -> RecordDict:
    return RecordDict({"record": ConfigRecord({"number": number})})


def number_in(reply: Message) -> object:
    return reply.content["record"]["number"]


def test_reply_comes_once_when_all_its_parts_are_there(
    grid: WholeReplyGrid, link: SuperLink
) -> None:
    link.answer("a", content_of(7))
    for name in link.names["a"]:
        assert list(grid.pull_messages(["a"])) == []
        link.upload([name])
    (reply,) = grid.pull_messages(["a", "b"])
    assert number_in(reply) == 7 and reply.metadata.reply_to_message_id == "a"
    assert link.confirmed == [reply.metadata.message_id]
    assert list(grid.pull_messages(["a"])) == []


def test_half_a_reply_holds_up_no_other_and_is_only_taken_where_it_is_asked_for(
    grid: WholeReplyGrid, link: SuperLink
) -> None:
    for number, key in enumerate("abc"):
        link.answer(key, content_of(number))
    link.upload([*link.names["a"][:1], *link.names["b"], *link.names["c"]])
    began = time.monotonic()
    assert [number_in(reply) for reply in grid.pull_messages("ab")] == [1]
    assert [number_in(reply) for reply in grid.pull_messages("ac")] == [2]
    assert time.monotonic() - began < 1
    link.upload(link.names["a"])
    assert list(grid.pull_messages("bc")) == []
    assert [number_in(reply) for reply in grid.pull_messages("abc")] == [0]


def many(count: int) -> RecordDict:
    return RecordDict({str(number): ConfigRecord({"n": number}) for number in range(count)})


def test_look_ends_in_time_and_the_next_goes_on(grid: WholeReplyGrid, link: SuperLink) -> None:
    link.slow = 0.05
    link.answer("many", many(30))
    link.answer("few", content_of(1))
    link.upload(link.contents)
    began = time.monotonic()
    assert [number_in(reply) for reply in grid.pull_messages(["many", "few"])] == [1]
    assert time.monotonic() - began < 1.5
    link.slow = 0.0
    (reply,) = grid.pull_messages(["many"])
    assert len(reply.content) == 30


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda link: link.answer("a", many(MAX_PARTS)), r"has 1002 parts; 1000 are allowed"),
        (lambda link: link.lost.update(link.names["a"]), "only in part, and the SuperLink gave"),
        (lambda link: link.parts.update(dict.fromkeys(link.names["a"], b"?")), "cannot be read: "),
    ],
)
def test_reply_that_cannot_be_had_is_an_error_of_its_node(
    grid: WholeReplyGrid, link: SuperLink, spoil: Callable[[SuperLink], object], said: str
) -> None:
    link.answer("a", content_of(1), node=5)
    spoil(link)
    (reply,) = grid.pull_messages(["a"])
    assert reply.error.code == BROKEN_REPLY and said in reply.error.reason
    assert reply.metadata.reply_to_message_id == "a"
    assert list(grid.pull_messages(["a"])) == []


def test_root_that_is_no_message_cannot_be_read(grid: WholeReplyGrid, link: SuperLink) -> None:
    link.answer("a", content_of(1))
    proto, tree = link.announced["a"]
    proto.metadata.message_id = tree.children[0].object_id
    link.upload(link.contents)
    (reply,) = grid.pull_messages(["a"])
    assert "cannot be read: TypeError: it is a RecordDict" in reply.error.reason


def test_what_the_superlink_checked_counts_not_what_the_reply_says(
    grid: WholeReplyGrid, link: SuperLink
) -> None:
    link.answer("a", content_of(1), node=5, src_node_id=6, reply_to_message_id="b")
    link.upload(link.contents)
    link.announced["b"] = link.announced.pop("a")
    (reply,) = grid.pull_messages(["b"])
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (6, "b")


def test_a_reply_is_measured_while_it_comes(grid: WholeReplyGrid, link: SuperLink) -> None:
    block = np.zeros(MAX_DESCRIPTION // 4, dtype="u1")
    record = ArrayRecord({str(n): Array(block + n) for n in range(8)})
    content = RecordDict({"moments": record})
    grid.most = {"b": 3 * MAX_DESCRIPTION, "c": MAX_DESCRIPTION // 2}
    for key in "abc":
        # Whatever a node says of what it answers.
        link.answer(key, content, message_type=MessageType.TRAIN)
        link.upload(link.names[key])
    # On a slow machine a look may end before the last of them.
    looks = (grid.pull_messages("abc") for _ in range(9))
    replies = {reply.metadata.reply_to_message_id: reply for look in looks for reply in look}
    assert replies["a"].error.reason == "its answer to who it is has more than 32 MiB"
    assert replies["b"].has_content()
    assert replies["c"].error.reason == "its reply has more than 16,777,216 bytes"
    assert all(replies[key].error.code == BROKEN_REPLY for key in "ac")


def test_reply_that_has_expired_is_forgotten(grid: WholeReplyGrid, link: SuperLink) -> None:
    link.answer("a", content_of(1), ttl=0.05)
    assert list(grid.pull_messages(["a"])) == []
    time.sleep(0.1)
    link.upload(link.contents)
    assert list(grid.pull_messages(["a"])) == []


def failure(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(
        "", request=httpx.Request("POST", "/"), response=httpx.Response(status)
    )


def test_a_superlink_that_stands_still_is_not_waited_for_after_the_deadline(
    grid: WholeReplyGrid, link: SuperLink
) -> None:
    link.answer("a", content_of(7))
    link.upload(link.contents)
    link.slow, began = 10.0, time.monotonic()
    grid.deadline = began + 0.8
    assert list(grid.pull_messages(["a"])) == []
    assert 0.7 < time.monotonic() - began < 2
    link.slow, grid.deadline = 0.0, math.inf
    assert len(list(grid.pull_messages(["a"]))) == 1
    assert link._client.timeout == 30.0 and grid._retry_invoker.max_time is None


def test_what_the_superlink_cannot_do_now_it_is_asked_again(
    grid: WholeReplyGrid, link: SuperLink
) -> None:
    link.answer("a", content_of(7))
    link.upload(link.contents)
    link.fails = failure(500)
    assert list(grid.pull_messages(["a"])) == []
    link.fails = None
    assert len(list(grid.pull_messages(["a"]))) == 1
    link.fails = failure(404)
    with pytest.raises(httpx.HTTPStatusError):
        list(grid.pull_messages(["b"]))


class Everyone:
    """An intake that has room for all, of any size that a description may have."""

    def most_bytes(self, node: int) -> int:
        return MAX_DESCRIPTION

    def wanted(self) -> None:
        return None


def test_half_a_reply_at_the_deadline_of_a_round_is_an_error(
    grid: WholeReplyGrid, link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [Message(RecordDict(), node, MessageType.TRAIN) for node in (1, 2, 3)]

    def push(outgoing: list[Message]) -> list[str]:
        for key, message in zip("abc", outgoing, strict=True):
            message.metadata.__dict__["_message_id"] = key
        return list("abc")

    monkeypatch.setattr(grid, "push_messages", push)
    link.answer("a", content_of(7))
    link.answer("b", content_of(8))
    link.upload([*link.names["a"], link.names["b"][0]])
    began = time.monotonic()
    first, second = exchange(grid, messages, 0.5, intake=Everyone())  # type: ignore[arg-type]
    assert 0.5 <= time.monotonic() - began < 1.5
    assert number_in(first) == 7
    assert second.metadata.src_node_id == 2 and second.error.code == BROKEN_REPLY
    assert "its reply came only in part (" in second.error.reason
