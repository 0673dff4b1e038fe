"""The registry of merge rules: what clients add up to, and how that becomes new weights.

A rule is one module of this package with an entry in `RULES`; its name is what
``strategy.encoder.merge`` and ``strategy.decoder.merge`` take. Encoders are merged inside their
modality; decoders across modalities, by default as if all clients were of one.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from importlib import import_module
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from common.config import StrategyConfig
from common.errors import UserError
from common.posterior import Posterior
from common.structures import find_structure

Arrays = dict[str, Tensor]

#: Layer to modality to its share in the decoder.
Shares = dict[str, dict[str, float]]


class ClientSum(Protocol):
    """What some clients add up to; a monoid, so it streams and reduces in a tree."""

    def add(self, posterior: Posterior, weight: float) -> Self:
        """Add one client with its weight, above 0."""
        ...

    def merge(self, other: Self) -> Self:
        """Return the sum of both; an empty one changes nothing."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a rule may use besides the sum."""

    #: What the clients started from, in the model's order, in which noise is drawn.
    current: Mapping[str, Tensor]
    config: StrategyConfig
    #: Draws noise.
    generator: torch.Generator
    #: Modality to the weight of its clients.
    weights: Mapping[str, float] = field(default_factory=dict)


def merge_sums(sums: Mapping[str, Any]) -> Any:
    """Return the sum of all modalities' clients."""
    return reduce(lambda left, right: left.merge(right), sums.values())


@dataclass(frozen=True)
class Rule:
    """How clients are merged."""

    #: Returns the sum of no clients.
    start: Callable[[], ClientSum]
    #: Returns the merged arrays, float32, of the sum of some clients.
    finish: Callable[[Any, Setting], Arrays]
    #: Merges the sums of modalities, sorted; returns the arrays and the shares of modalities. None:
    #: as if all clients were of one.
    across: Callable[[Mapping[str, Any], Setting], tuple[Arrays, Shares]] | None = None
    #: What it can merge.
    parts: tuple[str, ...] = ("encoder", "decoder")

    def merge_modalities(self, sums: Mapping[str, Any], setting: Setting) -> tuple[Arrays, Shares]:
        """Merge the clients of all modalities; return the arrays and the modalities' shares."""
        if self.across is not None:
            return self.across(sums, setting)
        return self.finish(merge_sums(sums), setting), {}


#: Name to rule, of the modules that have been imported.
RULES: dict[str, Rule] = {}


def find_rule(name: str, part: str) -> Rule:
    """Return the rule that merges a part; raise UserError with those that there are."""
    _import_rules()
    if name in RULES and part in RULES[name].parts:
        return RULES[name]
    names = sorted(key for key, rule in RULES.items() if part in rule.parts)
    raise UserError(f"strategy.{part}.merge={name}: expected one of {', '.join(names)}")


def check_names(config: StrategyConfig) -> None:
    """Raise UserError unless a strategy's rules and structure exist."""
    find_rule(config.encoder.merge, "encoder")
    find_rule(config.decoder.merge, "decoder")
    find_structure(config.encoder.structure)


@cache
def _import_rules() -> None:
    """Import all modules of this package, which put their rules into `RULES`."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
