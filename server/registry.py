"""Which node hosts which clients: every node is asked once, when it is new."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from torch import Tensor

from common.clients import ClientKey
from common.data.dataset import describe_shape
from common.data.moments import Moments
from common.errors import UserError
from common.messages import ClientDescription
from common.protocol import ProtocolError, decode_description, encode_query
from common.task import Task

POLL_SECONDS = 0.2

#: A wait shorter than this is not worth a line.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Member:
    """A client that takes part.

    Attributes
    ----------
    node
        Flower's id of the node that hosts it.
    client
        What the node told of it.
    """

    node: int
    client: ClientDescription


@dataclass
class Registry:
    """The clients that nodes have told of.

    Attributes
    ----------
    members
        Client to where it is, in the order of their names.
    asked
        Nodes that have been asked.
    """

    members: dict[ClientKey, Member] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)

    def refresh(self, grid: Grid, timeout: float) -> None:
        """Ask the nodes that are new; forget the clients of nodes that are gone.

        Raises
        ------
        UserError
            If a node says that it cannot take part, two nodes claim the same client, or clients of
            one modality differ in feature width.
        """
        present = set(grid.get_node_ids())
        self.asked &= present
        self.members = {key: m for key, m in self.members.items() if m.node in present}
        new = sorted(present - self.asked)
        if not new:
            return
        queries = [Message(encode_query(), node, MessageType.QUERY) for node in new]
        for reply in grid.send_and_receive(queries, timeout=timeout):
            self._add(reply)
        self.members = dict(sorted(self.members.items()))
        self._check_widths()

    def _add(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise UserError(f"node {node} cannot be asked what it holds: {reply.error.reason}")
        try:
            description = decode_description(reply.content)
        except ProtocolError as error:
            raise UserError(f"node {node} speaks another protocol: {error}") from error
        if description.error:
            raise UserError(f"node {node}: {description.error}")
        self.asked.add(node)
        for client in description.clients:
            other = self.members.get(client.key)
            if other is not None and other.node != node:
                raise UserError(
                    f"nodes {other.node} and {node} both say that they are {client.key}; "
                    "give each node of a modality its own part in --node-config, as in 'part=1'"
                )
            self.members[client.key] = Member(node, client)

    def _check_widths(self) -> None:
        for name, members in self.by_modality().items():
            first = members[0].client
            for member in members[1:]:
                shapes = [client.moments.mean.shape for client in (first, member.client)]
                if shapes[0] != shapes[1]:
                    here, there = map(describe_shape, shapes)
                    raise UserError(
                        f"{name} is {here} at client {first.key} but {there} at "
                        f"{member.client.key}; all clients of a modality need the same features"
                    )

    def by_modality(self) -> dict[str, list[Member]]:
        """Modality to its members."""
        found: dict[str, list[Member]] = {}
        for key, member in self.members.items():
            found.setdefault(key.modality, []).append(member)
        return found

    def wait_for(
        self,
        grid: Grid,
        counts: Mapping[str, int],
        timeout: float,
        tell: Callable[[str], None],
    ) -> None:
        """Wait until each modality has as many clients as `counts`, at most `timeout` seconds.

        Parameters
        ----------
        grid
            Reaches the nodes.
        counts
            Modality to the number of clients expected.
        timeout
            Seconds.
        tell
            Takes one line for the user, each time that what is missing changes.

        Raises
        ------
        UserError
            If a modality has no client at all by then, or a node has one that is not in `counts`.
        """
        began = time.monotonic()
        told = ""
        while True:
            self.refresh(grid, timeout)
            found = {name: len(members) for name, members in self.by_modality().items()}
            self.check_modalities(counts)
            missing = [
                f"{name}: {found.get(name, 0)} of {count}"
                for name, count in counts.items()
                if found.get(name, 0) < count
            ]
            if not missing:
                return
            if time.monotonic() >= began + timeout:
                break
            line = f"waiting for clients ({', '.join(missing)})"
            if line != told and time.monotonic() > began + PATIENCE_SECONDS:
                tell(told := line)
            time.sleep(POLL_SECONDS)
        absent = [name for name in counts if name not in found]
        if absent:
            raise UserError(
                f"no client of modality {absent[0]!r} after {timeout:.0f} s; start a node with "
                f"--node-config 'modality=\"{absent[0]}\"'"
            )
        tell(f"going on without all clients ({', '.join(missing)})")

    def check_modalities(self, known: Collection[str]) -> None:
        """Raise `UserError` if a member's modality is not among those of the dataset."""
        for key, member in self.members.items():
            if key.modality not in known:
                raise UserError(
                    f"node {member.node} holds modality {key.modality!r}, but the dataset has "
                    f"{', '.join(known)}"
                )

    def label_sums(self, task: Task, outputs: int) -> Tensor:
        """Pool the clients' label sums, as `common.model.evidence.label_sums` of all labels.

        Raises
        ------
        UserError
            If a client has labels that the server's evaluation data does not know.
        """
        total = torch.zeros(
            {Task.regression: 3, Task.classification: outputs, Task.multilabel: outputs + 1}[task],
            dtype=torch.float64,
        )
        for key, member in self.members.items():
            sums = member.client.label_sums
            known = len(sums) <= len(total)
            if not known or (task is not Task.classification and len(sums) != len(total)):
                raise UserError(
                    f"client {key} has labels for {len(sums)} outputs, the evaluation data for "
                    f"{len(total)}"
                )
            total[: len(sums)] += sums
        return total

    def moments(self) -> dict[str, Moments]:
        """Modality to the pooled moments of its features."""
        return {name: _pooled(members) for name, members in self.by_modality().items()}


def _pooled(members: Sequence[Member]) -> Moments:
    total = Moments.empty(*members[0].client.moments.mean.shape)
    for member in members:
        total = total.merge(member.client.moments)
    return total
