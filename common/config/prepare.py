"""The names and types of all settings of `utmp-prepare`; ``conf/prepare.yaml`` holds the values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from common.config.composition import composed, typed
from common.config.partition import PartitionConfig
from common.config.ranges import Check, check_values
from common.errors import UserError


class Format(StrEnum):
    """What a source is; see `common.data.formats`."""

    auto = "auto"
    npz = "npz"
    multibench = "multibench"
    mult = "mult"
    mmsa = "mmsa"
    csd = "csd"
    table = "table"
    synthetic = "synthetic"


class Labels(StrEnum):
    """Which labels are taken: those of a kind, or the six emotions."""

    regression = "regression"
    classification = "classification"
    multilabel = "multilabel"
    emotion = "emotion"


class Split(StrEnum):
    """Who decides which items are for training, validation and test."""

    auto = "auto"
    source = "source"
    random = "random"
    none = "none"


class Precision(StrEnum):
    """How features are stored."""

    auto = "auto"
    float16 = "float16"
    float32 = "float32"


@dataclass
class PrepareConfig:
    """Everything that decides a preparation."""

    path: Any = None
    out: str | None = None
    format: Format = Format.auto
    describe: bool = False
    overwrite: bool = False
    seed: int = 1234
    task: Labels = Labels.regression
    modalities: list[str] = field(default_factory=list)
    max_seq_len: int | None = 50
    dtype: Precision = Precision.auto
    group: str | None = None
    context: int = 0
    tabular: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    arrays: dict[str, str] = field(default_factory=dict)
    split: Split = Split.auto
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    clients: dict[str, int | None] = field(default_factory=lambda: {"default": None})
    partition: PartitionConfig = field(default_factory=PartitionConfig)


_RANGES: tuple[Check, ...] = (
    (
        "a number above 0",
        lambda value: 0 < value < math.inf,
        ("max_seq_len", "partition.alpha", "partition.bins"),
    ),
    (
        "a number of at least 0",
        lambda value: 0 <= value < math.inf,
        ("clients", "context", "partition.min_items"),
    ),
    (
        "a share in [0, 1)",
        lambda value: 0 <= value < 1,
        ("validation_fraction", "test_fraction"),
    ),
)


def compose_prepare(overrides: Sequence[str]) -> PrepareConfig:
    """Compose ``conf/prepare.yaml`` and overrides, outside the command.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    return parse_prepare(composed("prepare", overrides, PrepareConfig))


def parse_prepare(composition: DictConfig) -> PrepareConfig:
    """Turn a composed configuration into a checked `PrepareConfig`.

    Raises
    ------
    UserError
        If a value is out of its range or a required one is missing.
    """
    config = typed(composition, PrepareConfig)
    check_values(config, _RANGES)
    held_back = config.validation_fraction + config.test_fraction
    if held_back >= 1:
        raise UserError(f"validation_fraction + test_fraction={held_back}: expected less than 1")
    return config


def register_prepare_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(PrepareConfig)
    # Modalities are the user's words, so these maps take any name.
    OmegaConf.set_struct(schema.clients, False)
    OmegaConf.set_struct(schema.arrays, False)
    store.store(name="prepare_schema", node=schema)


register_prepare_schema()
