"""The names and types of all settings of `utmp-credentials`; see ``conf/credentials.yaml``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import composed, typed
from common.config.ranges import Check, check_values
from common.errors import UserError


class Renew(StrEnum):
    """What is replaced though it is there."""

    none = "none"
    server = "server"


@dataclass
class CredentialsConfig:
    """Who gets credentials, for which names, and for how long."""

    out: str | None = None
    hosts: Any = None
    clients: dict[str, int] = field(default_factory=dict)
    days: int = 365
    ca_days: int = 3650
    renew: Renew = Renew.none

    @property
    def host_names(self) -> list[str]:
        """The hosts that were given, as text; empty if none were."""
        given = self.hosts if isinstance(self.hosts, list) else [self.hosts]
        return [] if self.hosts is None else ["" if host is None else str(host) for host in given]


_RANGES: tuple[Check, ...] = (
    ("a number from 1", lambda value: value >= 1, ("clients",)),
    ("a number from 1 to 36500", lambda value: 1 <= value <= 36500, ("days", "ca_days")),
)


def compose_credentials(overrides: Sequence[str]) -> CredentialsConfig:
    """Compose ``conf/credentials.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_credentials(composed("credentials", overrides, CredentialsConfig))


def parse_credentials(composition: DictConfig) -> CredentialsConfig:
    """Turn a composed configuration into a checked `CredentialsConfig`.

    Raises
    ------
    UserError
        If a value is out of its range or a required one is missing.
    """
    config = typed(composition, CredentialsConfig)
    check_values(config, _RANGES)
    if config.out is None or not config.out.strip():
        raise UserError("out is required; give it as out=…: the folder of all credentials")
    names = config.host_names
    nothing = config.hosts is not None and not names
    if nothing or isinstance(config.hosts, dict) or not all(name.strip() for name in names):
        raise UserError(
            f"hosts={config.hosts}: expected the names and addresses by which the coordinator is "
            "reached, as in 'hosts=[superlink.example.org,10.0.0.5]'"
        )
    return config


def register_credentials_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(CredentialsConfig)
    # Modalities are the user's words, so this map takes any name.
    OmegaConf.set_struct(schema.clients, False)
    store.store(name="credentials_schema", node=schema)


register_credentials_schema()
