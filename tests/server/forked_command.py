"""Command lines of a command whose libraries are loaded once.

Each would load them anew, for seconds; here one process loads them and forks for each.
"""

import gc
import json
import os
import re
import resource
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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


def serve(main: Callable[[], object], path: str) -> NoReturn:
    """Fork for each `Fork` that connects to the socket at a path, one at a time."""
    gc.freeze()  # or each fork, which collects, would copy all that is loaded
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            line, _ = listener.accept()
            with line:
                content, outputs, _, _ = socket.recv_fds(line, 1 << 20, 2)
                order = json.loads(content)
                child = os.fork()
                if child == 0:
                    sys.modules |= dict.fromkeys(order["missing"])
                    if order["largest_file"]:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
                    become(main, order["argv"], order["folder"], outputs)
                for each in outputs:
                    os.close(each)
                line.sendall(f"{child}\n".encode())
                _, ended = os.waitpid(child, 0)
                line.sendall(f"{os.waitstatus_to_exitcode(ended)}\n".encode())


class Fork:
    """A command line in a fork of the process that serves at a path.

    It cannot import the modules `missing`, nor write more than `largest_file` bytes into one file;
    0 for no limit. `outputs` are the descriptors of its standard output and error.
    """

    def __init__(
        self,
        path: str,
        argv: Sequence[str],
        folder: Path,
        outputs: Sequence[int],
        missing: Sequence[str] = (),
        largest_file: int = 0,
    ) -> None:
        order = {"argv": argv, "folder": str(folder)}
        order |= {"missing": missing, "largest_file": largest_file}
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            socket.send_fds(line, [json.dumps(order).encode()], outputs)
            self._answers = line.makefile()
        self.number = int(self._answers.readline())

    def end(self) -> int:
        """Wait until it has ended; return its status."""
        with self._answers:
            return int(self._answers.readline())


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


#: Runs a command line: its arguments, and `missing` and `largest_file` of `Fork`.
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

    def __init__(self, name: str, path: str) -> None:
        self.name, self.path = name, path

    def start(self, folder: Path, streams: Path, *arguments: str, **limits: Any) -> int:
        """Start a command line in `folder` and return the number of its process.

        What it prints is kept in `streams`; limits are those of `Fork`.
        """
        self._files = [streams / name for name in ("stdout", "stderr")]
        with self._files[0].open("wb") as stdout, self._files[1].open("wb") as stderr:
            outputs = [stdout.fileno(), stderr.fileno()]
            self._fork = Fork(self.path, [self.name, *arguments], folder, outputs, **limits)
        return self._fork.number

    def end(self) -> Answer:
        """Wait until the process that was started has ended."""
        return Answer(self._fork.end(), *(path.read_text() for path in self._files))

    def run(self, *arguments: Any, **limits: Any) -> Answer:
        """Run a command line to its end; arguments as for `start`."""
        self.start(*arguments, **limits)
        return self.end()


@contextmanager
def forked_command(
    name: str, loads: str, environment: dict[str, str] = ENVIRONMENT
) -> Iterator[ForkedCommand]:
    """Load a command; `loads` is Python code that ends with its function in ``main``."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        places = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
        serves = f"{loads}\nimport forked_command\nforked_command.serve(main, {path!r})"
        with subprocess.Popen(
            [sys.executable, "-c", serves],
            env=environment | {"PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
                yield ForkedCommand(name, path)
            finally:
                process.kill()
