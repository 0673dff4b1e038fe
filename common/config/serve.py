"""The names and types of all settings of `utmp-serve`.

``conf/trained/serve.yaml`` holds the values.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import TRAINED, composed, required_model, typed
from common.config.ranges import Check, check_values
from common.errors import UserError


@dataclass
class ServeConfig:
    """Which model answers, where, whom, and how much at a time."""

    model: str | None = None
    labels: list[str] = field(default_factory=list)
    examples: str = "auto"
    device: str = "auto"
    threads: int = 1
    host: str = "127.0.0.1"
    port: int = 8100
    token: str | None = None
    token_file: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None
    max_body_mb: float = 16.0
    max_items: int = 1000
    max_steps: int = 1000
    max_batch: int = 256
    max_wait_ms: float = 5.0
    max_queue: int = 4096

    @property
    def is_local(self) -> bool:
        """Whether only this machine is answered."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


_RANGES: tuple[Check, ...] = (
    (
        "a number from 1",
        lambda value: value >= 1,
        ("threads", "max_items", "max_steps", "max_batch", "max_queue"),
    ),
    ("a number from 0 to 65535", lambda value: 0 <= value <= 65535, ("port",)),
    ("a number above 0, up to 1024", lambda value: 0 < value <= 1024, ("max_body_mb",)),
    ("a number from 0 to 1000", lambda value: 0 <= value <= 1000, ("max_wait_ms",)),
)


def compose_serve(overrides: Sequence[str]) -> ServeConfig:
    """Compose ``conf/trained/serve.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_serve(composed("serve", overrides, ServeConfig, TRAINED))


def parse_serve(composition: DictConfig) -> ServeConfig:
    """Turn a composed configuration into a checked `ServeConfig`.

    Raises
    ------
    UserError
        If a required setting is missing, one is out of its range, or two do not fit together.
    """
    config = typed(composition, ServeConfig)
    check_values(config, _RANGES)
    required_model(config.model)
    if not config.host.strip():
        raise UserError("host is required; 127.0.0.1 answers this machine only, 0.0.0.0 everyone")
    if config.token is not None and config.token_file is not None:
        raise UserError("token and token_file are both given; give one of the two")
    check_token(config.token, "token")
    if (config.ssl_cert is None) != (config.ssl_key is None):
        raise UserError("ssl_cert and ssl_key belong together; give both, or neither")
    if config.max_queue < config.max_items:
        raise UserError(
            f"max_queue={config.max_queue}: expected max_items={config.max_items} at least, or "
            "such a request could never be answered"
        )
    return config


def check_token(token: str | None, source: str) -> None:
    """Refuse a token that no request could carry; the message does not show it.

    Raises
    ------
    UserError
        If it is empty or holds more than visible ASCII.
    """
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"{source}: expected letters, digits and signs of ASCII, without spaces")


def register_serve_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="serve_schema", node=OmegaConf.structured(ServeConfig))


register_serve_schema()
