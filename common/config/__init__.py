"""The typed configuration: one for `utmp-train` and for `flwr run`.

The YAML files under ``conf/`` hold the values, `common.config.schema` their names and types. A
value of the wrong type or a name that does not exist is refused when the configuration is composed.
"""

from common.config.composition import (
    compose_config,
    config_of_run,
    explain,
    parse_config,
    setting_names,
)
from common.config.ranges import check_ranges
from common.config.schema import (
    ClientConfig,
    Config,
    DatasetConfig,
    DecoderConfig,
    DecoderMerge,
    EncoderConfig,
    EncoderMerge,
    FusionConfig,
    FusionRule,
    ModelConfig,
    NpzConfig,
    Optimizer,
    RuntimeConfig,
    Sampler,
    SamplerConfig,
    Scale,
    ShardsConfig,
    Standardisation,
    StrategyConfig,
    Structure,
    SyntheticConfig,
    register_schema,
)

__all__ = [
    "ClientConfig",
    "Config",
    "DatasetConfig",
    "DecoderConfig",
    "DecoderMerge",
    "EncoderConfig",
    "EncoderMerge",
    "FusionConfig",
    "FusionRule",
    "ModelConfig",
    "NpzConfig",
    "Optimizer",
    "RuntimeConfig",
    "Sampler",
    "SamplerConfig",
    "Scale",
    "ShardsConfig",
    "Standardisation",
    "StrategyConfig",
    "Structure",
    "SyntheticConfig",
    "check_ranges",
    "compose_config",
    "config_of_run",
    "explain",
    "parse_config",
    "register_schema",
    "setting_names",
]
