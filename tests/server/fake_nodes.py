"""Nodes in memory, what they say that they hold, and what a registry makes of them."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from updates import key_of

from common.data.moments import FeatureMoments
from common.messages import ClientDescription, NodeDescription
from common.protocol import encode_description
from common.task import Task
from server.roster.registry import Registry, Terms

Answer = Callable[[Message], Message | None]
_NUMBERS = itertools.count()


class MemoryGrid:
    """A grid in memory: messages are answered as soon as they are sent."""

    def __init__(self) -> None:
        self.waiting: list[Message] = []

    def answers(self, messages: list[Message]) -> list[Message | None]:
        """Return the replies that come, in the order in which they come."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(_NUMBERS)}"
        self.waiting += [reply for reply in self.answers(messages) if reply is not None]
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted, waiting = set(message_ids), self.waiting
        found = [reply for reply in waiting if reply.metadata.reply_to_message_id in wanted]
        self.waiting = [reply for reply in waiting if reply not in found]
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


class FakeGrid(MemoryGrid):
    """Nodes in memory: each answers a message, or, with None, does not; some have a name."""

    def __init__(self, nodes: dict[int, Answer], names: dict[int, str] | None = None) -> None:
        super().__init__()
        self.nodes, self.names = nodes, names or {}
        self.asked: list[int] = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node)) for node in self.nodes]

    def answers(self, messages: list[Message]) -> list[Message | None]:
        self.asked += [message.metadata.dst_node_id for message in messages]
        # In another order than they were asked in.
        return [self.nodes[m.metadata.dst_node_id](m) for m in reversed(messages)]


def client(
    name: str,
    *,
    width: int = 4,
    examples: int = 10,
    sums: tuple[float, ...] | None = None,
    task: Task = Task.regression,
) -> ClientDescription:
    if sums is None:
        sums = (examples, 1.0, 5.0)
    else:
        examples = int(sum(sums) if task is Task.classification else sums[0])
    rows = np.random.default_rng([examples, len(name)]).normal(size=(examples, width))
    moments = FeatureMoments(
        np.full(width, float(examples)), rows.mean(axis=0), examples * rows.var(axis=0)
    )
    label_sums = torch.tensor(sums, dtype=torch.float64)
    return ClientDescription(key_of(name), examples, task, label_sums, moments)


def hosting(*clients: ClientDescription | str, error: str = "") -> Answer:
    described = tuple(client(each) if isinstance(each, str) else each for each in clients)
    content = encode_description(NodeDescription(described, error))
    return lambda message: Message(content, reply_to=message)


def silent(_: Message) -> None:
    return None


def failing(message: Message) -> Message:
    return Message(Error(1, "no route"), reply_to=message)


#: Of `client`, by default.
TERMS = Terms({"audio": (4,), "vision": (4,)}, Task.regression, 1)


def names(registry: Registry) -> list[str]:
    return [str(key) for key in registry.members]


def named(nodes: dict[int, Answer], **names: str) -> FakeGrid:
    """A grid whose nodes were registered, as in ``n7="audio-0"``."""
    return FakeGrid(nodes, {int(node[1:]): name for node, name in names.items()})


@dataclass
class Clock:
    """Time that passes only where someone sleeps, or a test says so; then things happen."""

    now: float = 1000.0
    longest: float = 0.0
    events: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.longest = max(self.longest, seconds)
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        self.events.append((self.now + seconds, event))
