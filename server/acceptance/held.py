"""Updates that wait until all have come: their arrays in a file, so that memory stays flat."""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from common.clients import ClientKey
from common.errors import UserError
from common.messages import Uplink, no_numbers
from common.wire import read_posteriors

#: Bytes of arrays that wait in memory; more of them go to the disk.
IN_MEMORY = 1 << 26

_NO_NUMBERS = no_numbers()


class Held:
    """A place for updates: their arrays as they came, and what else they hold beside."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        # And with that deleted, when the last that may read the updates is gone.
        weakref.finalize(self, self._file.close)
        self._places: dict[ClientKey, tuple[int, int]] = {}
        self._heads: dict[ClientKey, Callable[[], Uplink]] = {}
        self._end = 0

    def put(self, uplink: Uplink, tensors: bytes) -> None:
        """Keep an update.

        Parameters
        ----------
        uplink
            An update.
        tensors
            Its arrays, see `common.protocol.tensor_bytes`.

        Raises
        ------
        UserError
            If the disk has no place for them.
        """
        try:
            self._file.seek(self._end)
            self._file.write(tensors)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"the updates of a round cannot be kept in {tempfile.gettempdir()}: "
                f"{error.strerror}; make room there, or set TMPDIR to another folder"
            ) from error
        self._places[uplink.key] = (self._end, len(tensors))
        self._heads[uplink.key] = _without_tensors(uplink)
        self._end += len(tensors)

    def head(self, key: ClientKey) -> Uplink:
        """Return a client's update without its arrays."""
        return self._heads[key]()

    def get(self, head: Uplink) -> Uplink:
        """Return an update with its arrays again."""
        start, size = self._places[head.key]
        self._file.seek(start)
        encoder, decoder = read_posteriors(self._file.read(size))
        return replace(head, encoder=encoder, decoder=decoder)


def _without_tensors(uplink: Uplink) -> Callable[[], Uplink]:
    """Return what makes an update without its arrays anew.

    Small tensors that stay would lie between the large ones that do not, and of the holes that
    these leave in memory the next would fit into none.
    """
    evidence, agreement = uplink.evidence.tolist(), uplink.agreement.tolist()
    bare = replace(uplink, encoder={}, decoder={}, evidence=_NO_NUMBERS, agreement=_NO_NUMBERS)
    return lambda: replace(
        bare,
        evidence=torch.tensor(evidence, dtype=torch.float64),
        agreement=torch.tensor(agreement, dtype=torch.float64),
    )


@dataclass(frozen=True)
class Updates:
    """The updates of a round that may be summed; iterating reads one after the other.

    Attributes
    ----------
    heads
        The updates in the order of their clients, without arrays.
    read
        Returns the update of a head, with arrays.
    """

    heads: Sequence[Uplink] = ()
    read: Callable[[Uplink], Uplink] = lambda head: head

    def __iter__(self) -> Iterator[Uplink]:
        return map(self.read, self.heads)

    def __len__(self) -> int:
        return len(self.heads)
