"""A bound from the first round to the summary, with the run folder of a federation."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from common.config import Architecture, StrategyConfig, TrainingMode
from common.errors import UserError
from common.metrics import HEADLINE
from server.evaluate import Scores
from server.reference.batching import MULTIMODAL
from server.reference.bound import Bound
from server.reference.centralised import centralised
from server.reference.local import Local
from server.reference.pooled import pooled
from server.reference.sites import Sites, load_sites
from server.run.federation import Run
from server.run.folder import CURVE, MODEL
from server.run.learning_curve import learning_curve
from server.run.phases import Phase, PhaseClock

BOUNDS: Mapping[TrainingMode, Callable[[Sites], Bound]] = {
    TrainingMode.local: Local,
    TrainingMode.pooled: pooled,
    TrainingMode.centralised: centralised,
}


def run_reference(run: Run) -> dict[str, Any]:
    """Train the bound that ``strategy.setting`` names.

    Parameters
    ----------
    run
        Prepared; its folder is given up if the run ends before its first round does.

    Returns
    -------
    dict
        The summary, which is in the run folder too.

    Raises
    ------
    UserError
        If the data or the device do not serve for it, or the loss stops being finite.
    """
    execution = _Execution(run)
    try:
        with run.console, run.tracking:
            return execution.execute()
    except BaseException:
        if not execution.records:
            run.folder.release()
        raise


class _Execution:
    """Rounds and their records."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.records: list[dict[str, Any]] = []

    def execute(self) -> dict[str, Any]:
        """Train all rounds, and write the summary."""
        began = time.monotonic()
        run = self.run
        for what, count in run.data.cleaning.items():
            run.console.tell(f"cleaned: {count} {what}")
        for line in run.data.warnings:
            run.console.warn(line)
        check(run.config.strategy)
        sites = load_sites(run.config, run.data)
        bound = BOUNDS[run.config.strategy.setting](sites)
        for number in range(1, run.config.rounds + 1):
            self._round(number, bound, sites)
        return self._finish(bound, sites, began)

    def _round(self, number: int, bound: Bound, sites: Sites) -> None:
        began, clock = time.monotonic(), PhaseClock()
        losses = bound.train(number)
        clock.end(Phase.train)
        validation = bound.scores(sites.data.validation)
        clock.end(Phase.evaluate)
        record = {
            "round": number,
            "train_loss": losses,
            "client_losses": bound.client_losses,
            "validation": validation,
            "fusion_weights": bound.fusion_weights,
            "clients": {name: len(keys) for name, keys in sites.by_modality.items()},
            "reused": [],
            "rejected": [],
            "decoder_weights": {},
            "posterior_widths": {},
            "trust": {},
            "refused": 0,
            "privacy": None,
            "bytes_down": 0,
            "bytes_up": 0,
            "seconds": round(time.monotonic() - began, 3),
            "phases": clock.rounded(),
        }
        self.records.append(record)
        self.run.folder.append_round(record)
        self.run.console.round(record)
        self.run.tracking.round(self.records)

    def _finish(self, bound: Bound, sites: Sites, began: float) -> dict[str, Any]:
        config, data, folder = self.run.config, self.run.data, self.run.folder
        test = bound.scores(data.test)
        summary = {
            "test": test,
            "diagnostics": bound.diagnose(data.test),
            "validation": self.records[-1]["validation"],
            "rounds": config.rounds,
            "seed": config.seed,
            "seconds": round(time.monotonic() - began, 3),
            "fusion": bound.fusion,
            "fusion_weights": bound.fusion_weights,
            "items": {
                "train": sites.train_items,
                "validation": len(data.validation),
                "test": len(data.test),
            },
            "parameters": bound.parameters,
            "cleaning": data.cleaning,
        }
        model = bound.model_file()
        if model is not None:
            folder.write(MODEL, model)
        folder.write(CURVE, learning_curve(self.records, data.task))
        folder.write_summary(summary)
        self.run.tracking.finish(self.records, summary)
        self.run.console.scores(f"Test, {len(data.test)} items", test)
        self.run.console.tell(_what_won(test, HEADLINE[data.task]))
        self.run.console.tell(f"run folder: {folder.path}")
        return summary


def check(strategy: StrategyConfig) -> None:
    """Raise `UserError` for an architecture that needs paired items in a setting without any."""
    fits = strategy.architecture is Architecture.ha_fedformer
    if not fits and strategy.setting is not TrainingMode.centralised:
        raise UserError(
            f"strategy.architecture={strategy.architecture} needs "
            f"strategy.setting={TrainingMode.centralised}, not {strategy.setting}"
        )


def _what_won(test: Scores, metric: str) -> str:
    alone = {name: scores[metric] for name, scores in test.items() if name != MULTIMODAL}
    best = max(alone, key=lambda name: alone[name])
    gain = test[MULTIMODAL][metric] - alone[best]
    return f"all modalities together: {metric} {gain:+.3f} against {best} alone"
