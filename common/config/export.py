"""The names and types of all settings of `utmp-export`.

``conf/trained/export.yaml`` holds the values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import TRAINED, composed, required_model, typed
from common.errors import UserError


@dataclass
class ExportConfig:
    """What is exported, and where it goes."""

    model: str | None = None
    out: str = "onnx"
    overwrite: bool = False
    subsets: list[str] = field(default_factory=list)


def compose_export(overrides: Sequence[str]) -> ExportConfig:
    """Compose ``conf/trained/export.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_export(composed("export", overrides, ExportConfig, TRAINED))


def parse_export(composition: DictConfig) -> ExportConfig:
    """Turn a composed configuration into a checked `ExportConfig`.

    Raises
    ------
    UserError
        If a required setting is missing.
    """
    config = typed(composition, ExportConfig)
    required_model(config.model)
    if not config.out.strip():
        raise UserError("out is required; give it as out=…")
    return config


def register_export_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="export_schema", node=OmegaConf.structured(ExportConfig))


register_export_schema()
