"""The names and types of all settings of `utmp-predict`.

``conf/trained/predict.yaml`` holds the values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import TRAINED, composed, required_model, typed
from common.config.ranges import Check, check_values
from common.errors import UserError

#: Formats of a file of predictions, by its suffix.
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


@dataclass
class PredictConfig:
    """What is predicted, with what, and where it goes."""

    model: str | None = None
    input: Any = None
    out: str = "predictions.csv"
    overwrite: bool = False
    format: str = "auto"
    modalities: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    batch_size: int = 256
    device: str = "auto"
    threads: int = 1
    max_seq_len: int | None = None
    group: str | None = None
    context: int | None = None
    arrays: dict[str, str] = field(default_factory=dict)


_RANGES: tuple[Check, ...] = (
    (
        "a number above 0",
        lambda value: 0 < value < math.inf,
        ("max_seq_len", "batch_size", "threads"),
    ),
    ("a number of at least 0", lambda value: 0 <= value < math.inf, ("context",)),
)


def compose_predict(overrides: Sequence[str]) -> PredictConfig:
    """Compose ``conf/trained/predict.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_predict(composed("predict", overrides, PredictConfig, TRAINED))


def parse_predict(composition: DictConfig) -> PredictConfig:
    """Turn a composed configuration into a checked `PredictConfig`.

    Raises
    ------
    UserError
        If a required setting is missing, or a value is out of its range.
    """
    config = typed(composition, PredictConfig)
    check_values(config, _RANGES)
    required_model(config.model)
    if not config.input:
        raise UserError("input is required; give it as input=…: a shard, or a file of any format")
    if Path(config.out).suffix not in SUFFIXES:
        raise UserError(f"out={config.out}: expected a file that ends in {', '.join(SUFFIXES)}")
    return config


def register_predict_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(PredictConfig)
    OmegaConf.set_struct(schema.arrays, False)
    store.store(name="predict_schema", node=schema)


register_predict_schema()
