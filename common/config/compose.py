"""The names and types of all settings of `utmp-compose`; ``conf/compose.yaml`` holds the values."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import composed, typed
from common.config.ranges import Check, check_values
from common.errors import UserError


@dataclass
class ComposeConfig:
    """Which clients run on this machine, and on what."""

    clients: dict[str, int | None] = field(default_factory=lambda: {"default": None})
    modalities: list[str] = field(default_factory=list)
    data: str | None = None
    gpu: bool = False


_RANGES: tuple[Check, ...] = (("a number of at least 0", lambda value: value >= 0, ("clients",)),)


def compose_compose(overrides: Sequence[str]) -> ComposeConfig:
    """Compose ``conf/compose.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_compose(composed("compose", overrides, ComposeConfig))


def parse_compose(composition: DictConfig) -> ComposeConfig:
    """Turn a composed configuration into a checked `ComposeConfig`.

    Raises
    ------
    UserError
        If a value is out of its range.
    """
    config = typed(composition, ComposeConfig)
    check_values(config, _RANGES)
    if config.data is not None and not config.data.strip():
        raise UserError("data is empty: expected the folder of shards that utmp-prepare wrote")
    return config


def register_compose_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(ComposeConfig)
    # Modalities are the user's words, so this map takes any name.
    OmegaConf.set_struct(schema.clients, False)
    store.store(name="compose_schema", node=schema)


register_compose_schema()
