"""The record of a round: one type for federations, baselines, the console, and ``rounds.jsonl``."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from common.metrics import HEADLINE, SELECTION
from common.task import Task

T = TypeVar("T")


class Phase(StrEnum):
    """The phases of a round.

    ``configure``: choose clients and encode what they are sent. ``wait``: send it, and wait while
    clients train. ``merge``: decode, check and merge the replies, also while others are still
    awaited. ``evaluate``: score the validation items. Waiting for absent clients before a round and
    writing the checkpoint after it are in none. A baseline has ``train`` in place of the first
    three.
    """

    train = "train"
    configure = "configure"
    wait = "wait"
    merge = "merge"
    evaluate = "evaluate"


class PhaseClock:
    """Counts the seconds of each phase of a round; every moment is in one phase."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin the round now."""
        self._began = self._last = time.monotonic()
        #: Phase to seconds so far, in the order in which the phases first ended.
        self.seconds: dict[str, float] = {}

    def end(self, phase: Phase) -> None:
        """Count the time since the last phase ended as part of this phase."""
        now = time.monotonic()
        self.seconds[str(phase)] = self.seconds.get(str(phase), 0.0) + now - self._last
        self._last = now

    def split(self, items: Iterable[T], getting: Phase, using: Phase) -> Iterator[T]:
        """Yield items; fetching one counts as one phase, what is done with it as another."""
        for item in items:
            self.end(getting)
            yield item
            self.end(using)
        self.end(getting)

    def measured(self) -> dict[str, Any]:
        """Return a record's ``seconds`` since the round began, and its ``phases``; to a ms."""
        phases = {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
        return {"seconds": round(time.monotonic() - self._began, 3), "phases": phases}


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round; field for field the JSON object of ``rounds.jsonl``.

    A strategy, or a baseline, fills in what it knows of training; the run adds the evaluation.
    """

    round: int  # from 1
    #: Modality, or ``multimodal``, to the mean train loss, weighted by examples; of numbers in
    #: units of the labels' deviation.
    train_loss: Mapping[str, float] = field(default_factory=dict)
    client_losses: Mapping[str, float] = field(default_factory=dict)
    #: ``multimodal`` and each modality to metric to score, of the merged model.
    validation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fusion_weights: Mapping[str, float] = field(default_factory=dict)
    #: Modality to the number of clients that were merged.
    clients: Mapping[str, int] = field(default_factory=dict)
    #: Modalities of which no client replied: their encoder stays as it was.
    reused: Sequence[str] = ()
    #: One line for each client that failed or whose update was refused.
    rejected: Sequence[str] = ()
    #: Layer to modality to its share in the decoder.
    decoder_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    #: Client to layer to standard deviation, see `server.aggregation.posterior_std`.
    posterior_widths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    #: Client to the trust in its labels, where clients are weighted by it.
    trust: Mapping[str, float] = field(default_factory=dict)
    #: Client to how many times the usual its change was, of those that were scaled down.
    clipped: Mapping[str, float] = field(default_factory=dict)
    #: Updates that were left out because the coordinator's items are predicted worse with them.
    harmful: int = 0
    #: Replies whose content was refused, harmful ones too; a client's own failure or silence does
    #: not count.
    refused: int = 0
    #: What the rounds so far disclose, see `server.acceptance.privacy`.
    privacy: Mapping[str, Any] | None = None
    bytes_down: int = 0  # of arrays, all clients together
    bytes_up: int = 0
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)  # `Phase` to seconds

    def check_scores(self, others: Mapping[str, Mapping[str, float]], task: Task) -> None:
        """Raise `ValueError` unless this has the scores that another round has."""
        names, metrics = self.validation.keys(), {HEADLINE[task], SELECTION[task]}
        scored = all(metrics <= scores.keys() for scores in self.validation.values())
        if not scored or names != others.keys() or "multimodal" not in names:
            raise ValueError(f"round {self.round} lacks scores of the validation items")

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``rounds.jsonl``, with its keys in their order."""
        return {**vars(self), "reused": list(self.reused), "rejected": list(self.rejected)}
