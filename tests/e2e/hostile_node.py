"""A site that describes itself like any other, and then answers badly when it is to train.

    python hostile_node.py part|die|records|huge|many OPTIONS OF utmp-client

``part`` uploads one part of each reply and no more, ``die`` ends while it uploads, and ``records``
sends 20,000 of them. ``huge`` has 10 GB to say of itself before, after five seconds, in parts of 20
MiB, and ``many`` 5 GB in as many parts as are allowed; they print how much of it they could upload.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import make_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supernode import start_client_internal

from client.supernode.command import main

RECORDS = 20_000

#: Bytes of a part of what is said, and how many there are; those of ``many`` are cut as by Flower.
SAID = {"huge": (20_971_520, 480), "many": (FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, 990)}

Contents = Iterable[tuple[str, bytes]]


class HostileNode:
    """What takes the place of the SuperNode's own way to send replies."""

    def __init__(self, how: str) -> None:
        self.how = how
        self._push_messages = start_client_internal._push_messages
        self._push_contents = start_client_internal.push_object_contents_from_iterable
        self._trains, self._records = False, {}

    def push_messages(self, *, send: Callable[..., Any], **rest: Any) -> None:
        self._push_messages(send=partial(self.send, send), **rest)

    def send(self, send: Callable[..., Any], message: Message, tree: Any, seconds: float) -> Any:
        self._trains = message.metadata.message_type == MessageType.TRAIN
        if self.how in SAID:
            time.sleep(5)
            parts = said_tree(*SAID[self.how])
            tree = ObjectTree(object_id=tree.object_id, children=[*parts, *tree.children])
        if not self._trains or self.how != "records":
            return send(message, tree, seconds)
        content = RecordDict({str(n): ConfigRecord({"n": n}) for n in range(RECORDS)})
        many = make_message(message.metadata, content=content)
        with no_object_id_recompute():
            many.metadata.__dict__["_message_id"] = many.object_id
            self._records = get_all_nested_objects(many)
            return send(many, get_object_tree(many), seconds)

    def push_contents(self, contents: Contents, push_object_fn: Callable[..., None]) -> None:
        if self.how in SAID:
            upload(push_object_fn, *SAID[self.how])
        if self._trains and self.how == "records":
            contents = ((name, each.deflate()) for name, each in self._records.items())
        elif self._trains:
            push_object_fn(*next(iter(contents)))
            if self.how == "die":
                os._exit(1)
            return
        self._push_contents(contents, push_object_fn)


def said_head(size: int) -> bytes:
    """Return the content of a part without its last eight bytes."""
    return add_header_to_object_body(bytes(size), ArrayChunk(memoryview(b"")))[:-8]


def said_tree(size: int, count: int) -> list[ObjectTree]:
    """Return the names of the parts of what is said, which differ in their last bytes."""
    begun, names = hashlib.sha256(said_head(size)), []
    for number in range(count):
        each = begun.copy()
        each.update(number.to_bytes(8, "big"))
        names.append(each.hexdigest())
    return [ObjectTree(object_id=name) for name in names]


def upload(push_object_fn: Callable[..., None], size: int, count: int) -> None:
    """Upload parts until one is refused."""
    head = said_head(size)
    for number, part in enumerate(said_tree(size, count)):
        print(f"uploaded {number * size >> 20} MiB", flush=True)
        push_object_fn(part.object_id, head + number.to_bytes(8, "big"))


if __name__ == "__main__":
    hostile = HostileNode(sys.argv.pop(1))
    start_client_internal._push_messages = hostile.push_messages
    start_client_internal.push_object_contents_from_iterable = hostile.push_contents
    main()
