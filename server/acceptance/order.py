"""Updates in the clients' order, whatever the order in which they come.

Sums of floating-point numbers depend on the order. So an update is handed on when all clients of
its modality before it are settled: they have answered, were refused, or will not answer. Early ones
wait in memory, up to `MOST_WAITING` bytes and what the same poll brought; when these are full, only
the replies of the clients next in line are `wanted`, and all others stay with the SuperLink until
there is room.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from common.clients import ClientKey
from common.messages import Uplink

#: Bytes of updates that wait for clients before them.
MOST_WAITING = 1 << 26


class ClientOrder:
    """A line of clients for each modality, from all clients in their order."""

    def __init__(self, keys: Iterable[ClientKey], most_waiting: int = MOST_WAITING) -> None:
        self._lines: dict[str, deque[ClientKey]] = defaultdict(deque)
        for key in keys:
            self._lines[key.modality].append(key)
        self._settled: dict[ClientKey, Uplink | None] = {}
        self._ready: deque[Uplink] = deque()
        self._waiting = 0
        self._most_waiting = most_waiting

    def settle(self, key: ClientKey, uplink: Uplink | None) -> None:
        """Take a client's update, or None for a client that has none."""
        self._settled[key] = uplink
        self._waiting += nbytes(uplink)
        line = self._lines[key.modality]
        while line and line[0] in self._settled:
            following = self._settled.pop(line.popleft())
            self._waiting -= nbytes(following)
            if following is not None:
                self._ready.append(following)

    def ready(self) -> Iterator[Uplink]:
        """Yield the updates whose turn it is, once."""
        while self._ready:
            yield self._ready.popleft()

    def wanted(self) -> set[ClientKey] | None:
        """Return the clients whose replies there is room for; None: all."""
        if self._waiting < self._most_waiting:
            return None
        return {line[0] for line in self._lines.values() if line}


def nbytes(uplink: Uplink | None) -> int:
    """Return the bytes that an update takes in memory."""
    return 0 if uplink is None else uplink.encoder.nbytes + uplink.decoder.nbytes
