"""From ``conf/`` and overrides to checked settings, or one line that says what is wrong."""

import difflib
import itertools
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
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.config.commands import ComposeConfig, CredentialsConfig, PrepareConfig, ReportConfig
from common.config.dataset import KINDS, PartitionConfig
from common.config.ranges import Settings, check_ranges
from common.config.schema import Config
from common.config.trained import EvaluateConfig, ExportConfig, PredictConfig, ServeConfig
from common.errors import UserError

Schema = TypeVar("Schema", bound=Settings)

#: The schema of every command.
SCHEMAS: tuple[type[Settings], ...] = (
    Config,
    *(ComposeConfig, CredentialsConfig, PrepareConfig, ReportConfig),
    *(EvaluateConfig, ExportConfig, PredictConfig, ServeConfig),
)


def compose(schema: type[Schema], overrides: Sequence[str], file: str | None = None) -> Schema:
    """Compose the checked settings of a command from ``conf/`` and Hydra overrides.

    `file` is the primary file without ``.yaml``, by default the command's.

    Raises
    ------
    UserError
        If an override names nothing or does not fit its type, a value is out of its range, or
        two do not fit together.
    """
    return parse(schema, composed(schema, overrides, file))


def composed(
    schema: type[Settings], overrides: Sequence[str], file: str | None = None
) -> DictConfig:
    """Compose as `compose`, without checking ranges and required values."""
    try:
        composition = _compose_once(file or schema.file, tuple(overrides), schema.folder)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, schema)) from error
    # Resolvers that are evaluated once for each composition, such as the time.
    OmegaConf.clear_cache(composition)
    return composition


@lru_cache(maxsize=64)
def _compose_once(file: str, overrides: tuple[str, ...], folder: str) -> DictConfig:
    """Compose: a fifth of a second, and a client has the same settings in every round."""
    GlobalHydra.instance().clear()
    with initialize_config_module(folder, version_base=None):
        return hydra_compose(file, list(overrides))


def parse(schema: type[Schema], composition: DictConfig) -> Schema:
    """Turn a composition into checked settings; raises `UserError` as `compose` does."""
    try:
        settings = cast(Schema, OmegaConf.to_object(composition))
        _refuse_unknown(composition)
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
    plain = OmegaConf.create(dict(settings))
    config = Config()
    for group in ("dataset", "partition"):
        if kind := KINDS.get(f"{group}={plain.get(group, {}).get('name')}"):
            setattr(config, group, kind())
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(_structured(config), plain)))
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}{explain(error)}") from error


def _structured(schema: object) -> DictConfig:
    """Return a typed configuration whose maps take any key: modalities are the user's words."""
    node = cast(DictConfig, OmegaConf.structured(schema))
    for inner in _groups(node):
        for key in inner:
            below = None if OmegaConf.is_missing(inner, key) else inner[key]
            if isinstance(below, DictConfig) and not is_dataclass(OmegaConf.get_type(below)):
                OmegaConf.set_struct(below, False)
    return node


def _groups(node: DictConfig) -> Iterator[DictConfig]:
    """Yield a typed configuration and those below it."""
    yield node
    for key in node:
        below = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(below, DictConfig) and is_dataclass(OmegaConf.get_type(below)):
            yield from _groups(below)


def _register_schemas() -> None:
    """Put all schemas into Hydra's ConfigStore under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    for schema in SCHEMAS:
        store.store(name=f"{schema.file}_schema", node=_structured(schema))
    # Outside their group: in it, Hydra would take the `dataset=…` of utmp-evaluate for a choice.
    for choice, kind in {**KINDS, "=partition": PartitionConfig}.items():
        store.store(name=f"{choice.partition('=')[2]}_schema", node=kind)


_register_schemas()


def _refuse_unknown(node: DictConfig, prefix: str = "") -> None:
    """Refuse settings that ``+name=value`` added."""
    schema = OmegaConf.get_type(node)
    if not is_dataclass(schema):
        return
    for key in map(str, node):
        if key not in {item.name for item in fields(schema)}:
            raise UserError(f"there is no setting {prefix + key!r} (--cfg job prints them all)")
        if isinstance(node[key], DictConfig):
            _refuse_unknown(node[key], f"{prefix}{key}.")


def explain(error: Exception, schema: type = Config) -> str:
    """Say in one line what Hydra or OmegaConf refused, with the values that are allowed."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override}: {first}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is required; give it as {error.full_key}=…"
    if missing := re.match(r"In '.*': Could not find '(\w+)/(.*)'", first):
        # Hydra lists them below "Available options", up to its search path.
        names = itertools.takewhile(lambda line: "search path:" not in line, others[1:])
        choices = ", ".join(name for name in names if not name.endswith("_schema"))
        group, choice = missing.groups()
        return f"{group}={choice}: there is no such {group}; there are {choices}"
    if unknown := re.match(r"Could not override '(.*)'", first):
        return _explain_unknown(unknown[1], schema)
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


def _explain_unknown(name: str, schema: type) -> str:
    owners = dict.fromkeys(_names_below(OmegaConf.structured(schema)), "")
    groups = {item.name for item in fields(schema) if is_dataclass(item.type)}
    for choice, kind in KINDS.items():
        if (group := choice.partition("=")[0]) in groups:
            for item in fields(kind):
                owners.setdefault(f"{group}.{item.name}", choice)
    if owners.get(name):
        return f"{name} is a setting of {owners[name]}; give that too"
    near = difflib.get_close_matches(name, owners, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no setting {name!r}{hint} (--cfg job prints them all)"


def _names_below(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _names_below(node[key], f"{prefix}{key}.")
