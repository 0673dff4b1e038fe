"""Go on with a run that broke off: which settings count, and what must be as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.config import (
    CheckpointConfig,
    Config,
    RuntimeConfig,
    TrackingConfig,
    config_of_settings,
)
from common.errors import UserError
from server.run.folder import flat_settings

T = TypeVar("T", RuntimeConfig, CheckpointConfig, TrackingConfig)

#: What may differ from the run that broke off.
FREE = ("rounds", "runtime", "checkpoint", "tracking", "console", "run_dir", "resume")


class MisfitError(UserError):
    """A checkpoint of other data, from which no run can go on."""


def resumed_config(
    settings: Mapping[str, Any], composed: Config, given: Sequence[str] | None
) -> Config:
    """Return the settings to go on with: the run's own, but for what is free.

    Parameters
    ----------
    settings
        The run's ``config.yaml``.
    composed
        What this command asks for.
    given
        Its overrides, of which alone the settings are asked for; None: every setting is, as where
        sites must compose the same configuration.

    Raises
    ------
    UserError
        If a setting that is asked for is not the run's; names it.
    """
    stored = config_of_settings(settings)
    here, there = (flat_settings(plain_settings(each)) for each in (composed, stored))
    # What was chosen is named before what comes with it.
    for name in sorted(here.keys() | there.keys(), key=lambda name: (_leaf(name) != "name", name)):
        asked = here.get(name, "nothing")
        # The run's own record says what the data are, where the command left it to them.
        left_open = name == "dataset.task" and asked == "null"
        if not _is_given(name, given) or _top(name) in FREE or left_open:
            continue
        if asked != there.get(name):
            raise UserError(
                f"resume={composed.resume}: {name} is {there.get(name, 'not set')} in that run and "
                f"{asked} here; leave it out, or start a new run"
            )
    return replace(
        stored,
        rounds=composed.rounds if _is_given("rounds", given) else stored.rounds,
        runtime=_given_of("runtime", stored.runtime, composed.runtime, given),
        checkpoint=_given_of("checkpoint", stored.checkpoint, composed.checkpoint, given),
        tracking=_given_of("tracking", stored.tracking, composed.tracking, given),
        resume=composed.resume,
    )


def plain_settings(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data: as OmegaConf's, in a hundredth of its time."""
    return {each.name: _plain(getattr(config, each.name)) for each in fields(config)}


def check_fits(found: Mapping[str, Tensor], model: Mapping[str, Tensor], where: str) -> None:
    """Raise `MisfitError` for the first array of a checkpoint that is not one of the model's."""
    for name in sorted(found.keys() | model.keys()):
        shapes = [tuple(each[name].shape) if name in each else None for each in (found, model)]
        if shapes[0] != shapes[1]:
            raise MisfitError(
                f"{where} does not fit: its {name} has shape {shapes[0]}, and that of the model "
                f"for these data {shapes[1]}; start a new run"
            )
    if not all(torch.isfinite(array).all() for array in found.values()):
        raise MisfitError(f"{where} holds a value that is not finite; start a new run")


def _is_given(name: str, given: Sequence[str] | None) -> bool:
    """Whether an override sets a name: itself, its group, or all by an experiment."""
    if given is None:
        return True
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in given]
    return any(
        key == "experiment" or f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")
        for key in keys
    )


def _given_of(name: str, stored: T, composed: T, given: Sequence[str] | None) -> T:
    """Take the settings of a group that are given; the others stay as they were in the run."""
    names = (each.name for each in fields(stored))
    taken = {each: getattr(composed, each) for each in names if _is_given(f"{name}.{each}", given)}
    return replace(stored, **taken)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.name if isinstance(value, Enum) else value


def _top(name: str) -> str:
    return name.partition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
