"""A run from its first round to its summary, and what trains its rounds.

That is a `RoundSource`: a federation, or a baseline of `server.baselines`. With
``checkpoint.deliver=best`` the run delivers the state after its best round, see
`server.run.selection`: as its model, and in the test scores.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from common.config import Config, Delivered, setting
from common.data.dataset import MultimodalDataset, describe_shape
from common.data.federation import FederatedDataset
from common.data.moments import FeatureMoments
from common.errors import UserError, reason
from common.metrics import SELECTION, is_sentiment
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.model.linear import MOST_FEATURES
from common.seeding import derive_seed
from server.evaluate import Scores, diagnose, evaluate
from server.model_file import model_bytes
from server.records import Phase, PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint, Checkpoints, MisfitError, read_checkpoint
from server.run.console import RunConsole, learning_curve
from server.run.folder import CHECKPOINTS, CURVE, LAST, MODEL, ROUNDS, RunFolder
from server.run.linear import Experts, set_linear, too_wide
from server.run.selection import best_round, diverged, out_of_patience


class RoundSource(ABC):
    """Trains round by round, and scores the result.

    What it predicts with is `modules` and `fitted`: the state after the last round, or after the
    one that `restore` went back to.
    """

    #: Number of train items of all clients.
    examples: int
    #: Number of trained parameters of what predicts an item from all its modalities.
    parameters: int
    #: What joins the modalities; a round replaces it and never changes it.
    fitted: Any = None

    @property
    @abstractmethod
    def modules(self) -> Sequence[nn.Module]:
        """The modules that predict."""

    def keep(self) -> None:
        """Keep a copy of the state, in place of the one kept before."""
        self._kept = deepcopy([module.state_dict() for module in self.modules]), self.fitted

    def restore(self) -> None:
        """Go back to the state that was kept."""
        states, self.fitted = self._kept
        for module, state in zip(self.modules, states, strict=True):
            module.load_state_dict(state)

    #: After how many rounds there is nothing left to train, whatever ``rounds`` asks for.
    most_rounds: float = math.inf

    @property
    @abstractmethod
    def fusion(self) -> str:
        """How modalities are joined: a rule, or the name of an architecture that learns it."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight; empty where nothing is weighted."""
        return {}

    @abstractmethod
    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round, counted from 1; return its record without the evaluation.

        The clock counts the phases, and is restarted after a wait that is not part of the round.
        Raises `UserError` if the round has no result.
        """

    @abstractmethod
    def scores(self, items: MultimodalDataset) -> Scores:
        """Score the state; see `server.evaluate.evaluate`."""

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return what the summary says of the test items besides their scores."""
        return {"diagnostics": {}}

    def model_file(self) -> bytes | None:
        """Return the file of the model, or None if what was trained is not one HA-Fedformer."""
        return None

    def checkpoint(self, number: int, seconds: float) -> Checkpoint | None:
        """Return what a run resumes from after a round; None if it cannot be resumed."""
        return None


class OneModel(RoundSource):
    """A source that trains one HA-Fedformer."""

    model: HAFedformer
    fitted: Fusion

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return [self.model]

    @property
    def fusion(self) -> str:
        """The fusion rule."""
        return str(self.fitted.rule)

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight."""
        return self.fitted.weights

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together, and each alone."""
        return evaluate(self.model, self.fitted, items)

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Diagnose all modalities together, and each alone."""
        return {"diagnostics": diagnose(self.model, self.fitted, items)}

    def model_file(self) -> bytes | None:
        """Return the model with its fusion rule."""
        return model_bytes(self.model, self.fitted)


#: For models without linear experts.
NO_EXPERTS = Experts()


def initial_model(
    config: Config,
    data: FederatedDataset,
    moments: Mapping[str, FeatureMoments],
    experts: Experts = NO_EXPERTS,
) -> HAFedformer:
    """Build the model that every run of a seed starts from.

    It standardises the features of the given modalities with their moments, and has a linear expert
    of each modality for which there are sums.
    """
    spec = ModelSpec(
        dict(data.shapes),
        data.outputs,
        data.task,
        config.model,
        data.label_names,
        is_sentiment(np.concatenate([data.validation.labels, data.test.labels])),
        tuple(name for name in data.shapes if name in experts.sums),
        data.reading,
    )
    model = build_model(spec, derive_seed(config.seed, "model"))
    for name, measured in moments.items():
        set_standardisation(model, name, measured)
    for name in spec.linear:
        set_linear(model, name, experts.sums[name], experts.prior, data.validation)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


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
                self.console.data(self.data.cleaning)
                for line in self.data.warnings:
                    self.console.warn(line)
                self._tell_what_is_wide()
                source = begin(self)
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
        test = source.scores(data.test)
        summary = {
            "test": test,
            **source.results(data.test),
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
        self.folder.write(CURVE, learning_curve(self.records, data.task))
        self.folder.write_summary(summary)
        self.tracking.finish(self._objects(), summary)
        self.console.scores(f"Test, {len(data.test)} items, {self._whose(delivered)}", test)
        self.console.gain(test, source.fusion, source.fusion_weights)
        self.console.tell(f"run folder: {self.folder.path}")
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
        return summary

    def _diverged(self) -> dict[str, float]:
        return diverged(self.records, self.data.task, self.data.outputs)

    def _untrained(self) -> list[str]:
        """Return the modalities of which no round merged an update."""
        trained = {name for record in self.records for name in record.clients}
        return [name for name in self.data.shapes if name not in trained]
