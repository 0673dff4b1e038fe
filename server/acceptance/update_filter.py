"""From a round's replies to the updates that may be summed, with a line for each that may not.

A reply's size is checked before it is read (`payload`); it is checked by itself (`validation`) and
compared with the former round's (`screening`); then it waits for its turn (`order`). In the first
round there is nothing to compare with: there updates are held until all have answered, or until
`MOST_WAITING` bytes of them are held, and compared with each other. Nothing of a refused one is
used.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from flwr.app import Message
from torch import Tensor

from common.clients import ClientKey
from common.config import Config
from common.messages import ClientDescription, Uplink
from common.model.ha_fedformer import ModelArrays
from common.protocol import MAX_REASON, ClientFailureError, decode_uplink, payload_bytes
from common.task import Task
from common.wire import ProtocolError
from server.acceptance.order import MOST_WAITING, ClientOrder, nbytes
from server.acceptance.payload import check_payload, payload_limits
from server.acceptance.screening import Screening
from server.acceptance.validation import RejectedUpdateError, UpdateRules

#: Letters of a line about a reply; what a client sends may be quoted in it.
MAX_LINE = 2 * MAX_REASON


class UpdateFilter:
    """The checks of a run, and what they remember from round to round."""

    def __init__(self, config: Config, trained: ModelArrays, task: Task, prior: Tensor) -> None:
        self.config = config
        self.rules = UpdateRules(trained, task, config, prior)
        self.limits = payload_limits(trained, config.strategy)
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

    `asked` are the clients that each node was asked for, as they described themselves, and `sent`
    the trained tensors that they were sent.
    """

    def __init__(
        self,
        checks: UpdateFilter,
        server_round: int,
        asked: Mapping[int, Sequence[ClientDescription]],
        sent: ModelArrays,
    ) -> None:
        #: One line for each client without an update.
        self.rejected: list[str] = []
        #: Bytes of tensors that came.
        self.received = 0
        #: Replies whose content was refused.
        self.refused = 0
        self._checks, self._round = checks, server_round
        self._asked = {node: [client.key for client in clients] for node, clients in asked.items()}
        self._clients = {client.key: client for clients in asked.values() for client in clients}
        self._nodes = {key: node for node, keys in self._asked.items() for key in keys}
        self._pending = {node: list(keys) for node, keys in self._asked.items()}
        self._answers: Counter[int] = Counter()
        self._order = ClientOrder(sorted(self._clients))
        self._screening = Screening(sent, checks.config, checks.medians)
        self._held: list[tuple[int, Uplink]] = []
        self._held_bytes = 0

    def wanted(self) -> set[int] | None:
        """Return the nodes whose replies there is room for; None: all, see `order`."""
        keys = self._order.wanted()
        return None if keys is None else {self._nodes[key] for key in keys}

    def give_up(self, node: int) -> None:
        """Go on without the clients of a node from whom nothing more is to come."""
        keys = self._pending.pop(node, [])
        silent = max(0, len(self._asked.get(node, ())) - self._answers[node])
        self.rejected += [f"{key}: no reply" for key in keys[:silent]]
        for key in keys:
            self._order.settle(key, None)

    def take(self, replies: Iterable[Message]) -> Iterator[Uplink]:
        """Yield the updates that pass, from replies in any order, each as soon as it comes."""
        for reply in replies:
            node = reply.metadata.src_node_id
            self._answers[node] += 1
            if uplink := self._sound(reply, node):
                self._pending[node].remove(uplink.key)
                self._held.append((node, uplink))
                self._held_bytes += nbytes(uplink)
            if not self._screening.is_new or self._held_bytes > MOST_WAITING:
                self._compare()
            if self._answers[node] >= len(self._asked.get(node, ())):
                self.give_up(node)
            yield from self._order.ready()
        for node in list(self._pending):
            self.give_up(node)
        self._compare()
        yield from self._order.ready()
        self.rejected.sort()
        self._checks.medians = self._screening.medians()

    def _compare(self) -> None:
        """Hand on the updates that are held, but for those out of proportion."""
        self._screening.learn()
        for node, uplink in self._held:
            screened = self._attempt(node, [uplink.key], partial(self._screening.screen, uplink))
            self._order.settle(uplink.key, screened)
        self._held, self._held_bytes = [], 0

    def _sound(self, reply: Message, node: int) -> Uplink | None:
        """Return the update of a reply, measured; None if it has none that may be used."""
        keys = list(self._asked.get(node, []))

        def read() -> Uplink:
            uplink = self._decoded(reply, node)
            keys[:] = [uplink.key]
            self._checks.rules.check(uplink, self._clients[uplink.key], self._round)
            self._screening.measure(uplink)
            return uplink

        return self._attempt(node, keys, read)

    def _attempt(
        self, node: int, keys: Sequence[ClientKey], work: Callable[[], Uplink]
    ) -> Uplink | None:
        """Do a step of the way; None, and a line of those clients, if it goes no further."""
        try:
            return work()
        except ClientFailureError as error:
            self._reject(node, keys, str(error))
        except (RejectedUpdateError, ProtocolError) as error:
            self._refuse(node, keys, str(error))
        except Exception as error:
            # What nobody foresaw in what one client sent must not end the run of the others.
            self._refuse(node, keys, f"cannot be checked: {type(error).__name__}: {error}")
        return None

    def _decoded(self, reply: Message, node: int) -> Uplink:
        """Decode the reply of a client that is still to answer."""
        if reply.has_error():
            raise ClientFailureError(_reason(reply.error.reason or ""))
        self.received += payload_bytes(reply.content)
        limits, asked = self._checks.limits, self._asked.get(node, [])
        modalities = {key.modality for key in asked} or limits.keys()
        check_payload(reply.content, [limits[name] for name in modalities])
        uplink = decode_uplink(reply.content)
        if uplink.key not in self._pending.get(node, ()):
            state = "has answered before" if uplink.key in asked else "was not asked of this node"
            raise RejectedUpdateError(f"{uplink.key} {state}")
        return uplink

    def _refuse(self, node: int, keys: Sequence[ClientKey], reason: str) -> None:
        self._reject(node, keys, reason)
        self.refused += 1
        before = self._checks.is_banned(node)
        self._checks.faults[node] += 1
        if self._checks.is_banned(node) and not before:
            count = self._checks.faults[node]
            banned = f"left out for the rest of the run after {count} refused updates"
            self._reject(node, keys, banned)

    def _reject(self, node: int, keys: Sequence[ClientKey], reason: str) -> None:
        """Add one line of text that can be printed, whatever a client sent."""
        hosted = ", ".join(map(str, keys)) or "no client that was asked"
        text = "".join(letter if letter.isprintable() else " " for letter in reason[: 2 * MAX_LINE])
        line = f"{hosted} (node {node}): {text}"
        self.rejected.append(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…")


def _reason(text: str) -> str:
    """Shorten the reason of Flower's error reply, a traceback in a simulation, to its message."""
    message = text.rsplit("Exception ClientAppException occurred. Message:", 1)[-1]
    return " ".join(message.removesuffix("'>").split())[:MAX_REASON]
