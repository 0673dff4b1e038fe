"""A baseline as a source of rounds, and the registry of baselines."""

import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from common.config import StrategyConfig
from common.errors import UserError
from server.baselines.sites import Sites, load_sites
from server.records import Phase, PhaseClock, RoundRecord
from server.run.run import Run
from server.run.source import RoundSource


class Baseline(RoundSource):
    """One or several models in training on all clients' data."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        #: Client to its train loss in the last round; empty where none trains by itself.
        self.client_losses: Mapping[str, float] = {}
        self.items = {
            "train": sum(len(site.train) for site in sites.by_key.values()),
            "validation": len(sites.data.validation),
            "test": len(sites.data.test),
        }

    @abstractmethod
    def train(self, number: int) -> dict[str, float]:
        """Train a round, counted from 1, and fit what joins the modalities.

        Returns modality, or ``multimodal``, to the mean train loss. Raises `UserError` if the loss
        stops being finite.
        """

    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round and return its record."""
        losses = self.train(number)
        clock.end(Phase.train)
        clients = {name: len(keys) for name, keys in self.sites.by_modality.items()}
        return RoundRecord(number, losses, self.client_losses, clients=clients)


#: ``strategy.setting`` to what builds the baseline, of the modules imported so far.
BASELINES: dict[str, Callable[[Sites], Baseline]] = {}


def find_baseline(strategy: StrategyConfig) -> Callable[[Sites], Baseline]:
    """Return what builds the baseline that a strategy names.

    Raises `UserError` if there is no such baseline, or it does not train the architecture.
    """
    _import_baselines()
    setting, architecture = strategy.setting, strategy.architecture
    if setting not in BASELINES:
        names = ", ".join(["federated", *sorted(BASELINES)])
        raise UserError(f"strategy.setting={setting}: expected one of {names}")
    if architecture != "ha_fedformer" and setting != "centralised":
        raise UserError(
            f"strategy.architecture={architecture} needs strategy.setting=centralised, "
            f"not {setting}"
        )
    return BASELINES[setting]


@cache
def _import_baselines() -> None:
    """Import all modules of this package, which enter their baselines into `BASELINES`."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")


def run_baseline(run: Run) -> dict[str, Any]:
    """Train the baseline that ``strategy.setting`` names, and return the summary.

    Raises `UserError` if the data or the device do not suit it, or the loss stops being finite.
    """

    def begin(run: Run) -> Baseline:
        return find_baseline(run.config.strategy)(load_sites(run.config, run.data))

    with run.console:
        return run.execute(begin)
