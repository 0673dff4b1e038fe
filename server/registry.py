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
from server.validation import check_description

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

    def refresh(self, grid: Grid, known: Collection[str], timeout: float) -> list[str]:
        """Ask the nodes that are new; forget the clients of nodes that are gone.

        A node that cannot take part is asked once and left out. A client that a new node claims
        moves to it: a node that was restarted comes back under another id.

        Parameters
        ----------
        grid
            Reaches the nodes.
        known
            The dataset's modalities.
        timeout
            Seconds to wait for answers.

        Returns
        -------
        list of str
            For each node that was left out or replaced another, one line that says why.
        """
        present = set(grid.get_node_ids())
        self.asked &= present
        self.members = {key: m for key, m in self.members.items() if m.node in present}
        new = sorted(present - self.asked)
        if not new:
            return []
        queries = [Message(encode_query(), node, MessageType.QUERY) for node in new]
        faults: list[str] = []
        replies = grid.send_and_receive(queries, timeout=timeout)
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            self.asked.add(reply.metadata.src_node_id)
            try:
                faults += self._add(reply, known)
            except UserError as error:
                faults.append(f"node {reply.metadata.src_node_id}: {error}")
        self.members = dict(sorted(self.members.items()))
        return faults

    def _add(self, reply: Message, known: Collection[str]) -> list[str]:
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
        for client in description.clients:
            check_description(client, known)
            self._check_width(client)
        claimed = []
        for client in description.clients:
            other = self.members.get(client.key)
            if other is not None:
                claimed.append(
                    f"nodes {other.node} and {node} both say that they are {client.key}; "
                    "give each node of a modality its own part in --node-config, as in 'part=1'"
                )
            self.members[client.key] = Member(node, client)
        return claimed

    def _check_width(self, client: ClientDescription) -> None:
        for member in self.by_modality().get(client.key.modality, []):
            shapes = [each.moments.mean.shape for each in (member.client, client)]
            if shapes[0] != shapes[1]:
                here, there = map(describe_shape, shapes)
                raise UserError(
                    f"{client.key.modality} is {here} at client {member.client.key} but {there} "
                    f"at {client.key}; all clients of a modality need the same features"
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
            If a modality has no client at all by then, or a node cannot take part: before the first
            round that is a mistake to mend.
        """
        began = time.monotonic()
        told = ""
        while missing := self._missing(counts, grid, began + timeout - time.monotonic()):
            waited = time.monotonic() - began
            if waited >= timeout:
                break
            line = f"waiting for clients ({', '.join(missing)})"
            if line != told and waited > PATIENCE_SECONDS:
                tell(told := line)
            time.sleep(POLL_SECONDS)
        else:
            return
        absent = [name for name in counts if name not in self.by_modality()]
        if absent:
            raise UserError(
                f"no client of modality {absent[0]!r} after {timeout:.0f} s; start a node with "
                f"--node-config 'modality=\"{absent[0]}\"'"
            )
        tell(f"going on without all clients ({', '.join(missing)})")

    def _missing(self, counts: Mapping[str, int], grid: Grid, timeout: float) -> list[str]:
        """Refresh, and say of which modalities clients are missing."""
        faults = self.refresh(grid, counts, max(timeout, 0.0))
        if faults:
            raise UserError(faults[0])
        found = {name: len(members) for name, members in self.by_modality().items()}
        return [
            f"{name}: {found.get(name, 0)} of {count}"
            for name, count in counts.items()
            if found.get(name, 0) < count
        ]

    def label_sums(self, task: Task, outputs: int, bins: int = 0) -> Tensor:
        """Pool the clients' label sums, as `common.model.evidence.label_sums` of all labels.

        Parameters
        ----------
        task, outputs
            Kind of label, and outputs of the model.
        bins
            In which numbers are counted; 0: they are not.

        Raises
        ------
        UserError
            If a client's labels are of another kind than the server's evaluation data, or are
            some that these do not know.
        """
        total = torch.zeros(
            {Task.regression: 3 + bins, Task.classification: outputs, Task.multilabel: outputs + 1}[
                task
            ],
            dtype=torch.float64,
        )
        for key, member in self.members.items():
            sums = member.client.label_sums
            if member.client.task is not task:
                raise UserError(
                    f"client {key} has labels for task={member.client.task}, and the evaluation "
                    f"data for task={task}"
                )
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
