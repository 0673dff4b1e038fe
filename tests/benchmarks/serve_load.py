"""Load on `utmp-serve`: requests per second, latencies, memory.

    python tests/benchmarks/serve_load.py [--run RUN] [--seconds 20] [--callers 1 8 64]
    python tests/benchmarks/serve_load.py --minutes 10      # and then a soak
    python tests/benchmarks/serve_load.py --gigabyte        # and a body of 1 GB, in three ways

Starts the service on a free port of loopback, for a run folder or for a tiny run that it trains.
Each request has one item; each caller sends the next one as soon as it is answered. In the soak,
8 callers send valid requests and a ninth sends requests that must be refused; the resident memory
of the service is printed every 30 s.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

BIN = Path(sys.executable).parent
SOAK_CALLERS = 8

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
    (b'{"items": [', "application/json", 400),
    (b'{"items": [{"id": NaN}]}', "application/json", 422),
    (b'{"items": [{"smell": [[1]]}]}', "application/json", 422),
    (b'{"items": [{"id": "a"}]}', "application/json", 422),
    (b'{"items": []}', "application/json", 422),
    (b'{"items": [' + b"{}," * 9_999 + b"{}]}", "application/json", 413),
    (b"[" * 100_000, "application/json", 422),
    (b"{}", "text/plain", 415),
    (b"0" * (20 << 20), "application/json", 413),
]


@dataclass
class Load:
    """Latencies and errors of some callers."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


class Service:
    """A running `utmp-serve`."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address

    @property
    def memory(self) -> float:
        """Resident memory now, in MB."""
        return self._status("VmRSS")

    @property
    def peak(self) -> float:
        """Peak resident memory since `forget_peak`, in MB."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Reset the peak, where the system allows it."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else float("nan")


@contextlib.contextmanager
def running(run: Path, settings: list[str]) -> Iterator[Service]:
    """Start the service, and stop it with Ctrl-C."""
    command = [BIN / "utmp-serve", f"model={run}", "port=0", *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = None
        for line in process.stdout:
            print(line, end="")
            if found := re.search(r"http://\S+/", line):
                address = found[0]
                break
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


async def call(
    session: aiohttp.ClientSession, bodies: list[bytes], first: int, until: float, load: Load
) -> None:
    """Send one request after the other."""
    headers = {"Content-Type": "application/json"}
    turn = first
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            async with session.post(
                "predict", data=bodies[turn % len(bodies)], headers=headers
            ) as answer:
                content = await answer.json()
                if answer.status != 200 or len(content["predictions"]) != 1:
                    load.errors[f"{answer.status} {content}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            load.errors[repr(error)] += 1
        load.seconds.append(time.perf_counter() - began)
        turn += 1


async def misbehave(session: aiohttp.ClientSession, until: float, load: Load) -> None:
    """Send requests that must be refused, about ten per second."""
    turn = 0
    while time.perf_counter() < until:
        body, kind, status = BAD[turn % len(BAD)]
        turn += 1
        try:
            async with session.post("predict", data=body, headers={"Content-Type": kind}) as answer:
                if answer.status != status:
                    load.errors[f"{answer.status} for {body[:30]!r}, expected {status}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            load.errors[f"{error!r} for {body[:30]!r}"] += 1
        load.seconds.append(0.0)
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
    async with aiohttp.ClientSession(
        service.address, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
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


PIECE = b'{"items": [' + b"0," * (1 << 19)
PIECES = (1 << 30) // len(PIECE) + 1


async def polite(address: str, declared: bool) -> tuple[int, str]:
    """Send a body of 1 GB until it is answered; return the bytes sent, and the answer."""
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(PIECES):
            yield PIECE
            sent += len(PIECE)

    headers = {"Content-Type": "application/json"}
    if declared:
        headers["Content-Length"] = str(PIECES * len(PIECE))
    async with (
        aiohttp.ClientSession(address) as session,
        session.post("predict", data=pieces(), headers=headers) as answer,
    ):
        return sent, f"{answer.status} {await answer.text()}"


async def blind(address: str) -> tuple[int, str]:
    """Send all of it before reading the answer."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {PIECES * len(PIECE)}\r\n\r\n".encode())
    for _ in range(PIECES):
        writer.write(PIECE)
        await writer.drain()
    line = await reader.readline()
    writer.close()
    return PIECES * len(PIECE), line.decode().strip()


async def gigabyte(service: Service) -> None:
    """Send a body of 1 GB in three ways, and print time and memory."""
    ways = {
        "declared": polite(service.address, declared=True),
        "chunked": polite(service.address, declared=False),
        "sent to its end": blind(service.address),
    }
    for way, sending in ways.items():
        service.forget_peak()
        before, began = service.memory, time.perf_counter()
        sent, answer = await sending
        print(
            f"1 GB, {way}: {answer} after {sent / 1e6:.0f} MB and "
            f"{time.perf_counter() - began:.2f} s; RSS {before:.0f} MB before, "
            f"{service.peak:.0f} MB at most",
            flush=True,
        )


def main() -> None:
    """Start, load, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--gigabyte", action="store_true")
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
            if arguments.gigabyte:
                asyncio.run(gigabyte(service))
            if arguments.callers:
                table(service, arguments.callers, arguments.seconds)
            if arguments.minutes:
                asyncio.run(soak(service, arguments.minutes))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
