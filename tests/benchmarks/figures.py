"""What a benchmark measures: a figure, and what it is to be compared with."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    name
        What was measured.
    value, unit
        The number.
    limit
        The most that it is to be, measured in the same run where it is not a constant; None: there
        is none.
    compared
        What the limit is.
    cpu
        CPU seconds that the measurement took, where they are not the value.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    compared: str = ""
    cpu: float | None = None

    @property
    def state(self) -> str:
        """Whether the limit is kept."""
        if self.limit is None:
            return ""
        return "reached" if self.value <= self.limit else "missed"


def as_json(figures: Sequence[Figure]) -> str:
    """Return figures as JSON."""
    return json.dumps([asdict(each) | {"state": each.state} for each in figures], indent=1)


def print_figures(figures: Sequence[Figure]) -> None:
    """Print a line for each."""
    for each in figures:
        limit = f"at most {each.limit:.4g} ({each.compared}): {each.state}" if each.state else ""
        cpu = "" if each.cpu is None else f"CPU {each.cpu:.1f} s"
        print(
            f"{each.name:52}{each.value:10.4g} {each.unit:6} {cpu:12} {limit}".rstrip(), flush=True
        )


@dataclass(frozen=True)
class Ran:
    """What a command took: seconds, CPU seconds, and the peak of its memory in MB."""

    seconds: float
    cpu: float
    megabytes: float
    output: str


#: Peak memory of children is the largest of all, so that each command has a process of its own.
_MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.stdout, done.stderr, file=sys.stderr)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6, done.returncode]))
"""


def run_command(*command: str | Path) -> Ran:
    """Run a command of this environment to its end."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, command)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - began
    cpu, megabytes, status = json.loads(done.stdout)
    if status:
        sys.exit(f"{' '.join(map(str, command))} exited with {status}:\n{done.stderr}")
    return Ran(seconds, cpu, megabytes, done.stderr)


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that some work takes."""
    began = resource.getrusage(resource.RUSAGE_SELF)
    work()
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
