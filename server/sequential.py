"""All clients on this machine, one after the other in this process: for sweeps and for tests.

The same apps and the same messages as in Flower's simulation, without Ray and its processes; so
several runs fit beside each other on one machine.
"""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from client.app import given_config, make_client_app
from server.machine import prepare_machine
from server.run.federation import Run

#: Flower stamps messages with these; a SuperLink would give them.
_RUN_ID = 1


class SequentialGrid(Grid):
    """Nodes that answer when their reply is pulled: no more than one reply is in memory.

    Parameters
    ----------
    client_app
        What every node runs.
    nodes
        How many there are; node k has partition k.
    """

    def __init__(self, client_app: ClientApp, nodes: int) -> None:
        self._client_app = client_app
        self._contexts = {
            number + 1: Context(
                _RUN_ID,
                number + 1,
                {"partition-id": number, "num-partitions": nodes},
                RecordDict(),
                {},
            )
            for number in range(nodes)
        }
        self._sent: dict[str, Message] = {}
        self._numbers = itertools.count()
        TaskIdentity.run_id = _RUN_ID
        TaskIdentity.node_id = 0
        TaskIdentity.task_id = _RUN_ID

    def set_run(self, run: FlowerRun) -> None:
        """Ignore it: there is one run."""

    @property
    def run(self) -> FlowerRun:
        """The run."""
        return FlowerRun.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes' ids, from 1."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until they are answered; return keys of the replies."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        # Where Flower's own grids put it, so that the reply says what it answers.
        key = message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        self._sent[key] = message
        return key

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies of some keys, once."""
        for key in list(message_ids):
            if key in self._sent:
                yield self.answer(self._sent.pop(key))

    def answer(self, message: Message) -> Message:
        """Let the node that a message is for answer it."""
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            # As Flower's runtimes do: one client's failure ends no run.
            fault = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}")
            return Message(fault, reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies, in the order of the messages."""
        return list(self.pull_messages(self.push_messages(messages)))


def run_sequentially(run: Run) -> None:
    """Execute a prepared run.

    Raises
    ------
    UserError
        As `server.run.federation.Run.execute`.
    """
    prepare_machine(run)
    app = make_client_app(partial(given_config, run.config))
    with run.console:
        run.execute(SequentialGrid(app, len(run.data.clients)))
