"""The rounds of a federation, over any Flower grid."""

from collections import Counter
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore import log

from common.config import FusionRule, OnMissingModality
from common.data.dataset import MultimodalDataset
from common.errors import UserError
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import split_arrays, trained_names
from server.acceptance.privacy import privacy_spent
from server.evaluate import evaluate_rules, evaluate_subsets
from server.records import Phase, PhaseClock, RoundRecord
from server.roster.attendance import Attendance
from server.roster.exchange import exchange
from server.roster.labels import PooledLabels, pool_labels
from server.roster.registry import Registry
from server.run.checkpoint import Checkpoint
from server.run.folder import plain_settings
from server.run.run import OneModel, Run, check_features, count_parameters, initial_model
from server.strategy import HierarchicalAggregation


def federate(run: Run, grid: Grid) -> dict[str, Any]:
    """Execute a prepared run over a grid and return the summary.

    Raises `UserError` if nodes are missing or do not fit, or a round cannot be merged.
    """
    return run.execute(lambda run: Federation(run, grid))


class Federation(OneModel):
    """The clients of a grid, and the model that they train; resumed from the run's checkpoint.

    Raises `UserError` if nodes are missing, or they or the checkpoint do not fit the data.
    """

    def __init__(self, run: Run, grid: Grid) -> None:
        self._run, self._grid = run, grid
        config, registry, former = run.config, Registry(), run.checkpoint
        timeout = config.runtime.node_timeout
        self._attendance = Attendance(registry, grid, timeout, run.console.tell)
        self._attendance.gather(Counter(key.modality for key in run.data.clients))
        labels = former.labels if former else self._pool_labels(registry)
        moments = registry.moments()
        for name, own in moments.items():
            check_features(run.data, name, own.mean.shape, "the clients")
        self.model = initial_model(config, run.data, moments)
        self.parameters = count_parameters(self.model)
        state = self.model.state_dict()
        trained = split_arrays({name: state[name] for name in trained_names(self.model)})
        self.strategy = HierarchicalAggregation(config, registry, labels, trained)
        self.examples = sum(member.client.examples for member in registry.members.values())
        self._settings = plain_settings(config)
        if former is not None:
            self._restore(former)
        self.fitted = self._fit(config.fusion.name)

    def _pool_labels(self, registry: Registry) -> PooledLabels:
        data, bins = self._run.data, len(self._run.config.dataset.label_bins) + 1
        clients = [member.client for member in registry.members.values()]
        return pool_labels(clients, data.task, data.outputs, bins)

    def _restore(self, former: Checkpoint) -> None:
        where = self._run.checkpoints.path(former.round)
        former.check_fits(self._run.items(self.examples), self.model.state_dict(), where)
        self.model.load_state_dict(dict(former.model))
        self.strategy.restore(former.strategy)
        self.examples = former.items["train"]
        self._run.console.tell(f"going on after round {former.round} of {self._run.config.rounds}")

    def _fit(self, rule: FusionRule) -> Fusion:
        return fit_fusion(
            rule, self._run.data.task, self.strategy.prior, self.strategy.calibration_sums
        )

    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train on the clients, and merge their replies."""
        faults = self._await_quorum(number)
        clock.restart()
        config, strategy = self._run.config, self.strategy
        log(INFO, "[ROUND %s/%s]", number, config.rounds)
        record = ArrayRecord(self.model.state_dict())
        messages = strategy.configure_train(number, record, ConfigRecord(), self._grid)
        clock.end(Phase.configure)
        replies = exchange(
            self._grid,
            messages,
            config.runtime.round_timeout,
            self._run.check,
            strategy.registry.backlog,
            strategy.updates,
        )
        merged, _ = strategy.aggregate_train(number, clock.split(replies, Phase.wait, Phase.merge))
        report = self._checked(strategy.report)
        self.model.load_state_dict(merged.to_torch_state_dict())
        clock.end(Phase.merge)
        self.fitted = self._fit(config.fusion.name)
        merged_names = [name for name in self._run.data.shapes if name in report.clients]
        return replace(
            report,
            train_loss={name: report.train_loss[name] for name in merged_names},
            clients={name: report.clients[name] for name in merged_names},
            rejected=[*faults, *report.rejected],
            privacy=privacy_spent(config, number),
        )

    def _await_quorum(self, number: int) -> list[str]:
        """Wait for enough clients; return a line for each node that was left out meanwhile."""
        runtime = self._run.config.runtime
        short, faults = self._attendance.quorum(
            dict.fromkeys(self._run.data.shapes, runtime.min_clients)
        )
        if short and runtime.absent is OnMissingModality.abort:
            raise UserError(
                f"round {number}: too few clients ({', '.join(short)}) after "
                f"{runtime.node_timeout:.0f} s; runtime.absent=reuse goes on without"
            )
        return faults

    def _checked(self, report: RoundRecord | None) -> RoundRecord:
        """Return the report of a round that has a result."""
        assert report is not None
        if not report.clients:
            reason = report.rejected[0] if report.rejected else "no reply came in time"
            raise UserError(f"round {report.round}: no client could be merged; {reason}")
        if report.reused and self._run.config.runtime.absent is OnMissingModality.abort:
            raise UserError(
                f"round {report.round}: too few updates of {', '.join(report.reused)}; "
                f"{'; '.join(report.rejected) or 'no reply came in time'}"
            )
        return report

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return the scores under each fusion rule and of each subset, diagnostics, and privacy."""
        rules = {str(rule): self._fit(rule) for rule in FusionRule if rule is not FusionRule.auto}
        return {
            "test_by_fusion": evaluate_rules(self.model, rules, items),
            "test_by_subset": evaluate_subsets(self.model, self.fitted, items),
            **super().results(items),
            "label_skew": self.strategy.labels.skew,
            "privacy": privacy_spent(self._run.config, self._run.config.rounds),
        }

    def checkpoint(self, number: int, seconds: float) -> Checkpoint:
        """Return what the run resumes from after a round."""
        return Checkpoint(
            number,
            self._settings,
            self._run.items(self.examples),
            self.model.state_dict(),
            self.strategy.state(),
            self.strategy.labels,
            seconds,
        )
