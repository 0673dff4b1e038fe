"""From a round's replies to the updates that may be summed, with a line for each that may not.

A reply is measured before it is read (`payload`), checked by itself (`validation`), compared with
the former round's (`screening`), and waits for its turn (`order`). Nothing of a refused one is
used.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence

from flwr.app import Message
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, PrivacyRule
from common.messages import ClientDescription, Uplink
from common.model.ha_fedformer import ModelArrays
from common.protocol import MAX_REASON, ClientFailureError, decode_uplink, payload_bytes
from common.task import Task
from common.wire import ProtocolError
from server.acceptance.order import ClientOrder
from server.acceptance.payload import check_payload, payload_limits
from server.acceptance.screening import Measures, Screening, exceeds_clip, round_medians
from server.acceptance.validation import RejectedUpdateError, UpdateRules

#: Letters of a line about a reply; what a client sends may be quoted in it.
MAX_LINE = 2 * MAX_REASON


class OutlierError(RejectedUpdateError):
    """An update of a known client that is out of proportion."""

    def __init__(self, key: ClientKey, reason: str) -> None:
        super().__init__(reason)
        self.key = key


class UpdateFilter:
    """The checks of a run, and what they remember from round to round.

    Parameters
    ----------
    config
        The run's configuration.
    trained
        The model's trained tensors.
    task, prior
        Kind of label, and the pooled prior that clients are sent.

    Attributes
    ----------
    faults
        Node to the number of its refused updates.
    medians
        Of the former rounds' changes and precisions, see `server.acceptance.screening`.
    """

    def __init__(self, config: Config, trained: ModelArrays, task: Task, prior: Tensor) -> None:
        self.config = config
        self.trained = trained
        self.rules = UpdateRules(trained, task, config, prior)
        self.limits = payload_limits(trained, config.strategy)
        self.faults: MutableMapping[int, int] = Counter()
        self.medians: Mapping[str, float] = {}

    def is_banned(self, node: int) -> bool:
        """Whether a node has had so many updates refused that it is left out of the run."""
        most = self.config.strategy.screening.max_faults
        return most is not None and self.faults.get(node, 0) >= most

    def begin(
        self,
        server_round: int,
        asked: Mapping[int, Sequence[ClientKey]],
        clients: Mapping[ClientKey, ClientDescription],
        sent: ModelArrays,
    ) -> "FilteredUpdates":
        """Return the updates of a round.

        Parameters
        ----------
        server_round
            From 1.
        asked
            Node to its clients that were asked.
        clients
            Those clients in their order, as they described themselves.
        sent
            The model that they were sent.
        """
        return FilteredUpdates(self, server_round, asked, clients, sent)


class FilteredUpdates:
    """The updates of one round that pass, in the clients' order, and what became of the others.

    Attributes
    ----------
    rejected
        One line for each client without an update.
    received
        Bytes of arrays that came.
    refused
        Replies whose content was refused.
    """

    def __init__(
        self,
        checks: UpdateFilter,
        server_round: int,
        asked: Mapping[int, Sequence[ClientKey]],
        clients: Mapping[ClientKey, ClientDescription],
        sent: ModelArrays,
    ) -> None:
        self.rejected: list[str] = []
        self.received = 0
        self.refused = 0
        self._checks = checks
        self._round = server_round
        self._asked = asked
        self._clients = clients
        self._nodes = {key: node for node, keys in asked.items() for key in keys}
        self._pending = {node: list(keys) for node, keys in asked.items()}
        self._answers: Counter[int] = Counter()
        self._order = ClientOrder(clients)
        self._screening = Screening(_trained_of(sent, checks.trained), checks.config)
        self._measures: list[Measures] = []
        privacy = checks.config.privacy
        self._clip = privacy.clip if privacy.name is PrivacyRule.central else None

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
        """Yield the updates that pass.

        Parameters
        ----------
        replies
            In any order, each as soon as it comes.
        """
        for reply in replies:
            node = reply.metadata.src_node_id
            self._answers[node] += 1
            if uplink := self._accepted(reply, node):
                self._pending[node].remove(uplink.key)
                self._order.settle(uplink.key, uplink)
            if self._answers[node] >= len(self._asked.get(node, ())):
                self.give_up(node)
            yield from self._order.ready()
        for node in list(self._pending):
            self.give_up(node)
        yield from self._order.ready()
        self.rejected.sort()
        if self._clip is None:
            self._checks.medians = {**self._checks.medians, **round_medians(self._measures)}

    def _accepted(self, reply: Message, node: int) -> Uplink | None:
        """Return the update of a reply; None if it has none that may be used."""
        try:
            return self._checked(reply, node)
        except ClientFailureError as error:
            self.rejected.append(_line(node, self._asked.get(node, ()), str(error)))
        except OutlierError as error:
            self._refuse(node, [error.key], str(error))
        except (RejectedUpdateError, ProtocolError) as error:
            self._refuse(node, self._asked.get(node, ()), str(error))
        except Exception as error:
            # What nobody foresaw in what one client sent must not end the run of the others.
            reason = f"cannot be checked: {type(error).__name__}: {error}"
            self._refuse(node, self._asked.get(node, ()), reason)
        return None

    def _checked(self, reply: Message, node: int) -> Uplink:
        """Decode and check the reply of a client that is still to answer."""
        if reply.has_error():
            raise ClientFailureError(_reason(reply.error.reason or ""))
        limits, asked = self._checks.limits, self._asked.get(node, ())
        self.received += payload_bytes(reply.content)
        names = {key.modality for key in asked} or limits.keys()
        check_payload(reply.content, [limits[name] for name in names])
        uplink = decode_uplink(reply.content)
        if uplink.key not in self._pending.get(node, ()):
            state = "has answered before" if uplink.key in asked else "was not asked of this node"
            raise RejectedUpdateError(f"{uplink.key} {state}")
        self._checks.rules.check(uplink, self._clients[uplink.key], self._round)
        return self._in_proportion(uplink)

    def _in_proportion(self, uplink: Uplink) -> Uplink:
        """Return an update, clipped where that is asked for.

        Raises
        ------
        OutlierError
            If its change, or a precision, is out of proportion.
        """
        measures = self._screening.measure(uplink)
        if self._clip is not None:
            # Then what one client sends must not decide whether another counts.
            fault = exceeds_clip(measures, self._clip)
        else:
            # Compared or not, it is one of those that say what is usual.
            self._measures.append(measures)
            fault = self._screening.outlier(measures, self._checks.medians)
        if fault:
            raise OutlierError(uplink.key, fault)
        for norm in (self._checks.config.strategy.screening.clip_norm, self._clip):
            if norm is not None:
                uplink = self._screening.clipped(uplink, norm)
        return uplink

    def _refuse(self, node: int, keys: Sequence[ClientKey], reason: str) -> None:
        self.rejected.append(_line(node, keys, reason))
        self.refused += 1
        before = self._checks.is_banned(node)
        faults = self._checks.faults[node] = self._checks.faults.get(node, 0) + 1
        if self._checks.is_banned(node) and not before:
            left_out = f"left out for the rest of the run after {faults} refused updates"
            self.rejected.append(_line(node, keys, left_out))


def _line(node: int, keys: Sequence[ClientKey], reason: str) -> str:
    """Return one line of text that can be printed, whatever a client sent."""
    hosted = ", ".join(map(str, keys)) or "no client that was asked"
    text = "".join(letter if letter.isprintable() else " " for letter in reason[: 2 * MAX_LINE])
    line = f"{hosted} (node {node}): {text}"
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def _trained_of(model: ModelArrays, trained: ModelArrays) -> ModelArrays:
    """Leave out what is sent, but not trained."""
    encoders = {
        name: {array: model.encoders[name][array] for array in arrays}
        for name, arrays in trained.encoders.items()
    }
    return ModelArrays(encoders, {array: model.decoder[array] for array in trained.decoder})


def _reason(text: str) -> str:
    """Shorten the reason of Flower's error reply, a traceback in a simulation, to its message."""
    message = text.rsplit("Exception ClientAppException occurred. Message:", 1)[-1]
    return " ".join(message.removesuffix("'>").split())[:MAX_REASON]
