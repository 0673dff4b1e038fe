"""What values a setting may take, beyond its type."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common.config.privacy import PrivacyRule
from common.config.runtime import Runtime
from common.config.schema import Config, DecoderMerge, EncoderMerge, StrategyConfig
from common.errors import UserError

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
            "partition.alpha",
            "partition.bins",
            "model.width",
            "model.heads",
            "model.layers",
            "model.kernel_size",
            "model.decoder_layers",
            "checkpoint.keep",
            "runtime.client_cpus",
            "runtime.min_clients",
            "runtime.round_timeout",
            "strategy.sampler.num_samples",
            "strategy.sampler.segment",
            "strategy.sampler.lr",
            "strategy.server_optimizer.lr",
            "strategy.server_optimizer.tau",
            "strategy.decoder.temperature",
            "strategy.screening.clip_norm",
            "strategy.screening.max_faults",
            "privacy.clip",
            "privacy.noise_multiplier",
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
            "dataset.permuted_clients",
            "partition.min_items",
            "runtime.client_gpus",
            "runtime.node_timeout",
            "strategy.decoder.epsilon",
            "strategy.decoder.noise",
            "strategy.fedatt.epsilon",
            "strategy.fedatt.noise",
            "strategy.local.proximal",
            "strategy.sampler.temperature",
            "strategy.skew_threshold",
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
            "strategy.server_optimizer.momentum",
            "strategy.server_optimizer.beta2",
        ),
    ),
    (
        "a share in (0, 1]",
        lambda value: 0 < value <= 1,
        (
            "strategy.decoder.shrinkage",
            "strategy.encoder.shrinkage",
            "strategy.fraction",
            "strategy.sampler.friction",
        ),
    ),
    (
        "a number of at least 1",
        lambda value: 1 <= value < math.inf,
        ("strategy.screening.norm_factor", "strategy.screening.precision_factor"),
    ),
    ("a probability in (0, 1)", lambda value: 0 < value < 1, ("privacy.delta",)),
    ("a share in [0, 1]", lambda value: 0 <= value <= 1, ("strategy.posterior_rounds",)),
    ("a share in [0, 0.5)", lambda value: 0 <= value < 0.5, ("strategy.trim",)),
    ("1 or -1", lambda value: value in (1, -1), ("strategy.decoder.sign",)),
)


def check_ranges(config: Config) -> None:
    """Raise `UserError` for the first value outside its range."""
    check_values(config, RANGES)
    dataset, model = config.dataset, config.model
    held_back = dataset.validation_fraction + dataset.test_fraction
    if held_back >= 1:
        raise UserError(
            f"dataset.validation_fraction + dataset.test_fraction={held_back}: expected less than 1"
        )
    edges = dataset.label_bins
    if not all(map(math.isfinite, edges)) or sorted(set(edges)) != edges:
        raise UserError(f"dataset.label_bins={edges}: expected ascending numbers")
    _check_steps(config.strategy)
    _check_privacy(config)
    address, name = config.runtime.ray.address, config.runtime.name
    if address is not None and name is not Runtime.simulation:
        raise UserError(
            f"runtime.ray.address={address} needs runtime=simulation, and the run has "
            f"runtime={name}"
        )
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} is not divisible by model.heads={model.heads}")


def _check_steps(strategy: StrategyConfig) -> None:
    """Refuse changes per local step where the clients are not averaged."""
    encoder, decoder = strategy.encoder.merge, strategy.decoder.merge
    averaged = encoder in (EncoderMerge.average, EncoderMerge.pbea)
    if strategy.normalise_steps and not (averaged and decoder is DecoderMerge.average):
        raise UserError(
            "strategy.normalise_steps=true needs averages, and the run has "
            f"strategy.encoder.merge={encoder} and strategy.decoder.merge={decoder}"
        )


#: What privacy needs: the sums whose sensitivity is known, and that nothing else leaves a client.
_PRIVATE: tuple[tuple[str, str], ...] = (
    ("strategy.setting", "federated"),
    ("strategy.sampler.name", "last"),
    ("strategy.encoder.merge", "average"),
    ("strategy.decoder.merge", "average"),
    ("strategy.weights", "uniform"),
    ("strategy.normalise_steps", "False"),
    ("fusion.name", "mean"),
    # A modality that is dropped after the noise was shared out would take its share with it.
    ("runtime.min_clients", "1"),
)


def _check_privacy(config: Config) -> None:
    if config.privacy.name is PrivacyRule.none:
        return
    for name, needed in _PRIVATE:
        ((_, value),) = _values(config, [name])
        if str(value) != needed:
            raise UserError(
                f"privacy={config.privacy.name} needs {name}={needed.lower()}, and the run has "
                f"{name}={str(value).lower()}; experiment=private sets all that it needs"
            )


def check_values(config: object, ranges: Iterable[Check]) -> None:
    """Raise `UserError` for the first value that is not in its range."""
    for expected, holds, names in ranges:
        for name, value in _values(config, names):
            if not holds(value):
                raise UserError(f"{name}={value}: expected {expected}")


def _values(config: object, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Look up settings by dotted name; those that are None or of another dataset are left out."""
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, dict):
            given = ((key, each) for key, each in value.items() if each is not None)
            yield from ((f"{name}.{key}", each) for key, each in given)
        elif value is not None:
            yield name, value
