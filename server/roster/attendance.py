"""Waiting for clients: for all of them before the first round, for enough of them before each."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from common.errors import UserError
from server.roster.registry import QUERY_SECONDS, ImpostorError, Registry

POLL_SECONDS = 0.2

#: A wait shorter than this is not worth a line.
PATIENCE_SECONDS = 3.0

#: How often a wait is reported again.
REMIND_SECONDS = 15.0


@dataclass
class Attendance:
    """Who is there, and how long to wait for those who are not."""

    registry: Registry
    grid: Grid
    #: Seconds to wait for those who are missing.
    timeout: float
    #: Takes one line for the user.
    tell: Callable[[str], None]
    #: Whether all nodes are of this run, so that what is wrong with one is a mistake of its user.
    ours: bool = False
    _given_up: set[str] = field(default_factory=set)
    _faults: list[str] = field(default_factory=list)

    def gather(self, counts: Mapping[str, int]) -> None:
        """Wait until each modality has all its clients; go on with some of each.

        Raises
        ------
        UserError
            If a modality has no client at all by then, or a node of ours cannot take part.
        """
        missing = self._wait(counts, starting=True)
        absent = [name for name in missing if name not in self.registry.by_modality()]
        if absent:
            left_out = "".join(f"; left out: {fault}" for fault in self._faults)
            raise UserError(
                f"no client of modality {absent[0]!r} after {self.timeout:.0f} s; start a node "
                f"with --node-config 'modality=\"{absent[0]}\"'{left_out}"
            )
        if missing:
            self.tell(f"going on without all clients ({', '.join(missing.values())})")

    def quorum(self, counts: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """Wait until each modality has enough clients for a round.

        A modality that was waited for in vain is not waited for again until it has been there.
        Returns a line for each modality that is still short, and one for each node that came
        since the last round and was left out or replaced another.
        """
        # In a line of its own: the wait itself takes from what was given up.
        vain = self._wait(counts, starting=False)
        self._given_up |= vain.keys()
        faults, self._faults = self._faults, []
        return list(self._short(counts).values()), faults

    def _wait(self, counts: Mapping[str, int], *, starting: bool) -> dict[str, str]:
        """Ask new nodes until nothing is missing, at most for the time that there is."""
        began = time.monotonic()
        reported, reported_at = "", began
        while True:
            left = began + self.timeout - time.monotonic()
            self._refresh(min(max(left, 0.0), QUERY_SECONDS), starting)
            short = self._short(counts)
            self._given_up &= short.keys()
            short = {name: line for name, line in short.items() if name not in self._given_up}
            now = time.monotonic()
            left = began + self.timeout - now
            if not short or left <= 0:
                return short
            line = ", ".join(short.values())
            due = line != reported or now - reported_at >= REMIND_SECONDS
            if due and now - began > PATIENCE_SECONDS:
                reported, reported_at = line, now
                self.tell(f"waiting for {line}, {left:.0f} s left")
            time.sleep(min(POLL_SECONDS, left))

    def _refresh(self, timeout: float, starting: bool) -> None:
        for error in self.registry.refresh(self.grid, timeout):
            if starting and self.ours and not isinstance(error, ImpostorError):
                raise error
            self._faults.append(str(error))
            if starting:
                self.tell(f"left out: {error}")

    def _short(self, counts: Mapping[str, int]) -> dict[str, str]:
        """Say which modalities have fewer clients than they need."""
        there = Counter(key.modality for key in self.registry.members)
        return {
            name: f"{name}: {there[name]} of {count}"
            for name, count in counts.items()
            if there[name] < count
        }
