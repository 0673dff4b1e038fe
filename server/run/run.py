"""A run from its first round to its summary, and what trains its rounds.

That is a `RoundSource`: a federation, or a baseline of `server.baselines`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from torch import nn

from common.config import Config
from common.data.dataset import MultimodalDataset, describe_shape
from common.data.federation import FederatedDataset
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.metrics import HEADLINE
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.seeding import derive_seed
from server.evaluate import Scores, diagnose, evaluate
from server.model_file import model_bytes
from server.records import Phase, PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint, Checkpoints, MisfitError
from server.run.console import RunConsole, learning_curve
from server.run.folder import CHECKPOINTS, CURVE, MODEL, RunFolder


class RoundSource(ABC):
    """Trains round by round, and scores the result."""

    #: Number of train items of all clients.
    examples: int
    #: Number of trained parameters of what predicts an item from all its modalities.
    parameters: int

    @property
    @abstractmethod
    def fusion(self) -> str:
        """How modalities are joined: a rule, or the name of an architecture that learns it."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight after the last round; empty where nothing is weighted."""
        return {}

    @abstractmethod
    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round, counted from 1; return its record without the evaluation.

        The clock counts the phases, and is restarted after a wait that is not part of the round.
        Raises `UserError` if the round has no result.
        """

    @abstractmethod
    def scores(self, items: MultimodalDataset) -> Scores:
        """Score the state after the last round; see `server.evaluate.evaluate`."""

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return what the summary says of the test items besides their scores."""
        return {"diagnostics": {}}

    def model_file(self) -> bytes | None:
        """Return ``model.safetensors``, or None if what was trained is not one HA-Fedformer."""
        return None

    def checkpoint(self, number: int, seconds: float) -> Checkpoint | None:
        """Return what a run resumes from after a round; None if it cannot be resumed."""
        return None


class OneModel(RoundSource):
    """A source that trains one HA-Fedformer."""

    model: HAFedformer
    #: Fitted after the last round.
    fitted: Fusion

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


def check_features(data: FederatedDataset, name: str, shape: tuple[int, ...], where: str) -> None:
    """Raise `UserError` if a modality's features somewhere are not as in the evaluation data."""
    if shape != data.shapes[name]:
        raise UserError(
            f"{name} is {describe_shape(shape)} at {where} but "
            f"{describe_shape(data.shapes[name])} in the evaluation data"
        )


def initial_model(
    config: Config, data: FederatedDataset, moments: Mapping[str, FeatureMoments]
) -> HAFedformer:
    """Build the model that every run of a seed starts from.

    It standardises the features of the given modalities with their moments.
    """
    spec = ModelSpec(dict(data.shapes), data.outputs, data.task, config.model, data.label_names)
    model = build_model(spec, derive_seed(config.seed, "model"))
    for name, measured in moments.items():
        set_standardisation(model, name, measured)
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
        except BaseException as error:
            self.give_up()
            if not self.records:
                raise
            if isinstance(error, UserError):
                raise UserError(f"{error}; {self._how_to_resume()}") from error
            reason = str(error) or type(error).__name__
            self.console.warn(f"the run broke off: {reason}; {self._how_to_resume()}")
            raise

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
        return f"{kept}: go on with resume={self.folder.path}"

    def _round(self, number: int, source: RoundSource) -> None:
        """Train and evaluate once, and write the record to disk."""
        clock = PhaseClock()
        trained = source.round(number, clock)
        validation = source.scores(self.data.validation)
        clock.end(Phase.evaluate)
        weights, measured = source.fusion_weights, clock.measured()
        record = replace(trained, validation=validation, fusion_weights=weights, **measured)
        self.records.append(record)
        self.folder.append_round(record.to_json())
        self.console.round(record)
        self.tracking.round(self._objects())

    def _objects(self) -> list[dict[str, Any]]:
        return [record.to_json() for record in self.records]

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _save(self, number: int, source: RoundSource) -> None:
        """Write the checkpoint of a round, and keep the best; the run goes on if that fails."""
        checkpoint = source.checkpoint(number, self._seconds())
        if checkpoint is None:
            return
        best, metric = None, HEADLINE[self.data.task]
        if self.config.checkpoint.best:
            scores = [record.validation["multimodal"][metric] for record in self.records]
            best = int(np.argmax(np.nan_to_num(scores, nan=-np.inf))) + 1  # of equals the first
        try:
            self.checkpoints.save(checkpoint, best)
        except OSError as error:
            self.console.warn(f"no checkpoint of round {number}: {error.strerror or error}")

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
            "items": self.items(source.examples),
            "parameters": source.parameters,
            "cleaning": data.cleaning,
        }
        model = source.model_file()
        if model is not None:
            self.folder.write(MODEL, model)
        self.folder.write(CURVE, learning_curve(self.records, data.task))
        self.folder.write_summary(summary)
        self.tracking.finish(self._objects(), summary)
        self.console.scores(f"Test, {len(data.test)} items", test)
        self.console.gain(test, source.fusion, source.fusion_weights)
        self.console.tell(f"run folder: {self.folder.path}")
        return summary
