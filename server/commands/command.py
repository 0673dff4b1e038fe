"""What every command has in common: Hydra, one-line errors, exit statuses.

Exit status 0 for success, 2 for a mistake of the user, 128 and its number for a signal. Commands
import libraries in their functions, so that --help and a mistyped setting answer at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from common.config import Config, Settings, explain, parse
from common.errors import UserError
from server.run.interruption import InterruptedRunError

Schema = TypeVar("Schema", bound=Settings)

_list_group = ConfigLoaderImpl.get_group_options


def hydra_command(
    schema: type[Schema],
) -> Callable[[Callable[[Schema], None]], Callable[[], None]]:
    """Turn a function of checked settings into a command; the schema names its YAML file."""

    def decorate(task: Callable[[Schema], None]) -> Callable[[], None]:
        def guarded(composition: DictConfig) -> None:
            try:
                task(parse(schema, composition))
            except InterruptedRunError as error:
                sys.exit(error.status)
            except UserError as error:
                # Not an exception to Hydra, which would print a traceback of its own.
                fail(str(error))

        def command() -> None:
            # Hydra then raises instead of printing several lines and exiting with 1.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            ConfigLoaderImpl.get_group_options = list_group  # type: ignore[method-assign,assignment]
            folder = f"pkg://{schema.folder}"
            run = hydra.main(version_base=None, config_path=folder, config_name=schema.file)
            try:
                run(guarded)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, schema))
            except KeyboardInterrupt:
                sys.exit(128 + signal.SIGINT)

        return command

    return decorate


def list_group(
    loader: ConfigLoaderImpl,
    group_name: str,
    results_filter: ObjectType | None = ObjectType.CONFIG,
    **search: Any,
) -> list[str]:
    """List a group as Hydra does, which copies all of its sources for it first.

    ``--help`` lists a hundred groups, and took three seconds for it. The copies serve overrides of
    the search path alone.
    """
    if search.get("overrides"):
        return _list_group(loader, group_name, results_filter, **search)
    return loader.repository.get_group_options(group_name, results_filter)


def run_folder(config: Config) -> Path:
    """Return where a run goes: ``run_dir``, and in a sweep a numbered folder for each job."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        return Path(config.run_dir) / str(hydra_config.job.num)
    return Path(config.run_dir)


def given_overrides() -> list[str]:
    """Return the overrides that were typed."""
    return list(HydraConfig.get().overrides.task)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2."""
    print("error:", *message.split(), file=sys.stderr)
    sys.exit(2)
