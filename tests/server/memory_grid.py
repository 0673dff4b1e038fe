"""A grid in memory, for tests: messages are answered as soon as they are sent."""

import itertools
from collections.abc import Iterable

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo


class MemoryGrid:
    """Subclasses say who answers what."""

    def answers(self, messages: list[Message]) -> list[Message | None]:
        """Return the replies that come, in the order in which they come."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        raise NotImplementedError

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        keys = [f"message-{next(_NUMBERS)}" for _ in messages]
        for message, key in zip(messages, keys, strict=True):
            message.metadata.__dict__["_message_id"] = key
        waiting = self.__dict__.setdefault("waiting", [])
        waiting += [reply for reply in self.answers(messages) if reply is not None]
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        waiting = self.__dict__.setdefault("waiting", [])
        found = [reply for reply in waiting if reply.metadata.reply_to_message_id in wanted]
        waiting[:] = [reply for reply in waiting if reply not in found]
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


_NUMBERS = itertools.count()
