"""The typed configuration: one schema for `utmp-train` and for `flwr run`.

The YAML files under ``conf/`` hold the values, the dataclasses here their names and types. A value
of the wrong type or a name that does not exist is refused when the configuration is composed.
"""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.errors import UserError
from common.task import Task


class Standardisation(StrEnum):
    """Whose statistics centre and scale a feature."""

    pooled = "pooled"
    client = "client"


@dataclass
class DatasetConfig:
    """What every dataset has; each kind adds its own settings."""

    name: str = MISSING
    task: Task = Task.regression
    modalities: list[str] = field(default_factory=list)
    max_seq_len: int = 50
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    standardisation: Standardisation = Standardisation.pooled


@dataclass
class SyntheticConfig(DatasetConfig):
    """The embedded dataset; see `common.data.synthetic`."""

    name: str = "synthetic"
    num_items: int = 2400
    num_speakers: int = 60
    noise: float = 1.0


@dataclass
class NpzConfig(DatasetConfig):
    """Arrays in ``.npz`` files; see `common.data.formats.npz`."""

    name: str = "npz"
    path: Any = MISSING  # one path or a list of paths
    test_path: str | None = None
    group: str | None = None
    context: int = 0
    tabular: list[str] = field(default_factory=list)


@dataclass
class ModelConfig:
    """Sizes and dropout rates of HA-Fedformer."""

    width: int = 30
    heads: int = 5
    layers: int = 5
    kernel_size: int = 1
    causal: bool = False
    decoder_layers: int = 3
    embedding_dropout: float = 0.25
    attention_dropout: dict[str, float] = field(default_factory=lambda: {"default": 0.0})
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1


class Optimizer(StrEnum):
    """Local optimisers."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


@dataclass
class ClientConfig:
    """Local training on one client."""

    optimizer: Optimizer = Optimizer.adamw
    lr: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 24
    local_epochs: int = 2
    max_grad_norm: float = 1.0
    validation_fraction: float = 0.2
    num_workers: int = 0
    device: str = "auto"
    threads: int = 1


class EncoderMerge(StrEnum):
    """How the encoders of one modality become one."""

    average = "average"
    pbea = "pbea"


class Structure(StrEnum):
    """Covariance structure of a client's posterior, per tensor."""

    diagonal = "diagonal"
    row = "row"


class Scale(StrEnum):
    """Whether a posterior keeps its client's overall scale."""

    relative = "relative"
    absolute = "absolute"


@dataclass
class EncoderConfig:
    """PbEA; see `client.posterior` and `server.aggregation.pbea`."""

    merge: EncoderMerge = EncoderMerge.pbea
    structure: Structure = Structure.row
    shrinkage: float = 0.5
    scale: Scale = Scale.relative


class DecoderMerge(StrEnum):
    """How the decoders of the modalities become one."""

    average = "average"
    cmda = "cmda"


@dataclass
class DecoderConfig:
    """CmDA; see `server.aggregation.cmda`."""

    merge: DecoderMerge = DecoderMerge.cmda
    epsilon: float = 1.2
    temperature: float = 1.0
    sign: int = 1
    noise: float = 1e-3


class Sampler(StrEnum):
    """What a client takes from its local iterates."""

    last = "last"
    iasg = "iasg"


@dataclass
class SamplerConfig:
    """Posterior sampling; see `client.sampling`."""

    name: Sampler = Sampler.iasg
    num_samples: int = 4
    burn_in: float = 0.75


@dataclass
class StrategyConfig:
    """One federated algorithm: what clients sample and how the server merges."""

    name: str = MISSING
    fraction: float = 1.0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class FusionRule(StrEnum):
    """How modalities are joined at prediction; see `common.model.fusion`."""

    auto = "auto"
    mean = "mean"
    reliability = "reliability"
    product_of_experts = "product_of_experts"


@dataclass
class FusionConfig:
    """The fusion rule."""

    name: FusionRule = FusionRule.auto


@dataclass
class RuntimeConfig:
    """Where clients run, and how long the server waits for them."""

    name: str = MISSING
    client_cpus: int = 1
    client_gpus: float | None = None
    node_timeout: float = 120.0
    round_timeout: float = 3600.0


@dataclass
class Config:
    """Everything that decides a run."""

    seed: int = 1234
    rounds: int = 20
    run_dir: str = MISSING
    clients: dict[str, int] = field(default_factory=lambda: {"default": 3})
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def register_schema() -> None:
    """Put the schema into Hydra's ConfigStore under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(Config)
    # Modalities are the user's words, so these two maps take any name: clients.fourier=2.
    OmegaConf.set_struct(schema.clients, False)
    OmegaConf.set_struct(schema.model.attention_dropout, False)
    store.store(name="schema", node=schema)
    store.store(group="dataset", name="synthetic_schema", node=SyntheticConfig)
    store.store(group="dataset", name="npz_schema", node=NpzConfig)


register_schema()


def compose_config(config_name: str, overrides: Sequence[str]) -> Config:
    """Compose the configuration from ``conf/`` and overrides, outside a Hydra command.

    Parameters
    ----------
    config_name
        Name of the primary file in ``conf/``, without ``.yaml``.
    overrides
        Hydra overrides, for example ``["clients.language=4", "rounds=50"]``.

    Returns
    -------
    Config
        The checked configuration.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base=None):
            return parse_config(compose(config_name, list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def parse_config(composed: DictConfig) -> Config:
    """Turn a composed configuration into a typed `Config` and check its ranges.

    Raises
    ------
    UserError
        If a value is out of its range or a required one is missing.
    """
    try:
        config = cast(Config, OmegaConf.to_object(composed))
        _refuse_unknown(composed)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    check_ranges(config)
    return config


def _refuse_unknown(composed: DictConfig, prefix: str = "") -> None:
    """Refuse what ``+name=value`` added: the schema has all there is."""
    schema = OmegaConf.get_type(composed)
    if not is_dataclass(schema):
        return
    for key in map(str, composed):
        if key not in {item.name for item in fields(schema)}:
            raise UserError(f"there is no setting {prefix + key!r} (--cfg job prints them all)")
        if isinstance(composed[key], DictConfig):
            _refuse_unknown(composed[key], f"{prefix}{key}.")


Check = tuple[str, Callable[[float], bool], tuple[str, ...]]

#: What is expected, how to tell, and of which settings; a name of a group means all that is in it.
RANGES: tuple[Check, ...] = (
    (
        "a number above 0",
        lambda value: 0 < value < math.inf,
        (
            "rounds",
            "client.batch_size",
            "client.local_epochs",
            "client.lr",
            "client.max_grad_norm",
            "client.threads",
            "dataset.max_seq_len",
            "dataset.num_items",
            "dataset.num_speakers",
            "model.width",
            "model.heads",
            "model.layers",
            "model.kernel_size",
            "model.decoder_layers",
            "runtime.client_cpus",
            "runtime.round_timeout",
            "strategy.sampler.num_samples",
            "strategy.decoder.temperature",
        ),
    ),
    (
        "a number of at least 0",
        lambda value: 0 <= value < math.inf,
        (
            "clients",
            "client.num_workers",
            "client.weight_decay",
            "dataset.context",
            "dataset.noise",
            "runtime.client_gpus",
            "runtime.node_timeout",
            "strategy.decoder.epsilon",
            "strategy.decoder.noise",
        ),
    ),
    (
        "a share in [0, 1)",
        lambda value: 0 <= value < 1,
        (
            "client.validation_fraction",
            "dataset.test_fraction",
            "dataset.validation_fraction",
            "model.attention_dropout",
            "model.embedding_dropout",
            "model.relu_dropout",
            "model.residual_dropout",
            "strategy.sampler.burn_in",
        ),
    ),
    (
        "a share in (0, 1]",
        lambda value: 0 < value <= 1,
        ("strategy.encoder.shrinkage", "strategy.fraction"),
    ),
    ("1 or -1", lambda value: value in (1, -1), ("strategy.decoder.sign",)),
)


def check_ranges(config: Config) -> None:
    """Raise `UserError` for the first value outside its range."""
    for expected, holds, names in RANGES:
        for name, value in _values(config, names):
            if not holds(value):
                raise UserError(f"{name}={value}: expected {expected}")
    dataset, model = config.dataset, config.model
    held_back = dataset.validation_fraction + dataset.test_fraction
    if held_back >= 1:
        raise UserError(
            f"dataset.validation_fraction + dataset.test_fraction={held_back}: expected less than 1"
        )
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is not divisible by model.heads={model.heads}")


def _values(config: Config, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Look up settings by dotted name; those that are None or of another dataset are left out."""
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        elif value is not None:
            yield name, value


def explain(error: Exception) -> str:
    """Say in one line what Hydra or OmegaConf refused, with what there is instead."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override}: {first}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is required; give it as {error.full_key}=…"
    if missing := re.match(r"In '.*': Could not find '(\w+)/(.*)'", first):
        group, choice = missing.groups()
        choices = ", ".join(name for name in _options(others) if not name.endswith("_schema"))
        return f"{group}={choice}: there is no such {group}; there are {choices}"
    if unknown := re.match(r"Could not override '(.*)'", first):
        if owner := _dataset_with(unknown[1]):
            return f"{unknown[1]} is a setting of dataset={owner}; give that too"
        near = difflib.get_close_matches(unknown[1], setting_names(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"there is no setting {unknown[1]!r}{hint} (--cfg job prints them all)"
    if isinstance(error.__cause__, OmegaConfBaseException):
        reason = str(error.__cause__).splitlines()[0]
        return f"{first.removeprefix('Error merging override ')}: {reason}"
    return first


def _options(lines: list[str]) -> list[str]:
    """Return the names that Hydra lists below "Available options", up to its search path."""
    listed = itertools.takewhile(lambda line: not line.startswith("Config search path"), lines[1:])
    return list(listed)


def _dataset_with(name: str) -> str | None:
    """Return the kind of dataset that has a setting, if one has."""
    for kind in (SyntheticConfig, NpzConfig):
        if name in {f"dataset.{item.name}" for item in fields(kind)}:
            return kind.name
    return None


def setting_names() -> list[str]:
    """Every dotted name of the schema."""
    names = [*_names_below(OmegaConf.structured(Config))]
    for kind in (SyntheticConfig, NpzConfig):
        names += [f"dataset.{item.name}" for item in fields(kind)]
    return sorted(set(names))


def _names_below(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _names_below(node[key], f"{prefix}{key}.")
