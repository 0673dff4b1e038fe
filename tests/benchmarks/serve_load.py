"""Load on `utmp-serve`: requests per second, latencies, memory.

    python tests/benchmarks/serve_load.py [--run RUN] [--seconds 20] [--callers 1 8 64]
    python tests/benchmarks/serve_load.py --minutes 10      # and then a soak

Starts the service on a free port of loopback, for a run folder or for a tiny run that it trains.
Each request has one item; each caller sends the next one as soon as it is answered. In the soak,
8 callers send valid requests and a ninth sends requests that must be refused; the resident memory
of the service is printed every 30 s.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

BIN = Path(sys.executable).parent
SOAK_CALLERS = 8
JSON = "application/json"

TINY = [
    "runtime=sequential",
    "rounds=2",
    "clients.default=1",
    "dataset.num_items=240",
    "dataset.num_speakers=24",
    "client.local_epochs=1",
]

#: Requests that must be refused: body, Content-Type, expected status.
BAD: list[tuple[bytes, str, int]] = [
    (b'{"items": [', JSON, 400),
    (b'{"items": [{"id": NaN}]}', JSON, 422),
    (b'{"items": [{"smell": [[1]]}]}', JSON, 422),
    (b'{"items": [{"id": "a"}]}', JSON, 422),
    (b'{"items": []}', JSON, 422),
    (b'{"items": [' + b"{}," * 9_999 + b"{}]}", JSON, 413),
    (b"[" * 100_000, JSON, 422),
    (b"{}", "text/plain", 415),
    (b"0" * (20 << 20), JSON, 413),
]


@dataclass
class Load:
    """Latencies and errors of some callers."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


@dataclass
class Service:
    """A running `utmp-serve`."""

    process: subprocess.Popen[str]
    address: str

    @property
    def memory(self) -> float:
        """Resident memory now, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else float("nan")


@contextlib.contextmanager
def running(run: Path, settings: list[str]) -> Iterator[Service]:
    """Start the service, and stop it with Ctrl-C."""
    command = [BIN / "utmp-serve", f"model={run}", "port=0", *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = (re.search(r"http://\S+/", line) for line in process.stdout)
        address = next((match[0] for match in found if match), None)
        if address is None:
            sys.exit("the service did not start")
        try:
            yield Service(process, address)
        finally:
            process.send_signal(2)
            print(f"the service ended with status {process.wait(timeout=60)}")


async def bodies_of(address: str) -> list[bytes]:
    """Return requests of one item each, made from the examples of the service."""
    async with aiohttp.ClientSession(address) as session:
        async with session.get("examples") as answer:
            count = len(await answer.json())
        found = []
        for number in range(count):
            async with session.get(f"examples/{number}") as answer:
                found.append(json.dumps({"items": [(await answer.json())["item"]]}).encode())
        return found


async def post(
    session: aiohttp.ClientSession, load: Load, body: bytes, kind: str = JSON, expected: int = 200
) -> None:
    """Send one request; count how long it takes, and an error if the answer is unexpected."""
    began = time.perf_counter()
    try:
        async with session.post("predict", data=body, headers={"Content-Type": kind}) as answer:
            content = await answer.text()
            if answer.status != expected:
                load.errors[f"{answer.status} {content}, expected {expected}"] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        load.errors[f"{error!r} for {body[:30]!r}"] += 1
    load.seconds.append(time.perf_counter() - began)


async def call(
    session: aiohttp.ClientSession, bodies: list[bytes], first: int, until: float, load: Load
) -> None:
    """Send one request after the other."""
    for turn in itertools.count(first):
        if time.perf_counter() >= until:
            return
        await post(session, load, bodies[turn % len(bodies)])


async def misbehave(session: aiohttp.ClientSession, until: float, load: Load) -> None:
    """Send requests that must be refused, about ten per second."""
    for body, kind, status in itertools.cycle(BAD):
        if time.perf_counter() >= until:
            return
        await post(session, load, body, kind, status)
        await asyncio.sleep(0.1)


async def under_load(address: str, callers: int, seconds: float) -> tuple[Load, float]:
    """Run some callers at a time; return their load, and its duration in seconds."""
    bodies = await bodies_of(address)
    load = Load()
    async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
        await call(session, bodies, 0, time.perf_counter() + 1, Load())  # warm
        began = time.perf_counter()
        await asyncio.gather(
            *(call(session, bodies, first, began + seconds, load) for first in range(callers))
        )
        return load, time.perf_counter() - began


def table(service: Service, callers: list[int], seconds: float) -> None:
    """Print a line for each number of callers."""
    print("callers  requests/s  p50 ms  p99 ms  max ms  errors  RSS MB")
    for count in callers:
        load, took = asyncio.run(under_load(service.address, count, seconds))
        cuts = statistics.quantiles(load.seconds, n=100)
        print(
            f"{count:7d}  {len(load.seconds) / took:10.1f}  {1e3 * cuts[49]:6.1f}  "
            f"{1e3 * cuts[98]:6.1f}  {1e3 * max(load.seconds):6.1f}  "
            f"{sum(load.errors.values()):6d}  {service.memory:6.0f}",
            flush=True,
        )
        for error, times in load.errors.most_common(3):
            print(f"  {times} times {error[:200]}")


async def soak(service: Service, minutes: float) -> None:
    """Send valid and invalid requests for long, and print the memory."""
    bodies = await bodies_of(service.address)
    good, bad = Load(), Load()
    began = time.perf_counter()
    until = began + 60 * minutes
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(service.address, connector=connector) as session:
        tasks = [
            asyncio.create_task(call(session, bodies, first, until, good))
            for first in range(SOAK_CALLERS)
        ]
        tasks.append(asyncio.create_task(misbehave(session, until, bad)))
        print("   s   RSS MB   answered   refused   errors")
        while (left := until - time.perf_counter()) > 0:
            await asyncio.sleep(min(30, left))
            errors = sum(good.errors.values()) + sum(bad.errors.values())
            print(
                f"{time.perf_counter() - began:4.0f}   {service.memory:6.1f}   "
                f"{len(good.seconds):8d}   {len(bad.seconds):7d}   {errors:6d}",
                flush=True,
            )
        await asyncio.gather(*tasks)
    for error, times in (good.errors + bad.errors).most_common(5):
        print(f"  {times} times {error[:200]}")


def main() -> None:
    """Start, load, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("settings", nargs="*", help="settings of utmp-serve, such as max_batch=64")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run
        if run is None:
            run = Path(folder) / "run"
            subprocess.run(
                [BIN / "utmp-train", *TINY, f"run_dir={run}"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        with running(run, arguments.settings) as service:
            if arguments.callers:
                table(service, arguments.callers, arguments.seconds)
            if arguments.minutes:
                asyncio.run(soak(service, arguments.minutes))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
