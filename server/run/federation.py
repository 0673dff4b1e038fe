"""The rounds of a federation, over any Flower grid."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import Tensor

from common.clients import ClientKey
from common.config import FusionRule, OnMissingModality
from common.data.dataset import MultimodalDataset
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.fit_joint import FEW_ITEMS, Opinions
from common.model.fusion import Fusion, fit_fusion
from common.model.ha_fedformer import ModelArrays, split_arrays, trained_names
from common.model.linear import LinearSums
from common.structures import MOST_INPUTS, decoder_structure, encoder_structure
from server.acceptance.privacy import privacy_spent
from server.evaluate import Scores, evaluate, evaluate_rules, evaluate_subsets, opinions
from server.records import Phase, PhaseClock, RoundRecord
from server.roster.attendance import Attendance
from server.roster.exchange import exchange
from server.roster.labels import pool_labels
from server.roster.registry import Registry, Terms
from server.roster.statistics import bound_clients, pool_moments
from server.run.checkpoint import Checkpoint
from server.run.folder import plain_settings
from server.run.linear import Experts, pool_clients
from server.run.run import Run
from server.run.source import OneModel, count_parameters, initial_model
from server.strategy import HierarchicalAggregation


def federate(run: Run, grid: Grid, ours: bool = False) -> dict[str, Any]:
    """Execute a prepared run over a grid and return the summary; `ours` as in `Attendance`.

    Raises `UserError` if nodes are missing or do not fit, or a round cannot be merged.
    """
    return run.execute(lambda run: Federation(run, grid, ours))


class Federation(OneModel):
    """The clients of a grid, and the model that they train; resumed from the run's checkpoint.

    Raises `UserError` if nodes are missing, or they or the checkpoint do not fit the data.
    """

    def __init__(self, run: Run, grid: Grid, ours: bool) -> None:
        self._run, self._grid = run, grid
        config, data, former = run.config, run.data, run.checkpoint
        kinds = (data.label_names, data.reading.extractors)
        registry = Registry(Terms(data.shapes, data.task, data.outputs, *kinds))
        timeout = config.runtime.node_timeout
        self._attendance = Attendance(registry, grid, timeout, run.console.tell, ours)
        self._attendance.gather(Counter(key.modality for key in data.clients))
        clients = [member.client for member in registry.members.values()]
        bounded = bound_clients(clients, data.validation, data.task)
        for line in bounded.odd:
            run.console.tell(line)
        labels = former.labels if former else pool_labels(bounded.clients, data.task, data.outputs)
        moments = pool_moments(bounded.clients)
        experts = Experts(self._linear_sums(registry, moments, bounded.units), labels.prior)
        reading = replace(data.reading, extractors=registry.extractors)
        self.model = initial_model(config, replace(data, reading=reading), moments, experts)
        registry.forget_linear()
        self.parameters = count_parameters(self.model)
        state = self.model.state_dict()
        trained = split_arrays({name: state[name] for name in trained_names(self.model)})
        self.prior = labels.prior
        well_measured = [
            name
            for name, sequences in data.validation.sequences.items()
            if sequences.present.sum() >= FEW_ITEMS
        ]
        self.strategy = HierarchicalAggregation(
            config, registry, labels, trained, self._look, well_measured, bounded.units
        )
        self._tell_left_out(trained)
        self.examples = sum(member.client.examples for member in registry.members.values())
        self._settings = plain_settings(config)
        self.fitted = self._fit()
        if former is not None:
            self._restore(former)

    def _tell_left_out(self, trained: ModelArrays) -> None:
        """Print a line for each part whose posteriors leave out the precision of wide maps."""
        encoder, decoder = (
            encoder_structure(self._run.config.strategy.encoder),
            decoder_structure(self._run.config.strategy.decoder),
        )
        parts = [(name, arrays, encoder) for name, arrays in trained.encoders.items()]
        for name, arrays, structure in [*parts, ("decoder", trained.decoder, decoder)]:
            wide = [
                f"{key} ({array[0].numel():,} inputs)"
                for key, array in arrays.items()
                if structure and structure.leaves_out(array)
            ]
            if wide:
                self._run.console.tell(
                    f"{name}: averaged without precisions, which are for at most {MOST_INPUTS} "
                    f"inputs: {', '.join(wide)}"
                )

    def _linear_sums(
        self,
        registry: Registry,
        moments: Mapping[str, FeatureMoments],
        units: Mapping[ClientKey, FeatureMoments],
    ) -> dict[str, LinearSums]:
        """Return what the linear experts are fitted to.

        A resumed run has those of its checkpoint, which take the place of what is fitted here.
        """
        data, former = self._run.data, self._run.checkpoint
        if former is None:
            clients = (member.client for member in registry.members.values())
            whose = self._run.config.dataset.standardisation
            return pool_clients(clients, data, moments, whose, units)
        return {
            name: LinearSums.empty(math.prod(shape), data.outputs)
            for name, shape in data.shapes.items()
            if f"encoders.{name}.linear.weight" in former.model
        }

    def _restore(self, former: Checkpoint) -> None:
        self._load(self._run.best_checkpoint())
        self.keep()
        self._load(former)
        self.strategy.restore(former.strategy)
        self.examples = former.items["train"]
        self._run.console.tell(f"going on after round {former.round} of {self._run.config.rounds}")

    def _load(self, former: Checkpoint) -> None:
        where = self._run.checkpoints.path(former.round)
        former.check_fits(self._run.items(self.examples), self.model.state_dict(), where)
        self.model.load_state_dict(dict(former.model))
        self.fitted = former.fusion

    def _look(self, state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> Opinions:
        """Return what the model says of the validation items in a state, which it takes on."""
        self.model.load_state_dict(dict(state))
        items = self._run.data.validation
        items = items if names is None else items.in_modalities(names)
        return opinions(self.model, self.strategy.prior, items)

    def _fit(self) -> Fusion:
        """Fit the fusion rule to the model as it is."""
        data, strategy, rule = self._run.data, self.strategy, self._run.config.fusion.name
        strategy.opinions = strategy.opinions or self._look(self.model.state_dict())
        sums = strategy.calibration_sums
        return fit_fusion(rule, data.task, strategy.prior, sums, strategy.opinions)

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
        self.fitted = self._fit()
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
        if not report.clients and not report.harmful:
            reason = report.rejected[0] if report.rejected else "no reply came in time"
            raise UserError(f"round {report.round}: no client could be merged; {reason}")
        aborts = self._run.config.runtime.absent is OnMissingModality.abort
        if report.reused and aborts and not report.harmful:
            raise UserError(
                f"round {report.round}: too few updates of {', '.join(report.reused)}; "
                f"{'; '.join(report.rejected) or 'no reply came in time'}"
            )
        return report

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together, and each alone; no item is encoded twice in a round."""
        seen = self.strategy.opinions if items is self._run.data.validation else None
        return evaluate(self.model, self.fitted, items, seen)

    def restore(self) -> None:
        """Go back to the state that was kept."""
        super().restore()
        self.strategy.opinions = None

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return the scores under each fusion rule and of each subset, and privacy."""
        rules = {
            str(rule): replace(self.fitted, rule=rule)
            for rule in FusionRule
            if rule is not FusionRule.auto
        }
        return {
            "test_by_fusion": evaluate_rules(self.model, rules, items),
            "test_by_subset": evaluate_subsets(self.model, self.fitted, items),
            "label_skew": self.strategy.labels.skew,
            "privacy": privacy_spent(self._run.config, len(self._run.records)),
        }

    def checkpoint(self, number: int, seconds: float) -> Checkpoint:
        """Return what the run resumes from after a round."""
        return Checkpoint(
            number,
            self._settings,
            self._run.items(self.examples),
            self.model.state_dict(),
            self.model.spec,
            self.fitted,
            self.strategy.state(),
            self.strategy.labels,
            seconds,
        )
