"""The names and types of all settings of `utmp-evaluate`.

``conf/trained/evaluate.yaml`` holds the values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import TRAINED, composed, required_model, typed
from common.config.ranges import Check, check_values
from common.errors import UserError


class Side(StrEnum):
    """Which of a run's own items."""

    validation = "validation"
    test = "test"


@dataclass
class EvaluateConfig:
    """What is evaluated, on what."""

    model: str | None = None
    dataset: Any = None
    side: Side = Side.test
    out: str | None = None
    overwrite: bool = False
    format: str = "auto"
    modalities: list[str] = field(default_factory=list)
    device: str = "auto"
    emotions: bool = False
    labels: list[str] = field(default_factory=list)
    max_seq_len: int | None = None
    group: str | None = None
    context: int | None = None
    arrays: dict[str, str] = field(default_factory=dict)


#: Settings that say how `dataset` is read.
_READING = ("format", "emotions", "labels", "group", "context", "arrays")

_RANGES: tuple[Check, ...] = (
    ("a number above 0", lambda value: 0 < value < math.inf, ("max_seq_len",)),
    ("a number of at least 0", lambda value: 0 <= value < math.inf, ("context",)),
)


def compose_evaluate(overrides: Sequence[str]) -> EvaluateConfig:
    """Compose ``conf/trained/evaluate.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_evaluate(composed("evaluate", overrides, EvaluateConfig, TRAINED))


def parse_evaluate(composition: DictConfig) -> EvaluateConfig:
    """Turn a composed configuration into a checked `EvaluateConfig`.

    Raises
    ------
    UserError
        If a required setting is missing, or a value is out of its range.
    """
    config = typed(composition, EvaluateConfig)
    check_values(config, _RANGES)
    required_model(config.model)
    _check_reading(config)
    if config.out is not None and not config.out.endswith(".json"):
        raise UserError(f"out={config.out}: expected a file that ends in .json")
    return config


def _check_reading(config: EvaluateConfig) -> None:
    """Refuse to be told how a dataset is read where there is none."""
    default = EvaluateConfig()
    changed = [name for name in _READING if getattr(config, name) != getattr(default, name)]
    if config.dataset is None and changed:
        raise UserError(
            f"{changed[0]} says how a dataset is read; give that too, as dataset=… (the run's own "
            "items are read as the run read them)"
        )


def register_evaluate_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(EvaluateConfig)
    OmegaConf.set_struct(schema.arrays, False)
    store.store(name="evaluate_schema", node=schema)


register_evaluate_schema()
