"""What a benchmark measures: a figure, and what it is to be compared with."""

import argparse
import inspect
import json
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    #: The most that it is to be, measured in the same run where it is not a constant.
    limit: float | None = None
    compared: str = ""  #: what the limit is
    cpu: float | None = None  #: CPU seconds of the measurement, where they are not the value

    @property
    def state(self) -> str:
        """Whether the limit is kept."""
        if self.limit is None:
            return ""
        return "reached" if self.value <= self.limit else "missed"


def print_figures(figures: Iterable[Figure]) -> list[Figure]:
    """Print a line for each as it is measured; return all."""
    measured = []
    for one in figures:
        limit = f"at most {one.limit:.4g} ({one.compared}): {one.state}" if one.state else ""
        cpu = "" if one.cpu is None else f"CPU {one.cpu:.1f} s"
        print(f"{one.name:52}{one.value:10.4g} {one.unit:6} {cpu:12} {limit}".rstrip(), flush=True)
        measured.append(one)
    return measured


def main(figures: Callable[..., Iterable[Figure]]) -> None:
    """Print a benchmark's figures; the parameters of its function are options."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, parameter in inspect.signature(figures).parameters.items():
        default = parameter.default
        many = isinstance(default, tuple)
        kind = type(default[0] if many else default)
        parser.add_argument(f"--{name}", type=kind, nargs="*" if many else None, default=default)
    print_figures(figures(**vars(parser.parse_args())))


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
    script = [sys.executable, "-c", _MEASURED, *map(str, command)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    cpu, megabytes, status = json.loads(done.stdout)
    if status:
        sys.exit(f"{' '.join(map(str, command))} exited with {status}:\n{done.stderr}")
    return Ran(seconds, cpu, megabytes, done.stderr)


def in_a_process(work: Callable[..., T], *given: object) -> T:
    """Run a function of a module in a process of its own, whose memory is that of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(work, *given).result()


def peak() -> float:
    """Return the peak of this process's memory so far, in MB."""
    # That of `getrusage` is at least what the process that began this one had.
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e6


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that some work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began
