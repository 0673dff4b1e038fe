"""From ``conf/`` and overrides to a checked `Config`, or one line that says what is wrong."""

import difflib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import TypeVar, cast

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.config.partition import DirichletConfig, SizeConfig
from common.config.ranges import check_ranges
from common.config.schema import Config, NpzConfig, ShardsConfig, SyntheticConfig
from common.errors import UserError

Schema = TypeVar("Schema")

#: The package with the files of the commands that use a trained model.
TRAINED = "conf.trained"


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
    return parse_config(composed(config_name, overrides, Config))


def composed(
    config_name: str, overrides: Sequence[str], schema: type, folder: str = "conf"
) -> DictConfig:
    """Compose a file of ``conf/``, or of a folder in it, and overrides, not yet checked.

    Raises
    ------
    UserError
        If an override names nothing in the schema or does not fit its type.
    """
    try:
        found = _compose_once(config_name, tuple(overrides), folder)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, schema)) from error
    # What is asked for once for each composition, the time.
    OmegaConf.clear_cache(found)
    return found


@lru_cache(maxsize=64)
def _compose_once(config_name: str, overrides: tuple[str, ...], folder: str) -> DictConfig:
    """Compose: a fifth of a second, and a client has the same settings in every round."""
    GlobalHydra.instance().clear()
    with initialize_config_module(folder, version_base=None):
        return compose(config_name, list(overrides))


def config_of_run(settings: Mapping[str, object]) -> Config:
    """Compose the configuration from the run-config strings of ``flwr run``.

    Parameters
    ----------
    settings
        ``config-name``, and ``overrides`` separated by spaces, quoted as in a shell.

    Raises
    ------
    UserError
        As `compose_config`.
    """
    try:
        overrides = shlex.split(str(settings["overrides"]))
    except ValueError as error:
        raise UserError(f"overrides={settings['overrides']!r}: {error}") from error
    return compose_config(str(settings["config-name"]), overrides)


def config_of_settings(settings: Mapping[str, object]) -> Config:
    """Build the configuration of a run from its ``config.yaml``.

    Raises
    ------
    UserError
        If it holds what this release does not know.
    """
    plain = OmegaConf.create(dict(settings))
    config = Config()
    for kind in (SyntheticConfig, NpzConfig, ShardsConfig):
        if plain.get("dataset", {}).get("name") == kind.name:
            config.dataset = kind()
    for rule in (DirichletConfig, SizeConfig):
        if plain.get("partition", {}).get("name") == rule.name:
            config.partition = rule()
    try:
        schema = OmegaConf.structured(config)
        OmegaConf.set_struct(schema.clients, False)
        OmegaConf.set_struct(schema.model.attention_dropout, False)
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, plain)))
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def parse_config(composition: DictConfig) -> Config:
    """Turn a composed configuration into a typed `Config` and check its ranges.

    Raises
    ------
    UserError
        If a value is out of its range or a required one is missing.
    """
    config = typed(composition, Config)
    check_ranges(config)
    return config


def typed(composition: DictConfig, schema: type[Schema]) -> Schema:
    """Turn a composed configuration into its schema's type; its ranges are not checked.

    Raises
    ------
    UserError
        If a value does not fit its type, or a required one is missing.
    """
    try:
        config = cast(Schema, OmegaConf.to_object(composition))
        refuse_unknown(composition)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from error
    return config


def required_model(model: str | None) -> None:
    """Raise `UserError` where a command that uses a trained model is given none."""
    if model is None or not model.strip():
        raise UserError("model is required; give it as model=…: a run folder or its model file")


def refuse_unknown(composed: DictConfig, prefix: str = "") -> None:
    """Refuse what ``+name=value`` added: the schema has all there is."""
    schema = OmegaConf.get_type(composed)
    if not is_dataclass(schema):
        return
    for key in map(str, composed):
        if key not in {item.name for item in fields(schema)}:
            raise UserError(f"there is no setting {prefix + key!r} (--cfg job prints them all)")
        if isinstance(composed[key], DictConfig):
            refuse_unknown(composed[key], f"{prefix}{key}.")


def explain(error: Exception, schema: type = Config) -> str:
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
        if owner := _owner_of(unknown[1], schema):
            return f"{unknown[1]} is a setting of {owner}; give that too"
        near = difflib.get_close_matches(unknown[1], setting_names(schema), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"there is no setting {unknown[1]!r}{hint} (--cfg job prints them all)"
    if unfit := re.match(r"In '(.*)': ConfigKeyError raised", first):
        key = next((line for line in others if line.startswith("full_key: ")), "full_key: ?")
        name = key.removeprefix("full_key: ")
        return (
            f"{unfit[1]} sets {name}, which the chosen {name.split('.')[0]} does not have; give "
            "one of the two"
        )
    if isinstance(error.__cause__, OmegaConfBaseException):
        reason = str(error.__cause__).splitlines()[0]
        return f"{first.removeprefix('Error merging override ')}: {reason}"
    return first


def _options(lines: list[str]) -> list[str]:
    """Return the names that Hydra lists below "Available options", up to its search path."""
    listed = itertools.takewhile(lambda line: not line.startswith("Config search path"), lines[1:])
    return list(listed)


def _kinds(schema: type) -> dict[str, type]:
    """Return the choices of a group that have settings of their own, by how they are given."""
    partitions: dict[str, type] = {
        "partition=dirichlet": DirichletConfig,
        "partition=size": SizeConfig,
    }
    datasets = {f"dataset={kind.name}": kind for kind in (SyntheticConfig, NpzConfig, ShardsConfig)}
    return {**(datasets if schema is Config else {}), **partitions}


def _owner_of(name: str, schema: type) -> str | None:
    """Return the choice that has a setting, if one has."""
    for choice, kind in _kinds(schema).items():
        group = choice.partition("=")[0]
        if name in {f"{group}.{item.name}" for item in fields(kind)}:
            return choice
    return None


def setting_names(schema: type = Config) -> list[str]:
    """Every dotted name of a schema."""
    names = [*_names_below(OmegaConf.structured(schema))]
    for choice, kind in _kinds(schema).items():
        names += [f"{choice.partition('=')[0]}.{item.name}" for item in fields(kind)]
    return sorted(set(names))


def _names_below(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _names_below(node[key], f"{prefix}{key}.")
