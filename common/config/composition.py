"""From ``conf/`` and overrides to checked settings, or one line that says what is wrong."""

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import TypeVar, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.config.commands import SCHEMAS
from common.config.ranges import Settings, check_ranges, unknown_setting
from common.config.schema import KINDS, Config, PartitionConfig
from common.config.typed import escaped, literal_paths
from common.errors import UserError

Schema = TypeVar("Schema", bound=Settings)

#: What Hydra raises for an override that it cannot use; `ValueError` for a group.
CompositionErrors = (HydraException, OmegaConfBaseException, ValueError)

#: Lines of Hydra's messages that help nobody.
_NO_HINT = ("See https://", "Config search path:", "provider=")

#: How OmegaConf calls types of numbers, and how a user does.
_TYPES = {"Integer": "a whole number", "Float": "a number"}


def compose(schema: type[Schema], overrides: Sequence[str], file: str | None = None) -> Schema:
    """Compose the checked settings of a command from ``conf/`` and Hydra overrides.

    `file` is the primary file without ``.yaml``, by default the command's. Raises `UserError` if an
    override names nothing or does not fit its type, a value is out of its range, or two do not fit
    together.
    """
    given = tuple(literal_paths(schema, overrides))
    composition = composed(schema, given, file or schema.file)  # type: ignore[arg-type]
    # Resolvers that are evaluated once for each composition, such as the time.
    OmegaConf.clear_cache(composition)
    return parse(schema, composition)


@lru_cache(maxsize=64)
def composed(schema: type[Settings], overrides: tuple[str, ...], file: str) -> DictConfig:
    """Compose as `compose`, without checking ranges and required values.

    It takes a fifth of a second, and a client has the same settings in every round.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(schema.folder, version_base=None):
            return hydra_compose(file, list(overrides))
    except CompositionErrors as error:
        raise UserError(explain(error, schema)) from error


def parse(schema: type[Schema], composition: DictConfig) -> Schema:
    """Turn a composition into checked settings; raises `UserError` as `compose` does."""
    try:
        settings = cast(Schema, OmegaConf.to_object(composition))
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from error
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raise `UserError` for the first value out of its range, or that does not fit another."""
    check_ranges(settings)
    settings.check()


def config_of_run(settings: Mapping[str, object]) -> Config:
    """Compose the configuration from the run-config strings of ``flwr run``.

    They are ``config-name``, and ``overrides`` separated by spaces, quoted as in a shell. Raises
    `UserError` as `compose` does, or if the quotes do not match.
    """
    try:
        overrides = shlex.split(str(settings["overrides"]))
    except ValueError as error:
        raise UserError(f"overrides={settings['overrides']!r}: {error}") from error
    return compose(Config, overrides, str(settings["config-name"]))


def config_of_settings(settings: Mapping[str, object]) -> Config:
    """Build the configuration of a run from its ``config.yaml``.

    Raises
    ------
    UserError
        If it holds settings that this release does not have, or a value of the wrong type.
    """
    plain = OmegaConf.create(escaped(dict(settings)))
    config = Config()
    for group in ("dataset", "partition"):
        if kind := KINDS.get(f"{group}={plain.get(group, {}).get('name')}"):
            setattr(config, group, kind())
    try:
        typed = _open_maps(OmegaConf.structured(config))
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(typed, plain)))
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error


def _open_maps(node: DictConfig) -> DictConfig:
    """Let the maps of a typed configuration take any key: modalities are the user's words."""
    for key in node:
        below = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(below, DictConfig) and is_dataclass(OmegaConf.get_type(below)):
            _open_maps(below)
        elif isinstance(below, DictConfig):
            OmegaConf.set_struct(below, False)
    return node


def _register_schemas() -> None:
    """Put all schemas into Hydra's ConfigStore under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    for schema in SCHEMAS:
        store.store(name=f"{schema.file}_schema", node=_open_maps(OmegaConf.structured(schema)))
    # Outside their group: in it, Hydra would take the `dataset=…` of utmp-evaluate for a choice.
    for choice, kind in {**KINDS, "=partition": PartitionConfig}.items():
        store.store(name=f"{choice.partition('=')[2]}_schema", node=kind)


_register_schemas()


def explain(error: Exception, schema: type = Config) -> str:
    """Say in one line what Hydra or OmegaConf refused, with the values that are allowed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, cause = lines[0], error.__cause__
    if isinstance(error, OverrideParseException):
        quoted = """, and a value with special characters in quotes, as in 'NAME="VALUE"'"""
        needed = quoted if "=" in error.override else ""
        return f"cannot read the override {error.override}: expected NAME=VALUE{needed}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is required; give it as {error.full_key}=…"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = ", ".join(error.options)
        return f"{group}={choice}: there is no such {group}; there are {choices}"
    if sweep := re.match(r"(?:Ambiguous value .*|Sweep parameters) '((.*?)=(.*))'", first):
        return (
            f"{sweep[1]}: several values need --multirun, which makes one run for each; a list is "
            f"'{sweep[2]}=[{sweep[3]}]'"
        )
    if unknown := re.match(r"Could not override '(.*)'", first):
        return _explain_unknown(unknown[1], schema)
    if there := re.match(r".* An item is already at '(.*?)'|Multiple values for (.*?)\. ", first):
        return f"{there[1] or there[2]} is a setting already; give it without +"
    if unfit := re.match(r"(?s)In '(.*?)': ConfigKeyError .* full_key: ((\w+)\S*)", str(error)):
        file, name, group = unfit.groups()
        return f"{file} sets {name}, which the chosen {group} does not have; give one of the two"
    if "Config group override" in first:
        return "a group, such as strategy, takes the name of a choice, as in strategy=fedavg"
    if isinstance(cause, OmegaConfBaseException):
        return f"{first.removeprefix('Error merging override ')}: {_explain_value(cause)}"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_explain_value(error)}" if error.full_key else first
    return "; ".join(line for line in lines if not line.startswith(_NO_HINT))


def _explain_value(error: OmegaConfBaseException) -> str:
    """Say why a value does not fit its setting, and what is expected."""
    first = str(error).splitlines()[0]
    name = error.full_key
    if "is not a valid bool" in first:
        return f"{first}; expected true or false"
    if wrong := re.match(r"Value '.*' of type '\w+' could not be converted to (\w+)", first):
        return f"{first}; expected {_TYPES[wrong[1]]}" if wrong[1] in _TYPES else first
    if unknown := re.match("Interpolation key '(.*)' not found", first):
        return f"there is no setting {unknown[1]!r} to take the value from"
    if "is not a ListConfig" in first:
        return f"expected a list, as in '{name}=[a]' or '{name}=[a,b]'"
    if re.match(r"Cannot (assign|merge) .*Dict", first):
        return f"expected a value for each name, as in {name}.NAME=…"
    return first


def _explain_unknown(name: str, schema: type) -> str:
    names, owners = set(_names_below(OmegaConf.structured(schema))), dict[str, list[str]]()
    groups = {item.name for item in fields(schema) if is_dataclass(item.type)}
    for choice, kind in KINDS.items():
        if (group := choice.partition("=")[0]) in groups:
            for own in {f"{group}.{item.name}" for item in fields(kind)} - names:
                owners.setdefault(own, []).append(choice)
    if name in owners:
        return f"{name} is a setting of {' or '.join(owners[name])}; give that too"
    near = difflib.get_close_matches(name, sorted(names | owners.keys()), n=3)
    return str(unknown_setting(name, f"; did you mean {' or '.join(near)}?" if near else ""))


def _names_below(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _names_below(node[key], f"{prefix}{key}.")
