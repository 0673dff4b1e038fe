"""What every command has in common: Hydra, one-line errors, exit statuses.

Exit status 0 for success, 2 for a mistake of the user, 128 and its number for a signal. Commands
import libraries in their functions, so that --help and a mistyped setting answer at once.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from common.config import (
    CompositionErrors,
    Config,
    Settings,
    explain,
    literal_paths,
    parse,
    with_dataset_kind,
)
from common.errors import UserError, file_error, printable
from server.commands.help import help_text
from server.run.interruption import InterruptedRunError

Schema = TypeVar("Schema", bound=Settings)

#: Letters of the name of a job's folder, at most.
_LONGEST = 120


def hydra_command(
    schema: type[Schema], after_sweep: Callable[[list[Any]], None] = lambda _: None
) -> Callable[[Callable[[Schema], Any]], Callable[[], None]]:
    """Turn a function of checked settings into a command; the schema names its YAML file.

    `after_sweep` takes what the function returned for each job of a ``--multirun``.
    """

    def decorate(task: Callable[[Schema], Any]) -> Callable[[], None]:
        returned: list[Any] = []

        def guarded(composition: DictConfig) -> None:
            try:
                returned.append(task(parse(schema, composition)))
            except InterruptedRunError as error:
                sys.exit(error.status)
            except UserError as error:
                # Not an exception to Hydra, which would print a traceback of its own.
                fail(str(error))
            except OSError as error:
                fail(file_error(error))

        def command() -> None:
            returned.clear()
            sys.argv[1:] = read_arguments(schema, sys.argv[1:])
            # Hydra then raises instead of printing several lines and exiting with 1.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            folder = f"pkg://{schema.folder}"
            run = hydra.main(version_base=None, config_path=folder, config_name=schema.file)
            try:
                run(guarded)()
                if len(returned) > 1:
                    after_sweep(returned)
            except CompositionErrors as error:
                if isinstance(error, ValueError) and "Config group override" not in str(error):
                    raise
                fail(explain(error, schema))
            except UserError as error:
                fail(str(error))
            except OSError as error:
                fail(file_error(error))
            except KeyboardInterrupt:
                sys.exit(128 + signal.SIGINT)

        return command

    return decorate


def read_arguments(schema: type[Settings], arguments: list[str]) -> list[str]:
    """Return a command line as Hydra is to read it, or end with one line for a mistake in it."""
    options = get_args_parser()
    options.error = fail  # type: ignore[method-assign]
    known, unknown = options.parse_known_args(arguments)
    if unknown:
        fail(f"there is no option {unknown[0]}; settings are given as NAME=VALUE, without --")
    if known.help:
        print(help_text(schema))
        sys.exit(0)
    try:
        literal = literal_paths(schema, arguments, sweeping=known.multirun)
        if schema is not Config:
            return literal
        return with_dataset_kind(literal, lambda path: (Path(path) / "manifest.json").is_file())
    except UserError as error:
        fail(str(error))


def run_folder(config: Config) -> Path:
    """Return where a run goes: ``run_dir``, and in a sweep a folder there, named by overrides."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode is not RunMode.MULTIRUN:
        return Path(config.run_dir)
    name = ",".join(swept_overrides())
    plain = re.sub(r"[^\w.,=+-]+", "_", name)[:_LONGEST]
    # A name that is not whole may be another job's, too.
    return Path(config.run_dir) / (plain if plain == name else f"{hydra_config.job.num}-{plain}")


def swept_overrides() -> list[str]:
    """Return the overrides of this job of a sweep that have several values in the sweep."""
    hydra_config = HydraConfig.get()
    params = getattr(hydra_config.sweeper, "params", None) or {}
    keys = {str(key) for key in params}
    parser = OverridesParser.create()
    for argument in sys.argv[1:]:
        if "=" in argument and not argument.startswith("-"):
            override = parser.parse_override(argument)
            if override.is_sweep_override():
                keys.add(override.get_key_element())
    given = [each.lstrip("+") for each in hydra_config.overrides.task]
    return [each for each in given if each.partition("=")[0] in keys]


def given_overrides() -> list[str]:
    """Return the overrides that were typed."""
    return list(HydraConfig.get().overrides.task)


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2."""
    print("error:", printable(message), file=sys.stderr)
    sys.exit(2)
