"""A run from the first query to the summary, over any Flower grid."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from common.config import Config, FusionRule
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
from server.console import RunConsole
from server.evaluate import Scores, evaluate, evaluate_rules, evaluate_subsets
from server.labels import PooledLabels, pool_labels
from server.learning_curve import learning_curve
from server.model_file import model_bytes
from server.registry import Registry
from server.run_folder import CURVE, MODEL, RunFolder
from server.strategy import HierarchicalAggregation, RoundReport, from_record, to_record

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
    """

    config: Config
    data: FederatedDataset
    folder: RunFolder
    console: RunConsole

    def __post_init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self._report: RoundReport | None = None
        self._round_began = 0.0
        self._train_items = 0

    def execute(self, grid: Grid) -> dict[str, Any]:
        """Run the federation and return the summary, which is in the run folder too.

        Raises
        ------
        UserError
            If nodes are missing or do not fit, or no client could be merged in a round.
        """
        try:
            return self._execute(grid)
        except BaseException:
            if not self.records:
                self.folder.release()
            raise

    def _execute(self, grid: Grid) -> dict[str, Any]:
        began = time.monotonic()
        for what, count in self.data.cleaning.items():
            self.console.tell(f"cleaned: {count} {what}")
        for line in self.data.warnings:
            self.console.warn(line)
        config, registry = self.config, Registry()
        counts = Counter(key.modality for key in self.data.clients)
        registry.wait_for(grid, counts, config.runtime.node_timeout, self.console.tell)
        labels = self._pool_labels(registry)
        model = self._initial_model(registry)
        trained = split_arrays({name: model.state_dict()[name] for name in trained_names(model)})
        strategy = HierarchicalAggregation(config, registry, labels, trained, self._remember)

        def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round > 0:
                model.load_state_dict(from_record(arrays))
                self._record_round(model, self._fusion(strategy))
            self._round_began = time.monotonic()
            return None

        self._train_items = sum(m.client.examples for m in registry.members.values())
        strategy.start(
            grid,
            to_record(model.state_dict()),
            num_rounds=config.rounds,
            timeout=config.runtime.round_timeout,
            evaluate_fn=after_round,
        )
        return self._finish(model, strategy, time.monotonic() - began)

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
        )
        model = build_model(spec, derive_seed(self.config.seed, "model"))
        for name in self.data.shapes:
            set_standardisation(model, name, moments[name])
        return model

    def _fusion(self, strategy: HierarchicalAggregation, rule: FusionRule | None = None) -> Fusion:
        return fit_fusion(
            rule or self.config.fusion.name, self.data.task, strategy.prior, strategy.evidence
        )

    def _remember(self, report: RoundReport) -> None:
        """Keep a round's report until its evaluation."""
        if not report.clients:
            reason = report.rejected[0] if report.rejected else "no reply came in time"
            raise UserError(f"round {report.round}: no client could be merged; {reason}")
        self._report = report

    def _record_round(self, model: HAFedformer, fusion: Fusion) -> None:
        report = self._report
        assert report is not None
        record = {
            "round": report.round,
            "train_loss": self._in_order(report.train_loss),
            "validation": evaluate(model, fusion, self.data.validation),
            "fusion_weights": fusion.weights,
            "clients": self._in_order(report.clients),
            "reused": list(report.reused),
            "rejected": list(report.rejected),
            "decoder_weights": report.decoder_weights,
            "trust": report.trust,
            "bytes_down": report.bytes_down,
            "bytes_up": report.bytes_up,
            "seconds": round(time.monotonic() - self._round_began, 3),
        }
        self.records.append(record)
        self.folder.append_round(record)
        self.console.round(record)

    def _in_order(self, by_modality: Mapping[str, T]) -> dict[str, T]:
        """Put the dataset's order of modalities on a mapping."""
        return {name: by_modality[name] for name in self.data.shapes if name in by_modality}

    def _finish(
        self, model: HAFedformer, strategy: HierarchicalAggregation, seconds: float
    ) -> dict[str, Any]:
        config, fusion = self.config, self._fusion(strategy)
        test = evaluate(model, fusion, self.data.test)
        rules = {str(rule): self._fusion(strategy, rule) for rule in FITTED_RULES}
        summary = {
            "test": test,
            "test_by_fusion": evaluate_rules(model, rules, self.data.test),
            "test_by_subset": evaluate_subsets(model, fusion, self.data.test),
            "validation": self.records[-1]["validation"],
            "rounds": config.rounds,
            "seed": config.seed,
            "seconds": round(seconds, 3),
            "fusion": str(fusion.rule),
            "fusion_weights": fusion.weights,
            "items": {
                "train": self._train_items,
                "validation": len(self.data.validation),
                "test": len(self.data.test),
            },
            "label_skew": strategy.labels.skew,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "cleaning": self.data.cleaning,
        }
        self.folder.write(MODEL, model_bytes(model, fusion))
        self.folder.write(CURVE, learning_curve(self.records, self.data.task))
        self.folder.write_summary(summary)
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
    """Leave the cores to the clients; sums in one order are reproducible too."""
    torch.set_num_threads(1)
