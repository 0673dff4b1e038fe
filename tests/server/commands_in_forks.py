"""All commands, loaded in one process that forks for each command line, without root's powers.

Training and serving end where they would begin; ONNX files, pictures and reports are empty: what is
tested is what comes before.
"""

import contextlib
import ctypes
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from forked_command import ENVIRONMENT, Answer, ForkedCommand, forked_command
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource as Resources,
)
from hydra._internal.hydra import Hydra

import server.app
import server.credentials.console
import server.export.files
import server.prediction.evaluation
import server.preparation.console
import server.report.page
import server.runtimes.local
import server.service.app
import server.service.examples
import server.service.listening
from common.data.formats.registry import check_format
from server.report.panels import Section

LOADS = """
import h5py, onnx, pyarrow.csv, pyarrow.parquet
import commands_in_forks

main = commands_in_forks.loaded()
commands_in_forks.obey_permissions()
"""

NAMES = [
    "compose",
    "credentials",
    "evaluate",
    "export",
    "predict",
    "prepare",
    "report",
    "serve",
    "train",
]

#: Of capset(2): version 3, and the two capabilities by which root reads and writes every file.
_VERSION, _DAC_OVERRIDE, _DAC_READ_SEARCH = 0x20080522, 1 << 1, 1 << 2


def obey_permissions() -> None:
    """Let files that nobody may read be unreadable in this process, though it may be root's."""
    system = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of two words
    if system.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~(_DAC_OVERRIDE | _DAC_READ_SEARCH)
    if system.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def leave_out_work(patch: Callable[[Any, str, Any], object] = setattr) -> None:
    """Leave out what takes long and is not tested; `patch` sets an attribute to a value."""
    patch(server.runtimes.local, "run_locally", lambda run: print("would train"))
    patch(server.service.listening, "run", lambda *_: print("would serve"))
    nothing = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))
    patch(server.export.files, "subset_graph", lambda *_: nothing)
    patch(server.export.files, "largest_difference", lambda *_: 0.0)
    patch(server.preparation.console, "partition_plot", lambda manifest: b"")
    for name in ("evaluate_rules", "evaluate_subsets"):
        patch(server.prediction.evaluation, name, lambda *_: {"nothing": {"corr": 0.0}})
    patch(server.prediction.evaluation, "diagnose", lambda *_: {"multimodal": {}})
    section = Section("nothing", "Nothing")
    patch(server.report.page, "group_sections", lambda report: [section] * len(report.groups))
    patch(server.report.page, "runs_section", lambda *_: section)
    # Which would compose all settings a second time, to find ``hydra.mode``.
    patch(Hydra, "get_mode", lambda *_, **__: None)
    patch(Resources, "load_config", _load_once)


_load = Resources.load_config
_files: dict[tuple[str, str], Any] = {}


def _load_once(source: Resources, config_path: str) -> Any:
    """Load a YAML file of settings, which is the same for each command."""
    if (source.path, config_path) not in _files:
        _files[source.path, config_path] = _load(source, config_path)
    return deepcopy(_files[source.path, config_path])


def mains() -> dict[str, Callable[[], None]]:
    """Return each command's function by its name."""
    return {
        f"utmp-{name}": importlib.import_module(f"server.commands.{name}").main for name in NAMES
    }


def loaded() -> Callable[[], None]:
    """Load everything that forks need; returns what runs the command of ``sys.argv``."""
    torch.set_num_threads(1)
    check_format("auto")
    leave_out_work()
    commands = mains()
    for name in ("utmp-prepare", "utmp-predict"):
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            sys.argv = [name]  # which lacks what it needs, and fills the caches of Hydra
            commands[name]()
    return lambda: commands[sys.argv[0]]()


@dataclass
class Commands:
    """Runs any command in a folder."""

    socket: str
    folder: Path
    streams: Path

    def __call__(self, command: str, *arguments: str) -> Answer:
        return ForkedCommand(command, self.socket).run(self.folder, self.streams, *arguments)

    def pasted(self, line: str) -> list[str]:
        """Return the words that a shell makes of a line, whose first one is a command."""
        command = self.streams / line.split()[0]
        command.write_text("""#!/bin/sh\nprintf '%s\\0' "${0##*/}" "$@"\n""")
        command.chmod(0o755)
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env={"PATH": f"{self.streams}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        return done.stdout.split("\0")[:-1]


@dataclass
class CommandsHere(Commands):
    """Runs any command in this process, which is faster; a fork can lose more of its rights."""

    def __call__(self, command: str, *arguments: str) -> Answer:
        stdout, stderr, status = io.StringIO(), io.StringIO(), 0
        with (
            patch.dict(os.environ, ENVIRONMENT),
            patch.object(sys, "argv", [command, *arguments]),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            try:
                mains()[command]()
            except SystemExit as ended:
                status = int(ended.code or 0)
        return Answer(status, stdout.getvalue(), stderr.getvalue())


@contextmanager
def all_commands() -> Iterator[str]:
    """Load all commands; yields the socket for `Commands`."""
    with forked_command("utmp", LOADS) as command:
        yield command.path
