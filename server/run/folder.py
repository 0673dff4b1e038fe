"""What a run leaves on disk.

``config.yaml`` resolved; ``rounds.jsonl``, one object a round; ``checkpoints/``; ``summary.json``;
the model with all that is needed to rebuild it, and with ``checkpoint.deliver=best`` that of the
last round; what trackers leave, see `server.tracking`. Files appear complete or not at all. A run
locks ``rounds.jsonl`` while it lasts.
"""

import fcntl
import json
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.atomic import atomic_file
from common.config import Config, config_of_settings, escaped, setting
from common.errors import UserError, parsed_as, reason
from common.task import Task
from server.records import RoundRecord

CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
SUMMARY = "summary.json"
MODEL = "model.safetensors"
LAST = "last.safetensors"
FLOWER_LOG = "flower.log"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
TRACKING = "tracking.json"

#: How long an interrupted process may take to let go of its run.
LOCK_SECONDS = 60.0

#: Settings in which a resumed run may differ from the interrupted one.
FREE = ("rounds", "patience", "runtime", "checkpoint", "tracking", "console", "run_dir", "resume")


class RunFolder:
    """The folder of a new run; made if it is not there.

    Raises `UserError` if it holds a run already, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold(os.O_CREAT | os.O_EXCL, wait=0.0)
        except FileExistsError as error:
            if not self.path.is_dir():
                raise UserError(f"run_dir {self.path} cannot be written: not a folder") from error
            raise UserError(
                f"{self.path} holds a run already; choose another with run_dir=…, or go on with "
                f"{setting('resume', self.path)}"
            ) from error
        except OSError as error:
            raise UserError(f"run_dir {self.path} cannot be written: {reason(error)}") from error

    @classmethod
    def reopen(cls, path: str | Path, wait: float = LOCK_SECONDS) -> "RunFolder":
        """Open the folder of an interrupted run, whose process may take `wait` seconds to end.

        Raises `UserError` if it holds no such run, or another process still has it.
        """
        folder = cls.__new__(cls)
        folder.path = cls.config_of(path).parent
        try:
            # A run that ended before its first round has removed its list of rounds.
            folder._hold(os.O_CREAT, wait)
        except OSError as error:
            raise UserError(f"resume={path} cannot be written: {reason(error)}") from error
        return folder

    @staticmethod
    def config_of(path: str | Path) -> Path:
        """Return where the configuration of a run is; raise `UserError` if there is no run."""
        config = Path(path).absolute() / CONFIG
        if not config.is_file():
            raise UserError(f"resume={path}: no run there, which is a folder with {CONFIG}")
        return config

    def _hold(self, flags: int, wait: float) -> None:
        """Open the list of rounds and lock it as long as this object lives."""
        held = os.open(self.path / ROUNDS, os.O_RDWR | flags, 0o666)
        self.close = weakref.finalize(self, os.close, held)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    self.close()
                    raise UserError(
                        f"{self.path}: another process is writing this run; wait until it ends"
                    ) from error
                time.sleep(0.2)

    def read_rounds(self, count: int, task: Task) -> list[RoundRecord]:
        """Read the first rounds; raise `UserError` if they are not all there."""
        path = self.path / ROUNDS
        try:
            read = (RoundRecord(**json.loads(line)) for line in self._lines(count))
            records = [parsed_as(RoundRecord, vars(record)) for record in read]
            if [record.round for record in records] != list(range(1, count + 1)):
                raise ValueError(f"expected rounds 1 to {count}")
            for record in records:
                record.check_scores(records[0].validation, task)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        return records

    def keep_rounds(self, count: int) -> None:
        """Remove what comes after the first rounds, and what a finished run leaves beside them."""
        for name in (SUMMARY, LAST):
            (self.path / name).unlink(missing_ok=True)
        os.truncate(self.path / ROUNDS, sum(map(len, self._lines(count))))

    def _lines(self, count: int) -> list[bytes]:
        return (self.path / ROUNDS).read_bytes().splitlines(keepends=True)[:count]

    def release(self) -> None:
        """Give up the folder of a run that ended before its first round."""
        (self.path / ROUNDS).unlink(missing_ok=True)

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Append one round, and sync it to disk.

        Raises `UserError` if it cannot be written; the file stays as it was.
        """
        path = self.path / ROUNDS
        size = path.stat().st_size
        try:
            with path.open("ab") as file:
                file.write((json.dumps(record) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(path, size)
            raise UserError(f"{path} cannot be written: {reason(error)}") from error

    def write_config(self, config: Config) -> None:
        """Write the configuration, resolved."""
        self.write(
            CONFIG, OmegaConf.to_yaml(OmegaConf.create(escaped(plain_settings(config)))).encode()
        )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        self.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears complete or not at all; raise `UserError` if it cannot be."""
        path = self.path / name
        try:
            with atomic_file(path) as aside:
                aside.write_bytes(content)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {reason(error)}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Read a ``config.yaml`` as plain data; raise `UserError` if it is damaged."""
    try:
        settings = OmegaConf.to_container(OmegaConf.create(path.read_text()), resolve=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is damaged: expected settings")
    return {str(key): value for key, value in settings.items()}


def read_group(path: Path, name: str) -> dict[str, Any]:
    """Read one group of a ``config.yaml``, empty without it; raise `UserError` if it is damaged."""
    group = read_settings(path).get(name) or {}
    if not isinstance(group, dict):
        raise UserError(f"{path} is damaged: expected settings of {name}, not {group}")
    return group


def flat_settings(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted names and values, as one would give them on a command line."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


# Resume -----------------------------------------------------------------------------------------


def resumed_config(path: Path, composed: Config, given: Sequence[str] | None) -> Config:
    """Return the interrupted run's settings, with those of `FREE` that this command gives.

    `path` is the run's ``config.yaml``, `composed` the settings of this command, and `given` its
    overrides, which alone count; None: every setting counts, as where sites must compose the same
    configuration. Raises `UserError` for a setting that counts and is not the run's, or one in the
    file that cannot be used.
    """
    stored, asked = plain_settings(read_config(path)), plain_settings(composed)
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
    single = ("rounds", "patience", "console")
    stored |= {name: asked[name] for name in single if _is_given(name, given)}
    return config_of_settings(stored | {"resume": composed.resume})


def read_config(path: Path) -> Config:
    """Read a ``config.yaml``; raise `UserError` if it is damaged, or a setting cannot be used."""
    settings = read_settings(path)
    try:
        config = config_of_settings(settings)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    last = fields(Config)[-1].name
    if last not in settings:  # defaults would take the place of what is lost
        raise UserError(f"{path} is damaged: it ends before {last}; copy it again")
    return config


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
