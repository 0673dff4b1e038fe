"""Command lines of a command whose libraries are loaded once.

Each would load them anew, for seconds; here one process loads them and forks for each.
"""

import json
import os
import re
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ENVIRONMENT = os.environ | {"COLUMNS": "160"}


def become(
    main: Callable[[], object], argv: list[str], folder: str, outputs: Sequence[int]
) -> NoReturn:
    """Run a command in this fork as its own process would, with these outputs, and end."""
    os.chdir(folder)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
    sys.argv = argv
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(main: Callable[[], object]) -> NoReturn:
    """Fork for each order on standard input; print the fork's number, then its status at its end.

    An order is an object with "argv", "folder" and the other arguments of `ForkedCommand.start`.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            outputs = [os.open(order[name], flags) for name in ("stdout", "stderr")]
            sys.modules |= dict.fromkeys(order["missing"])
            if order["largest_file"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
            become(main, order["argv"], order["folder"], outputs)
        print(child, flush=True)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)
    os._exit(0)


@dataclass
class Answer:
    """What a command left."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a mistake of the user, without ``error: ``."""
        assert "Traceback" not in self.stderr
        assert re.fullmatch(r"error: [^\n]+\n", self.stderr), self.stderr
        assert self.status == 2
        assert self.stdout == ""
        return self.stderr.removeprefix("error: ").rstrip("\n")

    @property
    def shown(self) -> str:
        """What a command that went well printed."""
        assert (self.status, self.stderr) == (0, "")
        return self.stdout


#: Runs a command line: its arguments, and `missing` and `largest_file` of `ForkedCommand.start`.
Run = Callable[..., Answer]


def run_alone(folder: Path, command: str, *arguments: str) -> Answer:
    """Run the installed command in a process of its own."""
    done = subprocess.run(
        [Path(sys.executable).with_name(command), *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def rows_of(printed: str) -> list[list[str]]:
    """Return the cells of each row of the tables that were printed."""
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in printed.splitlines()
        if line[:1] in ("│", "┃")
    ]


class ForkedCommand:
    """A process that has a command loaded, by the name of the command, ``sys.argv[0]``."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.name = name
        self._orders, self._answers = process.stdin, process.stdout
        assert self._answers.readline() == "ready\n"

    def start(
        self,
        folder: Path,
        streams: Path,
        *arguments: str,
        missing: Sequence[str] = (),
        largest_file: int = 0,
    ) -> int:
        """Start a command line in `folder` and return the number of its process.

        What it prints is kept in `streams`. It cannot import the modules `missing`, nor write more
        than `largest_file` bytes into one file; 0 for no limit.
        """
        self._files = {name: str(streams / name) for name in ("stdout", "stderr")}
        order: dict[str, Any] = {"argv": [self.name, *arguments], "folder": str(folder)}
        order |= {"missing": missing, "largest_file": largest_file, **self._files}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        return int(self._answers.readline())

    def end(self) -> Answer:
        """Wait until the process that was started has ended."""
        status = int(self._answers.readline())
        stdout, stderr = (Path(path).read_text() for path in self._files.values())
        return Answer(status, stdout, stderr)

    def run(self, *arguments: Any, **limits: Any) -> Answer:
        """Run a command line to its end; arguments as for `start`."""
        self.start(*arguments, **limits)
        return self.end()


@contextmanager
def forked_command(name: str, loads: str) -> Iterator[ForkedCommand]:
    """Load a command; `loads` is Python code that ends with its function in ``main``."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{loads}\nimport forked_command\nforked_command.serve(main)"],
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield ForkedCommand(name, process)
        assert process.stdin is not None
        process.stdin.close()
