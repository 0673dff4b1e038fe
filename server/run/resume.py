"""Which settings a resumed run has, and which must be as they were."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config import Config, config_of_settings
from common.errors import UserError
from server.run.folder import flat_settings, read_settings

#: What may differ from the interrupted run.
FREE = ("rounds", "runtime", "checkpoint", "tracking", "console", "run_dir", "resume")


def resumed_config(path: Path, composed: Config, given: Sequence[str] | None) -> Config:
    """Return the interrupted run's settings, with those of `FREE` that this command gives.

    `path` is the run's ``config.yaml``, `composed` the settings of this command, and `given` its
    overrides, which alone count; None: every setting counts, as where sites must compose the same
    configuration. Raises `UserError` for a setting that counts and is not the run's, or one in the
    file that cannot be used.
    """
    stored, asked = plain_settings(_read_config(path)), plain_settings(composed)
    here, there = flat_settings(asked), flat_settings(stored)
    # A choice from a group is named before its consequences.
    for name in sorted(
        here.keys() | there.keys(), key=lambda name: (not name.endswith(".name"), name)
    ):
        value = here.get(name, "nothing")
        # The run's own record says what the data are, where the command left it to them.
        left_open = name == "dataset.task" and value == "null"
        if not _is_given(name, given) or name.partition(".")[0] in FREE or left_open:
            continue
        if value != there.get(name):
            raise UserError(
                f"resume={composed.resume}: {name} is {there.get(name, 'not set')} in that run and "
                f"{value} here; leave it out, or start a new run"
            )
    for group in ("runtime", "checkpoint", "tracking"):
        own = asked[group].items()
        stored[group] |= {key: v for key, v in own if _is_given(f"{group}.{key}", given)}
    stored |= {name: asked[name] for name in ("rounds", "console") if _is_given(name, given)}
    return config_of_settings(stored | {"resume": composed.resume})


def _read_config(path: Path) -> Config:
    settings = read_settings(path)
    try:
        return config_of_settings(settings)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def plain_settings(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data; OmegaConf takes a hundred times as long."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _is_given(name: str, given: Sequence[str] | None) -> bool:
    """Whether an override sets a name: itself, its group, or all by an experiment."""
    if given is None:
        return True
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in given]
    return any(
        key == "experiment" or f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")
        for key in keys
    )
