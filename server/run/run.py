"""A run from its first round to its summary.

A `RoundSource` trains its rounds: a federation, or a baseline of `server.baselines`. With
``checkpoint.deliver=best`` the run delivers the state after its best round, see
`server.run.selection`: as its model, and in the test scores.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from common.config import Config, Delivered, setting
from common.data.dataset import LabelArray, describe_shape
from common.data.federation import FederatedDataset
from common.diagnostics import diagnostics
from common.errors import UserError, reason
from common.metrics import SELECTION, is_sentiment
from common.model.linear import MOST_FEATURES
from common.task import Task
from server.evaluate import Answer
from server.records import Phase, PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint, Checkpoints, MisfitError, read_checkpoint
from server.run.console import RunConsole
from server.run.folder import CHECKPOINTS, LAST, MODEL, ROUNDS, RunFolder
from server.run.linear import too_wide
from server.run.selection import best_round, diverged, out_of_patience
from server.run.source import RoundSource
from server.run.verdict import CONSTANT, compare, constant_scores
from server.terminal import counted

#: Names of classes or labels that a line lists, at most.
MOST_NAMES = 12


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
    best: RoundRecord | None = None  # the round whose state the source keeps

    def __post_init__(self) -> None:
        keep = self.config.checkpoint.keep
        self.checkpoints = Checkpoints(self.folder.path / CHECKPOINTS, keep)
        self._began = time.monotonic() - (self.checkpoint.seconds if self.checkpoint else 0.0)

    def execute(self, begin: Callable[["Run"], RoundSource]) -> dict[str, Any]:
        """Train all rounds and return the summary, which is in the run folder too.

        The source is made after the data's warnings are shown. Raises `UserError` as the source
        does; a run that ends before its first round gives up its folder.
        """
        try:
            with self.console, self.tracking:
                if self.data.origin:
                    self.console.tell(f"data: {self.data.origin}", wrap=True)
                self.console.data(self.data.cleaning)
                for line in self.data.warnings:
                    self.console.warn(line)
                self._tell_what_is_wide()
                source = begin(self)
                self._tell_what_is_trained(source)
                rounds = min(self.config.rounds, source.most_rounds)
                while len(self.records) < rounds and not self._ends_early():
                    self.check()
                    self._round(source)
                    self._save(source)
                return self._finish(source)
        except MisfitError:
            raise
        except BaseException as error:
            self.give_up()
            if not self.records:
                raise
            if isinstance(error, UserError):
                raise UserError(f"{error}; {self._how_to_resume()}") from error
            reason = str(error) or type(error).__name__
            self.console.warn(f"the run broke off: {reason}; {self._how_to_resume()}")
            raise

    def best_checkpoint(self) -> Checkpoint:
        """Return that of the best round so far, for the source of a resumed run to `keep`.

        If it cannot be read, a warning says so, and the last round passes for the best.
        """
        assert self.checkpoint is not None
        self.best = best_round(self.records, self.data.task)
        try:
            return read_checkpoint(self.checkpoints.path(self.best.round))
        except UserError as error:
            self.best = self.records[-1]
            self.console.warn(f"{error}; round {self.best.round} passes for the best so far")
            return self.checkpoint

    def _tell_what_is_wide(self) -> None:
        for name in too_wide(self.data) if self.config.strategy.linear else ():
            shape = describe_shape(self.data.shapes[name])
            self.console.tell(
                f"{name} has no linear expert: it is {shape}, and its features and labels together "
                f"may be {MOST_FEATURES}"
            )

    def _tell_what_is_trained(self, source: RoundSource) -> None:
        config, data, items = self.config, self.data, self.items(source.examples)
        clients = Counter(key.modality for key in data.clients)
        sites = ", ".join(f"{count} {name}" for name, count in clients.items())
        sides = ", ".join(f"{count} {side}" for side, count in items.items())
        self.console.tell(f"training {config.strategy.name} on {sites} clients")
        self.console.tell(f"items: {sides}; to predict: {self._what_is_predicted()}", wrap=True)

    def _what_is_predicted(self) -> str:
        data, labels = self.data, self._held_out_labels
        if data.task is Task.regression:
            kind = "sentiment" if self._sentiment else "numbers"
            return f"{kind} from {labels.min():.3g} to {labels.max():.3g}"
        kind = "one of {} classes" if data.task is Task.classification else "{} labels"
        names = f": {', '.join(data.label_names[:MOST_NAMES])}" if data.label_names else ""
        more = ", …" if len(data.label_names) > MOST_NAMES else ""
        return kind.format(data.outputs) + names + more

    @property
    def _sentiment(self) -> bool:
        return is_sentiment(self._held_out_labels)

    @property
    def _held_out_labels(self) -> LabelArray:
        return np.concatenate([self.data.validation.labels, self.data.test.labels])

    def items(self, examples: int) -> dict[str, int]:
        """Return "train", "validation" and "test" to how many items there are."""
        sides = {"validation": len(self.data.validation), "test": len(self.data.test)}
        return {"train": examples, **sides}

    def give_up(self) -> None:
        """Leave the folder to the next run, unless it holds rounds of this one."""
        if not self.records:
            self.folder.release()

    def _how_to_resume(self) -> str:
        if self.config.strategy.setting != "federated":
            return "a baseline cannot be resumed: start it again with another run_dir"
        rounds = self.checkpoints.rounds()
        kept = f"round {rounds[-1]} is kept" if rounds else "no round is kept"
        return f"{kept}: go on with {setting('resume', self.folder.path)}"

    def _ends_early(self) -> bool:
        """Whether ``patience`` is at its end; if so, it is said."""
        task, patience = self.data.task, self.config.patience
        if not out_of_patience(self.records, task, patience):
            return False
        self.console.tell(
            f"ended after round {len(self.records)} of {self.config.rounds}: no better validation "
            f"{SELECTION[task]} in {patience} rounds"
        )
        return True

    def _round(self, source: RoundSource) -> None:
        """Train and evaluate once, write the record to disk, and keep the best state."""
        clock = PhaseClock()
        trained = source.round(len(self.records) + 1, clock)
        validation = source.scores(self.data.validation)
        clock.end(Phase.evaluate)
        weights, measured = source.fusion_weights, clock.measured()
        record = replace(trained, validation=validation, fusion_weights=weights, **measured)
        self.records.append(record)
        self.folder.append_round(record.to_json())
        if self.best is None or best_round([self.best, record], self.data.task) is record:
            self.best = record
            source.keep()
        self.console.round(record)
        self.tracking.round(self._objects())

    def _objects(self) -> list[dict[str, Any]]:
        return [record.to_json() for record in self.records]

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _save(self, source: RoundSource) -> None:
        """Write the checkpoint of a round, and keep the best; the run goes on if that fails."""
        number = len(self.records)
        checkpoint = source.checkpoint(number, self._seconds())
        if checkpoint is None:
            return
        assert self.best is not None
        try:
            self.checkpoints.save(checkpoint, self.best.round)
        except OSError as error:
            self.console.warn(f"no checkpoint of round {number}: {reason(error)}")

    def _delivered(self, source: RoundSource) -> RoundRecord:
        """Have the source in the state that the run delivers; return the round it is of."""
        if self.config.checkpoint.deliver is Delivered.last:
            return self.records[-1]
        assert self.best is not None
        self._write_model(LAST, source)
        source.restore()
        return self.best

    def _write_model(self, name: str, source: RoundSource) -> None:
        model = source.model_file()
        if model is not None:
            self.folder.write(name, model)

    def _whose(self, delivered: RoundRecord) -> str:
        last = self.config.checkpoint.deliver is Delivered.last
        why = "the last" if last else f"least validation {SELECTION[self.data.task]}"
        return f"model of round {delivered.round} of {len(self.records)} ({why})"

    def _finish(self, source: RoundSource) -> dict[str, Any]:
        config, data = self.config, self.data
        delivered = self._delivered(source)
        test, answers = source.scores(data.test), source.answers(data.test)
        constant = constant_scores(data.task, source.prior, data.test, self._sentiment)
        compared = compare(data.task, source.prior, answers, data.test)
        summary = {
            "test": test,
            "test_constant": constant,
            "comparisons": [each.to_json() for each in compared],
            **source.results(data.test),
            "diagnostics": self._diagnosed(answers),
            "validation": delivered.validation,
            "rounds": len(self.records),
            "delivered_round": delivered.round,
            "seed": config.seed,
            "seconds": self._seconds(),
            "fusion": source.fusion,
            "fusion_weights": source.fusion_weights,
            "items": self.items(source.examples),
            "parameters": source.parameters,
            "untrained": self._untrained(),
            "diverged": list(self._diverged()),
            "cleaning": data.cleaning,
        }
        self._write_model(MODEL, source)
        self.folder.write_summary(summary)
        self.tracking.finish(self._objects(), summary)
        table = test | {CONSTANT[data.task][0]: constant}
        items = counted(len(data.test), "item")
        self.console.scores(f"Test, {items}, {self._whose(delivered)}", table)
        self.console.fusion(source.fusion, source.fusion_weights)
        for each in compared:
            self.console.tell(f"verdict: {each}", "bold", wrap=True)
        self._tell_the_end()
        return summary

    def _tell_the_end(self) -> None:
        """Print where the run is, what is wrong with it, and what to do with it."""
        folder = self.folder.path
        self.console.tell(f"run folder: {folder}")
        self._warn_of_training()
        folder = self.console.place(folder)
        page = setting("out", folder / "report")
        self.console.tell(f"next: utmp-report {setting('runs', folder)} {page}")
        if (folder / MODEL).is_file():
            self.console.tell(f"      utmp-serve {setting('model', folder)}")

    def _diagnosed(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        task, sentiment = self.data.task, self._sentiment
        return {
            title: diagnostics(task, *answer, sentiment=sentiment)
            for title, answer in answers.items()
        }

    def _warn_of_training(self) -> None:
        for name in self._untrained():
            self.console.warn(
                f"{name} was never trained: no round merged an update of it, so its encoder is "
                f"random. Predict without it; {ROUNDS} says under rejected what failed, and "
                "runtime.absent=abort ends such a run in its first round"
            )
        if far := self._diverged():
            losses = ", ".join(f"{name} {loss:.3g}" for name, loss in far.items())
            self.console.warn(
                f"training diverged: the loss ends at {losses}, where a model that learned nothing "
                f"has less; lower client.lr={self.config.client.lr:g}"
            )

    def _diverged(self) -> dict[str, float]:
        return diverged(self.records, self.data.task, self.data.outputs)

    def _untrained(self) -> list[str]:
        """Return the modalities of which no round merged an update."""
        trained = {name for record in self.records for name in record.clients}
        return [name for name in self.data.shapes if name not in trained]
