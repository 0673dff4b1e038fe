"""A run from its first round to its summary, whatever trains the rounds."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from common.config import Config
from common.data.federation import FederatedDataset
from common.errors import UserError
from common.metrics import HEADLINE
from server.records import Phase, PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint, Checkpoints, MisfitError
from server.run.console import RunConsole
from server.run.folder import CHECKPOINTS, CURVE, MODEL, RunFolder
from server.run.learning_curve import learning_curve
from server.run.source import RoundSource


class Tracking(AbstractContextManager[Any], Protocol):
    """Follows a run; see `server.tracking`."""

    def round(self, records: Sequence[dict[str, Any]]) -> None:
        """Take the objects of ``rounds.jsonl`` so far, of which the last is new."""

    def finish(self, records: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Take the summary; the run folder is complete."""


@dataclass
class Run:
    """The state of a run on the server."""

    config: Config
    data: FederatedDataset
    folder: RunFolder
    console: RunConsole
    tracking: Tracking
    checkpoint: Checkpoint | None = None  # what to resume from
    records: list[RoundRecord] = field(default_factory=list)  # of the rounds so far
    check: Callable[[], None] = lambda: None  # called often; may raise to end the run

    def __post_init__(self) -> None:
        keep = self.config.checkpoint.keep
        self.checkpoints = Checkpoints(self.folder.path / CHECKPOINTS, keep)
        self._began = time.monotonic() - (self.checkpoint.seconds if self.checkpoint else 0.0)
        self._objects = [record.to_json() for record in self.records]

    def execute(self, begin: Callable[["Run"], RoundSource]) -> dict[str, Any]:
        """Train all rounds and return the summary, which is in the run folder too.

        The source is made after the data's warnings are shown. Raises `UserError` as the source
        does; a run that ends before its first round gives up its folder.
        """
        try:
            with self.tracking:
                for what, count in self.data.cleaning.items():
                    self.console.tell(f"cleaned: {count} {what}")
                for line in self.data.warnings:
                    self.console.warn(line)
                source = begin(self)
                for number in range(len(self.records) + 1, self.config.rounds + 1):
                    self.check()
                    self._round(number, source)
                    self._save(number, source)
                return self._finish(source)
        except MisfitError:
            raise
        except UserError as error:
            if not self.records:
                self.folder.release()
                raise
            raise UserError(f"{error}; {self._how_to_resume()}") from error
        except BaseException as error:
            if self.records:
                reason = str(error) or type(error).__name__
                self.console.warn(f"the run broke off: {reason}; {self._how_to_resume()}")
            else:
                self.folder.release()
            raise

    def _how_to_resume(self) -> str:
        if self.config.strategy.setting != "federated":
            return "a baseline cannot be resumed: start it again with another run_dir"
        rounds = self.checkpoints.rounds()
        kept = f"round {rounds[-1]} is kept" if rounds else "no round is kept"
        return f"{kept}: go on with resume={self.folder.path}"

    def _round(self, number: int, source: RoundSource) -> None:
        """Train and evaluate once, and write the record to disk."""
        clock = PhaseClock()
        trained = source.round(number, clock)
        validation = source.scores(self.data.validation)
        clock.end(Phase.evaluate)
        record = replace(
            trained,
            validation=validation,
            fusion_weights=source.fusion_weights,
            seconds=clock.elapsed(),
            phases=clock.rounded(),
        )
        self.records.append(record)
        self._objects.append(record.to_json())
        self.folder.append_round(self._objects[-1])
        self.console.round(record)
        self.tracking.round(self._objects)

    def _save(self, number: int, source: RoundSource) -> None:
        """Write the checkpoint of a round; the run goes on if that fails."""
        checkpoint = source.checkpoint(number, self._seconds())
        if checkpoint is None:
            return
        try:
            self.checkpoints.save(checkpoint, self._best() if self.config.checkpoint.best else None)
        except OSError as error:
            self.console.warn(f"no checkpoint of round {number}: {error.strerror or error}")

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _best(self) -> int:
        """Return the round with the best validation score, the first of equals."""
        metric = HEADLINE[self.data.task]
        scores = [record.validation["multimodal"][metric] for record in self.records]
        return int(np.argmax(np.nan_to_num(scores, nan=-np.inf))) + 1

    def _finish(self, source: RoundSource) -> dict[str, Any]:
        config, data = self.config, self.data
        test = source.scores(data.test)
        summary = {
            "test": test,
            **source.results(data.test),
            "validation": self.records[-1].validation,
            "rounds": config.rounds,
            "seed": config.seed,
            "seconds": self._seconds(),
            "fusion": source.fusion,
            "fusion_weights": source.fusion_weights,
            "items": source.items,
            "parameters": source.parameters,
            "cleaning": data.cleaning,
        }
        model = source.model_file()
        if model is not None:
            self.folder.write(MODEL, model)
        self.folder.write(CURVE, learning_curve(self.records, data.task))
        self.folder.write_summary(summary)
        self.tracking.finish(self._objects, summary)
        self.console.scores(f"Test, {len(data.test)} items", test)
        self.console.gain(test, source.fusion, source.fusion_weights)
        self.console.tell(f"run folder: {self.folder.path}")
        return summary
