"""Which node hosts which clients: every node is asked once, when it is new."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.clients import ClientKey
from common.data.dataset import describe_shape
from common.errors import UserError
from common.messages import ClientDescription
from common.protocol import decode_description, encode_query
from common.task import Task
from common.wire import ProtocolError
from server.acceptance.linear_sums import linear_sums_fault
from server.acceptance.plausibility import label_sums_fault
from server.roster.exchange import Backlog, collect, send
from server.roster.labels import kind_fault

#: How long a wait for descriptions holds up everything else; after how long a node that has not
#: answered is asked again, for queries get lost in nodes; and how long a late answer still counts.
QUERY_SECONDS = 2.0
QUERY_AGAIN = 45.0
QUERY_LIFETIME = 600.0

#: Examples of a client, at most.
MAX_EXAMPLES = 1_000_000_000

#: Errors that say nothing of a node but that it is not there; it is asked again when it is.
_GONE = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
}


class ImpostorError(UserError):
    """A node that is not the client that it says it is; no mistake of the others."""


@dataclass(frozen=True)
class Member:
    """A client that takes part, and Flower's id of the node that hosts it."""

    node: int
    client: ClientDescription


@dataclass(frozen=True)
class Terms:
    """What every client must agree with: the coordinator's evaluation data."""

    #: Modality to the shape of its features' statistics.
    shapes: Mapping[str, tuple[int, ...]]
    task: Task
    outputs: int
    #: What the classes or labels are called, where that is known.
    label_names: tuple[str, ...] = ()
    #: Modality to the identity of what made its features, where that is known.
    extractors: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Registry:
    """The clients that nodes have described."""

    terms: Terms
    #: In the order of their names.
    members: dict[ClientKey, Member] = field(default_factory=dict)
    #: Nodes that have been asked, or are not to be.
    asked: set[int] = field(default_factory=set)
    #: Whether a node was seen that is registered with a name. Then every node needs one, and may
    #: only be the client of that name.
    named: bool = False
    #: Messages that were not answered in time.
    backlog: Backlog = field(default_factory=Backlog)
    #: Whether sums for linear experts are kept; each client's may take 8 MB.
    keeps_linear: bool = True
    #: Nodes that claimed a client of another node, which they may have when that one is gone.
    _claimants: dict[int, int] = field(default_factory=dict)
    #: Message to the node that it asks, and node to when it was asked.
    _queries: dict[str, int] = field(default_factory=dict)
    _asked_at: dict[int, float] = field(default_factory=dict)

    def refresh(self, grid: Grid, timeout: float) -> list[UserError]:
        """Ask the nodes that are new which clients they host; forget those of nodes that are gone.

        A node that cannot take part is asked once and left out. A client that a new node claims
        moves to it if it is registered with that name: a node that was restarted comes back under
        another id. Without a name it is left out for as long as the other node is there. Answers
        are waited for `timeout` seconds by whoever asks; later ones are taken in by later calls.

        Returns
        -------
        list of UserError
            One for each node that was left out or replaced another, `ImpostorError` where it is no
            mistake of its own site.
        """
        names = {node.node_id: node.name for node in grid.get_nodes()}
        errors: list[UserError] = list(self._refuse_nameless(names))
        self.asked &= names.keys()
        self._claimants = {
            node: holder for node, holder in self._claimants.items() if node in names
        }
        for node, holder in list(self._claimants.items()):
            if holder not in names:
                del self._claimants[node]
                self.asked.discard(node)
        self.members = {key: m for key, m in self.members.items() if m.node in names}
        has_asked = self._send_queries(grid, names.keys() - self.asked)
        # A node that never answers does not hold up every round.
        replies = list(collect(grid, self._queries, timeout if has_asked else 0.0))
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if node in self.asked or (reply.has_error() and reply.error.code in _GONE):
                continue  # it was asked twice, or is not there
            self.asked.add(node)
            try:
                errors += self._add(reply, names.get(node, ""))
            except ImpostorError as error:
                errors.append(error)
            except UserError as error:
                errors.append(UserError(f"node {node}: {error}"))
        self.members = dict(sorted(self.members.items()))
        return errors

    def _send_queries(self, grid: Grid, nodes: Collection[int]) -> bool:
        """Ask those who are new, or have not answered for long; forget the queries to others.

        Returns whether there were any to ask.
        """
        now = time.monotonic()
        self._queries = {key: node for key, node in self._queries.items() if node in nodes}
        waiting = set(self._queries.values())
        due = [
            node
            for node in sorted(nodes)
            if node not in waiting or now - self._asked_at[node] >= QUERY_AGAIN
        ]
        if due:
            queries = [Message(encode_query(), node, MessageType.QUERY) for node in due]
            self._queries |= send(grid, queries, QUERY_LIFETIME)
            self._asked_at |= dict.fromkeys(due, now)
        return bool(due)

    def _refuse_nameless(self, names: Mapping[int, str]) -> list[ImpostorError]:
        """Leave out nodes without a name, also such as came before the first that has one."""
        nameless = {node for node, name in names.items() if not name}
        if not self.named and len(nameless) < len(names):
            self.named = True
            self.asked -= nameless
        refused = sorted(nameless - self.asked) if self.named else []
        self.asked.update(refused)
        self.members = {key: m for key, m in self.members.items() if m.node not in refused}
        return [
            ImpostorError(
                f"node {node} is registered without a name, and others with one: it is left out "
                "until it is registered with --name"
            )
            for node in refused
        ]

    def _add(self, reply: Message, name: str) -> list[UserError]:
        """Take in the clients of a node, all or none; return the claims that it took over."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise UserError(f"it cannot be asked what it holds: {reply.error.reason}")
        try:
            description = decode_description(reply.content)
        except ProtocolError as error:
            raise UserError(f"it speaks another protocol: {error}") from error
        if description.error:
            raise UserError(description.error)
        said = ", ".join(str(client.key) for client in description.clients)
        if name not in ("", said):
            raise ImpostorError(
                f"node {node} is registered as {name} and says that it is {said or 'no client'}: "
                "it is left out until its --node-config or its name is corrected"
            )
        for client in description.clients:
            self._check(client)
        claims = {
            c.key: self.members[c.key].node for c in description.clients if c.key in self.members
        }
        if claims and not name:
            key, self._claimants[node] = next(iter(claims.items()))
            raise ImpostorError(
                f"nodes {self._claimants[node]} and {node} both say that they are {key}; node "
                f"{node} is left out while the other is there; give each node of a modality its "
                "own part in --node-config, as in 'part=1'"
            )
        for client in description.clients:
            kept = client if self.keeps_linear else replace(client, linear=None)
            self.members[client.key] = Member(node, kept)
        return [
            UserError(f"node {node} takes the place of node {holder}: both are registered as {key}")
            for key, holder in claims.items()
        ]

    def _check(self, client: ClientDescription) -> None:
        """Raise UserError at the first fault of what a client says of itself."""
        key, moments, terms = client.key, client.moments, self.terms
        if key.modality not in terms.shapes:
            raise UserError(
                f"it holds modality {key.modality!r}, but the dataset has {', '.join(terms.shapes)}"
            )
        if client.examples < 1:
            raise UserError(f"client {key} has no examples")
        if client.examples > MAX_EXAMPLES:
            raise UserError(f"client {key} says that it has {client.examples} examples")
        if (found := moments.mean.shape) != (expected := terms.shapes[key.modality]):
            here, there = map(describe_shape, (found, expected))
            raise UserError(
                f"{key.modality} is {here} at client {key} but {there} in the evaluation data"
            )
        for fault in (
            kind_fault(client, terms.task, terms.outputs, terms.label_names),
            self._extractor_fault(client),
            label_sums_fault(client.label_sums, client.task, client.examples),
        ):
            if fault:
                raise UserError(f"client {key} has {fault}")
        is_finite = all(np.isfinite(array).all() for array in vars(moments).values())
        if not is_finite or ((moments.count < 0) | (moments.squares < 0)).any():
            raise UserError(f"client {key} reports moments of its features that cannot be")
        if client.linear is not None and (
            fault := linear_sums_fault(client.linear, client.label_sums, client.task)
        ):
            raise UserError(f"client {key} reports {fault}")

    def _extractor_fault(self, client: ClientDescription) -> str | None:
        """Say why a client's features are not those of the others of its modality, or None."""
        modality = client.key.modality
        known = {
            f"client {key}": member.client.extractor
            for key, member in self.members.items()
            if key.modality == modality and key != client.key
        }
        known = {"the evaluation data": self.terms.extractors.get(modality, "")} | known
        for who, identity in known.items() if client.extractor else ():
            if identity not in ("", client.extractor):
                return (
                    f"features of the extractor {client.extractor}, and {who} of {identity}: all "
                    "sites of a modality must use the same; extract again as the other's "
                    "extractor.json says"
                )
        return None

    @property
    def extractors(self) -> dict[str, str]:
        """Modality to the identity of what made its features, where anyone says it."""
        clients = [member.client for member in self.members.values()]
        said = {each.key.modality: each.extractor for each in clients if each.extractor}
        return {**said, **self.terms.extractors}

    def forget_linear(self) -> None:
        """Let go of the sums for linear experts, and of those that are yet to come."""
        self.keeps_linear = False
        for key, member in self.members.items():
            self.members[key] = replace(member, client=replace(member.client, linear=None))

    def by_modality(self) -> dict[str, list[Member]]:
        """Modality to its members."""
        by_modality: dict[str, list[Member]] = {}
        for key, member in self.members.items():
            by_modality.setdefault(key.modality, []).append(member)
        return by_modality

    def choose(
        self,
        grid: Grid,
        fraction: float,
        rng: Callable[[str], np.random.Generator],
        is_banned: Callable[[int], bool],
    ) -> tuple[list[Member], list[str]]:
        """Sample a share of each modality's clients for a round, at least one of those not banned.

        Clients of nodes that are still at an earlier round are skipped, unless all are; there is a
        line for each.
        """
        busy = self.backlog.nodes(grid)
        chosen: list[Member] = []
        for name, everyone in self.by_modality().items():
            members = [member for member in everyone if not is_banned(member.node)]
            if members:
                size = max(1, round(fraction * len(members)))
                picked = np.sort(rng(name).choice(len(members), size=size, replace=False))
                chosen += [members[index] for index in picked]
        free = [member for member in chosen if member.node not in busy]
        skipped = [
            f"{member.client.key}: skipped: still busy with an earlier round"
            for member in chosen
            if free and member.node in busy
        ]
        return free or chosen, skipped
