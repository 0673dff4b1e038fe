"""Load on `utmp-serve`: requests per second, latencies, memory.

    python tests/benchmarks/serve_load.py [--run RUN] [--seconds 20] [--callers 1 8 64]
    python tests/benchmarks/serve_load.py --minutes 10      # and then a soak
    python tests/benchmarks/serve_load.py --beside 5        # beside a minimal FastAPI app, in turns

Starts the service on a free port of loopback, for a run folder or for a tiny run that it trains.
Each request has one item; each caller sends the next one as soon as it is answered. In the soak,
8 callers send valid requests and another sends requests that must be refused, ten a second; a line
every 30 s shows whether memory grows. The minimal app (``contestants/minimal_app.py``) checks
nothing, and predicts each request by itself; ratios to it are medians of the turns, with their
range.
"""

import argparse
import asyncio
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

sys.path += [str(Path(__file__).parents[1] / name) for name in ("server", "e2e")]
from figures import BIN, run_command
from processes import TINY
from service_models import serving

JSON = "application/json"

#: Body, Content-Type, and the status of the answer.
Request = tuple[bytes, str, int]

REFUSED: list[Request] = [
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

    async def call(
        self,
        session: aiohttp.ClientSession,
        requests: Iterable[Request],
        until: float,
        pause: float = 0,
    ) -> None:
        """Send one request after the other; an answer with another status is an error."""
        for body, kind, expected in itertools.cycle(requests):
            if (began := time.perf_counter()) >= until:
                return
            try:
                async with session.post(
                    "predict", data=body, headers={"Content-Type": kind}
                ) as answer:
                    content = await answer.text()
                    if answer.status != expected:
                        self.errors[f"{answer.status} {content}, expected {expected}"] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.errors[f"{error!r} for {body[:30]!r}"] += 1
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(pause)


async def examples(session: aiohttp.ClientSession) -> list[Request]:
    """Return requests of one item each, made from the examples of the service."""
    found: list[Request] = []
    async with session.get("examples") as answer:
        count = len(await answer.json())
    for number in range(count):
        async with session.get(f"examples/{number}") as answer:
            body = json.dumps({"items": [(await answer.json())["item"]]}).encode()
        found.append((body, JSON, 200))
    return found


async def under_load(
    address: str,
    callers: int,
    seconds: float,
    refused: Iterable[Request] = (),
    source: str | None = None,
) -> Load:
    """Let some callers call for so long, and another one send what must be refused.

    Requests are made of the examples of the service at `source`, by default the address.
    """
    async with aiohttp.ClientSession(source or address) as session:
        requests = await examples(session)
    async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
        await Load().call(session, requests, time.perf_counter() + 1)  # warm
        load, other, until = Load(), Load(), time.perf_counter() + seconds
        await asyncio.gather(
            *(load.call(session, requests[n:] + requests[:n], until) for n in range(callers)),
            other.call(session, refused, until, pause=0.1),
        )
        load.errors += other.errors
        return load


@contextmanager
def minimal(model: Path) -> Iterator[str]:
    """Run the minimal app on a free port; give its address."""
    script = Path(__file__).parent / "contestants" / "minimal_app.py"
    command = [sys.executable, script, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.kill()


def beside(ours: str, other: str, callers: int, seconds: float, turns: int) -> None:
    """Print requests a second of ours and of the minimal app, and their ratio."""
    rates: list[tuple[float, float]] = []
    for _ in range(turns):
        loads = [asyncio.run(under_load(at, callers, seconds, (), ours)) for at in (ours, other)]
        assert not any(load.errors for load in loads), [load.errors for load in loads]
        rates.append(tuple(len(load.seconds) / seconds for load in loads))
    own, bare = (statistics.median(rate) for rate in zip(*rates, strict=True))
    ratios = sorted(one / two for one, two in rates)
    print(
        f"{callers:7d}  {own:8.1f}  {bare:8.1f}  {statistics.median(ratios):5.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def main() -> None:
    """Start the service; print a line for each number of callers, and for each part of the soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--beside", type=int, default=0, metavar="TURNS")
    parser.add_argument("settings", nargs="*", help="settings of utmp-serve, such as max_batch=64")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        run = given.run and given.run.resolve()
        if run is None:
            run = Path(folder) / "run"
            run_command(BIN / "utmp-train", *TINY, "runtime=sequential", f"run_dir={run}")
        with serving(Path(folder), f"model={run}", *given.settings) as (process, _, address):
            if given.beside:
                print("callers  ours, /s  minimal, /s  times")
                with minimal(run) as other:
                    for callers in given.callers:
                        beside(address, other, callers, given.seconds, given.beside)
                return
            print("callers  requests/s  p50 ms  p99 ms  max ms  errors  RSS MB")
            parts = [(callers, given.seconds, []) for callers in given.callers]
            parts += [(8, 30, REFUSED)] * round(2 * given.minutes)
            for callers, seconds, refused in parts:
                load = asyncio.run(under_load(address, callers, seconds, refused))
                cuts = statistics.quantiles(load.seconds, n=100)
                status = Path(f"/proc/{process.pid}/status").read_text()
                (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
                print(
                    f"{callers:7d}  {len(load.seconds) / seconds:10.1f}  {1e3 * cuts[49]:6.1f}  "
                    f"{1e3 * cuts[98]:6.1f}  {1e3 * max(load.seconds):6.1f}  "
                    f"{load.errors.total():6d}  {int(resident) / 1024:6.0f}",
                    flush=True,
                )
                for error, times in load.errors.most_common(3):
                    print(f"  {times} times {error[:200]}")


if __name__ == "__main__":
    main()
