"""All commands, loaded in one process that forks for each command line, without root's powers.

Training and serving end where they would begin; ONNX files, pictures and reports are empty: what is
tested is what comes before.
"""

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forked_command import Answer, ForkedCommand, forked_command

LOADS = """
import importlib, sys
import h5py, onnx, pyarrow.csv, pyarrow.parquet, torch
import server.app, server.credentials.console, server.export.files, server.prediction.evaluation
import server.preparation.console, server.report.page, server.runtimes.local
import server.service.app, server.service.examples, server.service.listening
import common.data.formats.registry, commands_in_forks

torch.set_num_threads(1)
common.data.formats.registry.check_format("auto")
server.runtimes.local.run_locally = lambda run: print("would train")
server.service.listening.run = lambda *_: print("would serve")
nothing = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))
server.export.files.subset_graph = lambda *_: nothing
server.export.files.largest_difference = lambda *_: 0.0
server.preparation.console.partition_plot = lambda manifest: b""
section = server.report.panels.Section("nothing", "Nothing")
server.report.page.group_sections = lambda report: [section] * len(report.groups)
server.report.page.runs_section = lambda *_: section
names = "compose credentials evaluate export predict prepare report serve train".split()
mains = {f"utmp-{name}": importlib.import_module(f"server.commands.{name}").main for name in names}
commands_in_forks.obey_permissions()

def main():
    mains[sys.argv[0]]()
"""

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


@contextmanager
def all_commands() -> Iterator[str]:
    """Load all commands; yields the socket for `Commands`."""
    with forked_command("utmp", LOADS) as command:
        yield command.path
