"""From a round's replies to the updates that may be summed, with a line for each that may not.

A reply is measured before it is read (`payload`), checked by itself (`validation`) and then against
the others (`screening`), for which its arrays wait on disk (`held`). Nothing of a refused one is
used.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, PrivacyRule
from common.messages import ClientDescription, Uplink
from common.model.ha_fedformer import Parts
from common.protocol import (
    MAX_REASON,
    ClientFailureError,
    decode_uplink,
    payload_bytes,
    tensor_bytes,
)
from common.task import Task
from common.wire import ProtocolError
from server.acceptance.held import Held, Updates
from server.acceptance.payload import check_payload, payload_limits
from server.acceptance.privacy import add_noise
from server.acceptance.screening import Measures, Screening, clip_update, left_out, overstep
from server.acceptance.validation import RejectedUpdateError, UpdateRules

#: Letters of a line about a reply; what a client sends may be quoted in it.
MAX_LINE = 2 * MAX_REASON


@dataclass
class Accepted:
    """What became of a round's replies.

    Attributes
    ----------
    updates
        To sum.
    rejected
        One line for each client without one.
    received
        Bytes of arrays that came.
    refused
        Replies whose content was refused.
    """

    updates: Updates = field(default_factory=Updates)
    rejected: list[str] = field(default_factory=list)
    received: int = 0
    refused: int = 0


class Gate:
    """The checks of a run.

    Parameters
    ----------
    config
        The run's configuration.
    trained
        The model's trained tensors.
    task, prior
        Kind of label, and the pooled prior that clients are sent.
    faults
        Node to the number of its refused updates; counted on here.
    """

    def __init__(
        self,
        config: Config,
        trained: Parts,
        task: Task,
        prior: Tensor,
        faults: MutableMapping[int, int],
    ) -> None:
        self._config = config
        self._trained = trained
        self._rules = UpdateRules(trained, task, config, prior)
        self._limits = payload_limits(trained, config.strategy)
        self._faults = faults

    def closed(self, node: int) -> bool:
        """Whether a node is left out for the rest of the run."""
        return left_out(self._faults.get(node, 0), self._config.strategy.screening)

    def accept(
        self,
        server_round: int,
        replies: Iterable[Message],
        asked: Mapping[int, Sequence[ClientKey]],
        clients: Mapping[ClientKey, ClientDescription],
        sent: Parts,
    ) -> Accepted:
        """Return the updates that pass, and what is to be said of the others.

        Parameters
        ----------
        server_round
            From 1.
        replies
            In any order.
        asked
            Node to its clients that were asked.
        clients
            Those clients, as they described themselves.
        sent
            The model that they were sent.
        """
        found, nodes = Accepted(), {key: node for node, keys in asked.items() for key in keys}
        pending = {node: list(keys) for node, keys in asked.items()}
        answers: Counter[int] = Counter()
        screening, held = Screening(self._trained_of(sent), self._config), Held()
        passed: list[Measures] = []
        for reply in replies:
            node = reply.metadata.src_node_id
            answers[node] += 1
            try:
                uplink = self._read(reply, pending.get(node, []), asked.get(node, ()), found)
                self._rules.check(uplink, clients[uplink.key], server_round)
                measures = screening.measure(uplink)
                pending[node].remove(uplink.key)
            except ClientFailureError as error:
                found.rejected.append(_line(node, asked.get(node, ()), str(error)))
            except (RejectedUpdateError, ProtocolError) as error:
                self._refuse(found, node, asked.get(node, ()), str(error))
            except Exception as error:
                # What nobody foresaw in what one client sent must not end the run of the others.
                reason = f"cannot be checked: {type(error).__name__}: {error}"
                self._refuse(found, node, asked.get(node, ()), reason)
            else:
                held.put(uplink, tensor_bytes(reply.content))
                passed.append(measures)
        for node, keys in pending.items():
            found.rejected += [
                f"{key}: no reply" for key in keys[: len(asked[node]) - answers[node]]
            ]
        passed.sort(key=lambda each: each.key)
        odd = self._odd(screening, passed)
        for key, reason in odd.items():
            self._refuse(found, nodes[key], [key], reason)
        heads = [held.head(each.key) for each in passed if each.key not in odd]
        found.updates = self._updates(held, heads, sent)
        found.rejected.sort()
        return found

    def _read(
        self,
        reply: Message,
        pending: Sequence[ClientKey],
        asked: Sequence[ClientKey],
        found: Accepted,
    ) -> Uplink:
        """Decode the reply of a client that is still to answer."""
        if reply.has_error():
            raise ClientFailureError(_reason(reply.error.reason or ""))
        found.received += payload_bytes(reply.content)
        wanted = {key.modality for key in asked} or self._limits.keys()
        check_payload(reply.content, [self._limits[name] for name in wanted])
        uplink = decode_uplink(reply.content)
        if uplink.key not in pending:
            state = "has answered before" if uplink.key in asked else "was not asked of this node"
            raise RejectedUpdateError(f"{uplink.key} {state}")
        return uplink

    def _trained_of(self, model: Parts) -> Parts:
        """Leave out what is sent, but not trained."""
        trained = self._trained
        return Parts(
            {
                name: {each: model.encoders[name][each] for each in arrays}
                for name, arrays in trained.encoders.items()
            },
            {each: model.decoder[each] for each in trained.decoder},
        )

    def _odd(self, screening: Screening, measures: Sequence[Measures]) -> dict[ClientKey, str]:
        """Return the clients whose updates are out of proportion, with the reason."""
        privacy = self._config.privacy
        if privacy.name is PrivacyRule.central:
            # Then what one client sends must not decide whether another counts.
            return overstep(measures, privacy.clip)
        return screening.odd(measures)

    def _updates(self, held: Held, heads: Sequence[Uplink], sent: Parts) -> Updates:
        """Return updates that are clipped, and made noisy, as they are read."""
        privacy, rules = self._config.privacy, self._config.strategy.screening
        central = privacy.name is PrivacyRule.central
        norms = [norm for norm in (rules.clip_norm, privacy.clip if central else None) if norm]
        peers = Counter(head.key.modality for head in heads)

        def read(head: Uplink) -> Uplink:
            uplink = held.get(head)
            for norm in norms:
                uplink = clip_update(uplink, sent, norm)
            if central:
                uplink = add_noise(uplink, peers[head.key.modality], len(heads), privacy)
            return uplink

        return Updates(heads, read)

    def _refuse(
        self, found: Accepted, node: int, clients: Sequence[ClientKey], reason: str
    ) -> None:
        found.rejected.append(_line(node, clients, reason))
        found.refused += 1
        before = self.closed(node)
        self._faults[node] = self._faults.get(node, 0) + 1
        if self.closed(node) and not before:
            found.rejected.append(
                _line(
                    node,
                    clients,
                    f"left out for the rest of the run after {self._faults[node]} refused updates",
                )
            )


def _line(node: int, clients: Iterable[ClientKey], reason: str) -> str:
    """Return one line of text that can be printed, whatever a client sent."""
    hosted = ", ".join(map(str, clients)) or "no client that was asked"
    text = "".join(each if each.isprintable() else " " for each in reason[: 2 * MAX_LINE])
    line = f"{hosted} (node {node}): {text}"
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def _reason(text: str) -> str:
    """Shorten the reason of Flower's error reply, a traceback in a simulation, to its message."""
    message = text.rsplit("Exception ClientAppException occurred. Message:", 1)[-1]
    return " ".join(message.removesuffix("'>").split())[:MAX_REASON]
