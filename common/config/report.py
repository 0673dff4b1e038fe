"""The names and types of all settings of `utmp-report`; ``conf/report.yaml`` holds the values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import composed, typed
from common.errors import UserError


@dataclass
class ReportConfig:
    """What is reported, and against what."""

    runs: Any = None
    out: str = "report"
    overwrite: bool = False
    baseline: str | None = "fedavg"
    metrics: list[str] = field(default_factory=list)
    details: int = 8

    @property
    def places(self) -> list[str]:
        """Where to look for runs: folders and globs."""
        given = self.runs if isinstance(self.runs, list) else [self.runs]
        return [str(place) for place in given]


def compose_report(overrides: Sequence[str]) -> ReportConfig:
    """Compose ``conf/report.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_report(composed("report", overrides, ReportConfig))


def parse_report(composition: DictConfig) -> ReportConfig:
    """Turn a composed configuration into a checked `ReportConfig`.

    Raises
    ------
    UserError
        If a required setting is missing, or one holds nothing.
    """
    config = typed(composition, ReportConfig)
    if config.runs is None or config.runs == []:
        raise UserError("runs is required; give it as runs=…: a folder, a glob, or a list of them")
    if isinstance(config.runs, dict) or not all(place.strip() for place in config.places):
        raise UserError(f"runs={config.runs}: expected a folder, a glob, or a list of them")
    if not config.out.strip():
        raise UserError("out is required; give it as out=…")
    if config.details < 0:
        raise UserError(f"details={config.details}: expected a number of runs, 0 or more")
    return config


def register_report_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="report_schema", node=OmegaConf.structured(ReportConfig))


register_report_schema()
