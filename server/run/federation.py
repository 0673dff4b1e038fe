"""A run from the first query to the summary, over any Flower grid."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import INFO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore import log

from common.config import Absent, Config, FusionRule
from common.data.dataset import describe_shape
from common.data.federation import FederatedDataset
from common.errors import UserError
from common.metrics import HEADLINE
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import (
    HAFedformer,
    ModelSpec,
    build_model,
    set_standardisation,
    split_arrays,
    trained_names,
)
from common.seeding import derive_seed
from server.evaluate import Scores, diagnose, evaluate, evaluate_rules, evaluate_subsets
from server.model_file import model_bytes
from server.run.attendance import Attendance
from server.run.checkpoint import Checkpoint, Checkpoints
from server.run.console import RunConsole
from server.run.exchange import Backlog, exchange
from server.run.folder import CHECKPOINTS, CURVE, MODEL, RunFolder
from server.run.labels import PooledLabels, pool_labels
from server.run.learning_curve import learning_curve
from server.run.phases import Phase, PhaseClock
from server.run.registry import Registry
from server.run.resume import MisfitError, check_fits, plain_settings
from server.run.round_report import RoundReport
from server.strategy import HierarchicalAggregation, from_record, to_record
from server.tracking.tracker import Tracking

T = TypeVar("T")

#: The rules that a run is scored under at its end, whichever it uses.
FITTED_RULES = tuple(rule for rule in FusionRule if rule is not FusionRule.auto)


@dataclass
class Run:
    """The state of a run on the server.

    Attributes
    ----------
    config, data, folder, console
        What to do, what to evaluate on, where to leave and to show it.
    checkpoint
        What to go on from; None: from the beginning.
    records
        The objects of ``rounds.jsonl`` so far.
    check
        Called between and in rounds; may raise to end the run.
    tracking
        Told of each round and of the end.
    """

    config: Config
    data: FederatedDataset
    folder: RunFolder
    console: RunConsole
    checkpoint: Checkpoint | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    check: Callable[[], None] = lambda: None
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        keep = self.config.checkpoint.keep
        self._checkpoints = Checkpoints(self.folder.path / CHECKPOINTS, keep)
        self._report: RoundReport | None = None
        self._faults: list[str] = []
        self._round_began = 0.0
        self._clock = PhaseClock()
        self._began = time.monotonic()
        self._items: dict[str, int] = {}
        self._settings: dict[str, Any] = {}

    def execute(self, grid: Grid) -> dict[str, Any]:
        """Run the federation and return the summary, which is in the run folder too.

        Raises
        ------
        UserError
            If nodes are missing or do not fit, or a round cannot be merged.
        """
        try:
            with self.tracking:
                return self._execute(grid)
        except MisfitError:
            raise
        except UserError as error:
            if not self.records:
                self.folder.release()
                raise
            raise UserError(f"{error}; {self._how_to_go_on()}") from error
        except BaseException as error:
            if self.records:
                reason = str(error) or type(error).__name__
                self.console.warn(f"the run broke off: {reason}; {self._how_to_go_on()}")
            else:
                self.folder.release()
            raise

    def _how_to_go_on(self) -> str:
        rounds = self._checkpoints.rounds()
        kept = f"round {rounds[-1]} is kept" if rounds else "no round is kept"
        return f"{kept}: go on with resume={self.folder.path}"

    def _execute(self, grid: Grid) -> dict[str, Any]:
        for what, count in self.data.cleaning.items():
            self.console.tell(f"cleaned: {count} {what}")
        for line in self.data.warnings:
            self.console.warn(line)
        config, registry, former = self.config, Registry(), self.checkpoint
        counts = Counter(key.modality for key in self.data.clients)
        attendance = Attendance(registry, grid, config.runtime.node_timeout, self.console.tell)
        attendance.gather(counts)
        labels = former.labels if former else self._pool_labels(registry)
        model = self._initial_model(registry)
        trained = split_arrays({name: model.state_dict()[name] for name in trained_names(model)})
        strategy = HierarchicalAggregation(config, registry, labels, trained)
        self._items = self._count_items(registry)
        # A tenth of a second, and the same in every checkpoint.
        self._settings = plain_settings(config)
        self._backlog = Backlog(grid)
        if former is not None:
            self._restore(former, model, strategy)
        for number in range(len(self.records) + 1, config.rounds + 1):
            self.check()
            self._faults = self._await_quorum(number, attendance)
            self._round(number, grid, model, strategy)
        return self._finish(model, strategy)

    def _count_items(self, registry: Registry) -> dict[str, int]:
        return {
            "train": sum(member.client.examples for member in registry.members.values()),
            "validation": len(self.data.validation),
            "test": len(self.data.test),
        }

    def _restore(
        self, former: Checkpoint, model: HAFedformer, strategy: HierarchicalAggregation
    ) -> None:
        where = str(self._checkpoints.path(former.round))
        for side in ("validation", "test"):
            if former.items[side] != self._items[side]:
                raise MisfitError(
                    f"{where} does not fit: that run had {former.items[side]} {side} items, and "
                    f"there are {self._items[side]} now; start a new run"
                )
        check_fits(former.model, model.state_dict(), where)
        model.load_state_dict(dict(former.model))
        strategy.restore(former.strategy)
        self._items = dict(former.items)
        self._began -= former.seconds
        self.console.tell(f"going on after round {former.round} of {self.config.rounds}")

    def _await_quorum(self, number: int, attendance: Attendance) -> list[str]:
        """Wait for enough clients; return a line for each node that was left out meanwhile."""
        runtime = self.config.runtime
        short, faults = attendance.quorum(dict.fromkeys(self.data.shapes, runtime.min_clients))
        if short and runtime.absent is Absent.abort:
            raise UserError(
                f"round {number}: too few clients ({', '.join(short)}) after "
                f"{runtime.node_timeout:.0f} s; runtime.absent=reuse goes on without"
            )
        return faults

    def _round(
        self, number: int, grid: Grid, model: HAFedformer, strategy: HierarchicalAggregation
    ) -> None:
        """Train, merge and evaluate once, and leave all of it on disk."""
        self._round_began, self._clock = time.monotonic(), PhaseClock()
        log(INFO, "[ROUND %s/%s]", number, self.config.rounds)
        timeout = self.config.runtime.round_timeout
        strategy.registry.busy = self._backlog.nodes()
        record = to_record(model.state_dict())
        messages = strategy.configure_train(number, record, ConfigRecord(), grid)
        self._clock.end(Phase.configure)
        replies = exchange(grid, messages, timeout, self.check, self._backlog, strategy.updates)
        merged, _ = strategy.aggregate_train(
            number, self._clock.each(replies, Phase.wait, Phase.merge)
        )
        self._remember(strategy.report)
        model.load_state_dict(from_record(merged))
        self._clock.end(Phase.merge)
        self._record_round(model, self._fusion(strategy), strategy.privacy_spent(number))
        self._save(number, model, strategy)

    def _save(self, number: int, model: HAFedformer, strategy: HierarchicalAggregation) -> None:
        """Write the checkpoint of a round; the run goes on where that fails."""
        checkpoint = Checkpoint(
            number,
            self._settings,
            self._items,
            model.state_dict(),
            strategy.state(),
            strategy.labels,
            round(time.monotonic() - self._began, 3),
        )
        try:
            self._checkpoints.save(
                checkpoint, self._best() if self.config.checkpoint.best else None
            )
        except OSError as error:
            self.console.warn(f"no checkpoint of round {number}: {error.strerror or error}")

    def _best(self) -> int:
        """Return the round with the best validation score, the first of equals."""
        metric = HEADLINE[self.data.task]
        scores = [record["validation"]["multimodal"][metric] for record in self.records]
        return int(np.argmax(np.nan_to_num(scores, nan=-np.inf))) + 1

    def _pool_labels(self, registry: Registry) -> PooledLabels:
        bins = len(self.config.dataset.label_bins) + 1
        total = registry.label_sums(self.data.task, self.data.outputs, bins)
        clients = [member.client.label_sums for member in registry.members.values()]
        return pool_labels(clients, total, self.data.task)

    def _initial_model(self, registry: Registry) -> HAFedformer:
        """Build the model for the widths that clients have, with their pooled statistics."""
        moments = registry.moments()
        for name, expected in self.data.shapes.items():
            found = moments[name].mean.shape
            if found != expected:
                raise UserError(
                    f"{name} is {describe_shape(found)} at the clients but "
                    f"{describe_shape(expected)} in the evaluation data"
                )
        spec = ModelSpec(
            dict(self.data.shapes),
            self.data.outputs,
            self.data.task,
            self.config.model,
            self.data.label_names,
        )
        model = build_model(spec, derive_seed(self.config.seed, "model"))
        for name in self.data.shapes:
            set_standardisation(model, name, moments[name])
        return model

    def _fusion(self, strategy: HierarchicalAggregation, rule: FusionRule | None = None) -> Fusion:
        return fit_fusion(
            rule or self.config.fusion.name, self.data.task, strategy.prior, strategy.evidence
        )

    def _remember(self, report: RoundReport | None) -> None:
        """Keep a round's report until its evaluation."""
        assert report is not None
        if not report.clients:
            reason = report.rejected[0] if report.rejected else "no reply came in time"
            raise UserError(f"round {report.round}: no client could be merged; {reason}")
        if report.reused and self.config.runtime.absent is Absent.abort:
            raise UserError(
                f"round {report.round}: too few updates of {', '.join(report.reused)}; "
                f"{'; '.join(report.rejected) or 'no reply came in time'}"
            )
        self._report = report

    def _record_round(
        self, model: HAFedformer, fusion: Fusion, privacy: Mapping[str, Any] | None
    ) -> None:
        report = self._report
        assert report is not None
        validation = evaluate(model, fusion, self.data.validation)
        self._clock.end(Phase.evaluate)
        record = {
            "round": report.round,
            "train_loss": self._in_order(report.train_loss),
            "client_losses": report.client_losses,
            "validation": validation,
            "fusion_weights": fusion.weights,
            "clients": self._in_order(report.clients),
            "reused": list(report.reused),
            "rejected": [*self._faults, *report.rejected],
            "decoder_weights": report.decoder_weights,
            "posterior_widths": report.posterior_widths,
            "trust": report.trust,
            "refused": report.refused,
            "privacy": privacy,
            "bytes_down": report.bytes_down,
            "bytes_up": report.bytes_up,
            "seconds": round(time.monotonic() - self._round_began, 3),
            "phases": self._clock.rounded(),
        }
        self.records.append(record)
        self.folder.append_round(record)
        self.console.round(record)
        self.tracking.round(self.records)

    def _in_order(self, by_modality: Mapping[str, T]) -> dict[str, T]:
        """Put the dataset's order of modalities on a mapping."""
        return {name: by_modality[name] for name in self.data.shapes if name in by_modality}

    def _finish(self, model: HAFedformer, strategy: HierarchicalAggregation) -> dict[str, Any]:
        config, fusion = self.config, self._fusion(strategy)
        test = evaluate(model, fusion, self.data.test)
        rules = {str(rule): self._fusion(strategy, rule) for rule in FITTED_RULES}
        summary = {
            "test": test,
            "test_by_fusion": evaluate_rules(model, rules, self.data.test),
            "test_by_subset": evaluate_subsets(model, fusion, self.data.test),
            "diagnostics": diagnose(model, fusion, self.data.test),
            "validation": self.records[-1]["validation"],
            "rounds": config.rounds,
            "seed": config.seed,
            "seconds": round(time.monotonic() - self._began, 3),
            "fusion": str(fusion.rule),
            "fusion_weights": fusion.weights,
            "items": self._items,
            "label_skew": strategy.labels.skew,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "cleaning": self.data.cleaning,
            "privacy": strategy.privacy_spent(config.rounds),
        }
        self.folder.write(MODEL, model_bytes(model, fusion))
        self.folder.write(CURVE, learning_curve(self.records, self.data.task))
        self.folder.write_summary(summary)
        self.tracking.finish(self.records, summary)
        self.console.scores(f"Test, {len(self.data.test)} items", test)
        self._say_what_won(test, fusion)
        return summary

    def _say_what_won(self, test: Scores, fusion: Fusion) -> None:
        metric = HEADLINE[self.data.task]
        alone = {name: scores[metric] for name, scores in test.items() if name != "multimodal"}
        best = max(alone, key=lambda name: alone[name])
        gain = test["multimodal"][metric] - alone[best]
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fusion.weights.items())
        self.console.tell(
            f"all modalities together: {metric} {gain:+.3f} against {best} alone; "
            f"fusion {fusion.rule} ({weights})"
        )
        self.console.tell(f"run folder: {self.folder.path}")


def check_evaluation_data(data: FederatedDataset) -> None:
    """Raise `UserError` unless there is something to evaluate on."""
    for title, items in (("validation", data.validation), ("test", data.test)):
        if len(items) == 0:
            raise UserError(f"there are no {title} items; raise dataset.{title}_fraction above 0")
        for name, sequences in items.sequences.items():
            if not (sequences.lengths > 0).any():
                raise UserError(f"no {title} item has {name}")


def use_one_thread() -> None:
    """Have each operation use one core: clients need some, and sums in one order are the same."""
    torch.set_num_threads(1)
