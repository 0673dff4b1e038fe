"""From a round's replies to the updates that may be summed, with a line for each that may not.

A reply is checked by itself when it comes (`validation`). Then it waits for its turn: sums of
floating-point numbers depend on the order, so an update is handed on, in the order of the clients
of its modality, when all before it have answered, were refused, or will not answer. In its turn it
is compared with the former round's (`screening`). In the first round there is nothing to compare
with: there all wait until everybody has answered, or until `MOST_WAITING` bytes wait, and are
compared with each other. Nothing of a refused update is used.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from flwr.app import Message
from torch import Tensor

from common.clients import ClientKey
from common.config import Config
from common.errors import printable
from common.flower import BROKEN_REPLY
from common.messages import ClientDescription, Uplink
from common.model.ha_fedformer import ModelArrays
from common.protocol import MAX_REASON, ClientFailureError, decode_uplink, payload_bytes
from common.task import Task
from common.wire import ProtocolError
from server.acceptance.screening import Screening
from server.acceptance.validation import RejectedUpdateError, UpdateRules

#: Letters of a line about a reply; what a client sends may be quoted in it.
MAX_LINE = 2 * MAX_REASON

#: Bytes of updates that wait in memory; further replies stay with the SuperLink.
MOST_WAITING = 3 << 24


class UpdateFilter:
    """The checks of a run, and what they remember from round to round."""

    def __init__(self, config: Config, trained: ModelArrays, task: Task, prior: Tensor) -> None:
        self.config = config
        self.rules = UpdateRules(trained, task, config, prior)
        #: Node to the number of its refused updates.
        self.faults: Counter[int] = Counter()
        #: What was usual in former rounds, see `server.acceptance.screening`.
        self.medians: Mapping[str, float] = {}

    def is_banned(self, node: int) -> bool:
        """Whether a node has had so many updates refused that it is left out of the run."""
        most = self.config.strategy.screening.max_faults
        return most is not None and self.faults[node] >= most


class FilteredUpdates:
    """The updates of one round that pass, in the clients' order, and what became of the others.

    `asked` are the clients that each node was asked for, as they described themselves, `sent` the
    trained tensors that they were sent, and `most` how many examples one counts as at most.
    """

    def __init__(
        self,
        checks: UpdateFilter,
        server_round: int,
        asked: Mapping[int, Sequence[ClientDescription]],
        sent: ModelArrays,
        most: float = math.inf,
    ) -> None:
        #: One line for each client without an update.
        self.rejected: list[str] = []
        #: Bytes of tensors that came.
        self.received = 0
        #: Replies whose content was refused.
        self.refused = 0
        self._checks, self._round, self._most = checks, server_round, most
        self._screening = Screening(sent, checks.config, checks.medians)
        self._clients = {client.key: client for clients in asked.values() for client in clients}
        self._asked = {node: [client.key for client in clients] for node, clients in asked.items()}
        self._nodes = {key: node for node, keys in self._asked.items() for key in keys}
        self._answers: Counter[int] = Counter()
        #: Clients that are still awaited.
        self._awaited = set(self._clients)
        #: Of each modality, the clients whose turn has not come yet.
        self._lines: dict[str, deque[ClientKey]] = defaultdict(deque)
        for key in sorted(self._clients):
            self._lines[key.modality].append(key)
        #: Updates that wait for their turn, and their bytes.
        self._waiting: dict[ClientKey, Uplink] = {}
        self._waiting_bytes = 0

    def wanted(self) -> set[int] | None:
        """Return the nodes whose replies there is room for, those next in line; None: all."""
        room = MOST_WAITING - self._waiting_bytes
        nodes: set[int] = set()
        fits = True
        lines = [[key for key in line if key in self._awaited] for line in self._lines.values()]
        # All modalities in turn, so that none takes the others' room.
        for place, keys in enumerate(zip_longest(*lines)):
            for key in filter(None, keys):
                room -= self._checks.rules.limits[key.modality]
                # The first of each line are what the others wait for.
                if room >= 0 or place == 0:
                    nodes.add(self._nodes[key])
                else:
                    fits = False
        return None if fits else nodes

    def most_bytes(self, node: int) -> int:
        """Return how many bytes the reply of a node may have; see `UpdateRules.most_bytes`."""
        return self._checks.rules.most_bytes({key.modality for key in self._asked.get(node, ())})

    def give_up(self, node: int) -> None:
        """Go on without the clients of a node from whom nothing more is to come."""
        asked = self._asked.get(node, [])
        keys = [key for key in asked if key in self._awaited]
        silent = max(0, len(asked) - self._answers[node])
        self.rejected += [f"{key}: no reply" for key in keys[:silent]]
        self._awaited.difference_update(keys)

    def take(self, replies: Iterable[Message]) -> Iterator[Uplink]:
        """Yield the updates that pass, from replies in any order, each as soon as it may be."""
        for reply in replies:
            node = reply.metadata.src_node_id
            self._answers[node] += 1
            self._receive(reply, node)
            if self._answers[node] >= len(self._asked.get(node, ())):
                self.give_up(node)
            if not self._screening.is_new or self._waiting_bytes > MOST_WAITING:
                yield from self._hand_on()
        for node in self._asked:
            self.give_up(node)
        yield from self._hand_on()
        self.rejected.sort()
        self._checks.medians = self._screening.medians()

    def leave_out(self, key: ClientKey, reason: str) -> None:
        """Refuse an update that was handed on."""
        self._reject(self._nodes[key], [key], RejectedUpdateError(reason))
        self.rejected.sort()

    @property
    def clipped(self) -> Mapping[ClientKey, float]:
        """Client to how many times the usual its change was, of those that were scaled down."""
        return self._screening.clipped

    def _receive(self, reply: Message, node: int) -> None:
        """Let the update of a reply wait for its turn, if it is sound by itself."""
        keys = self._asked.get(node, [])
        try:
            uplink = self._decoded(reply, keys)
            keys = [uplink.key]
            self._checks.rules.check(uplink, self._clients[uplink.key], self._round)
            if uplink.examples > self._most:
                uplink = replace(uplink, examples=int(self._most))
            self._screening.measure(uplink)
        except Exception as error:
            self._reject(node, keys, error)
        else:
            self._awaited.remove(uplink.key)
            self._waiting[uplink.key] = uplink
            self._waiting_bytes += uplink.nbytes

    def _decoded(self, reply: Message, asked: Sequence[ClientKey]) -> Uplink:
        """Decode the reply of a client that is still to answer."""
        if reply.has_error():
            if reply.error.code == BROKEN_REPLY:
                raise RejectedUpdateError(reply.error.reason)
            # Flower's reason is a traceback in a simulation, which ends with the message.
            reason = reply.error.reason or ""
            message = reason.rsplit("Exception ClientAppException occurred. Message:", 1)[-1]
            raise ClientFailureError(" ".join(message.removesuffix("'>").split())[:MAX_REASON])
        self.received += payload_bytes(reply.content)
        self._checks.rules.check_size(reply.content, {key.modality for key in asked})
        uplink = decode_uplink(reply.content)
        if uplink.key not in asked:
            raise RejectedUpdateError(f"{uplink.key} was not asked of this node")
        if uplink.key not in self._awaited:
            raise RejectedUpdateError(f"{uplink.key} has answered before")
        return uplink

    def _hand_on(self) -> Iterator[Uplink]:
        """Yield the updates whose turn it is, but for those out of proportion."""
        self._screening.learn()
        for line in self._lines.values():
            while line and line[0] not in self._awaited:
                key = line.popleft()
                if (uplink := self._waiting.pop(key, None)) is None:
                    continue
                self._waiting_bytes -= uplink.nbytes
                try:
                    screened = self._screening.screen(uplink)
                except Exception as error:
                    self._reject(self._nodes[key], [key], error)
                else:
                    yield screened

    def _reject(self, node: int, keys: Sequence[ClientKey], error: Exception) -> None:
        """Say why an update is not used, and count it, unless the client itself says so."""
        reason = str(error)
        if not isinstance(error, RejectedUpdateError | ProtocolError):
            # What nobody foresaw in what one client sent must not end the run of the others.
            reason = f"cannot be checked: {type(error).__name__}: {error}"
        self._tell(node, keys, reason)
        if isinstance(error, ClientFailureError):
            return
        self.refused += 1
        before = self._checks.is_banned(node)
        self._checks.faults[node] += 1
        if self._checks.is_banned(node) and not before:
            count = self._checks.faults[node]
            banned = f"left out for the rest of the run after {count} refused updates"
            self._tell(node, keys, banned)

    def _tell(self, node: int, keys: Sequence[ClientKey], reason: str) -> None:
        """Add one line of text that can be printed, whatever a client sent."""
        hosted = ", ".join(map(str, keys)) or "no client that was asked"
        line = f"{hosted} (node {node}): {printable(reason[: 2 * MAX_LINE])}"
        self.rejected.append(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…")
