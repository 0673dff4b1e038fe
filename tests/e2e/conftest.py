"""Real processes: commands of this environment, Flower's SuperLink and SuperNodes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

BIN = Path(sys.executable).parent
PROJECT = Path(__file__).parents[2]

#: Seconds until a test gives up on a process.
TIMEOUT = 240

#: The smallest federation that is one: overrides for every run in these tests.
TINY = [
    "rounds=2",
    "clients.default=1",
    "dataset.num_items=240",
    "dataset.num_speakers=24",
    "model.width=10",
    "model.heads=2",
    "model.layers=1",
    "model.decoder_layers=1",
    "client.local_epochs=1",
]

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture
def flower_home(tmp_path: Path) -> Path:
    home = tmp_path / "flower-home"
    home.mkdir()
    return home


@pytest.fixture
def environment(flower_home: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def command(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run a command of this environment in an empty folder to its end."""

    def run(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [BIN / name, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{name} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run


class Federation:
    """A SuperLink on loopback and the SuperNodes that were started for it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the SuperLink and wait until it answers."""
        (Path(self.environment["FLWR_HOME"]) / "config.toml").write_text(
            f'[superlink.loopback]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self._spawn(
            "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            "--port",
            str(self.port),
        )
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/health"), "the SuperLink")

    def add_node(self, node_config: str) -> None:
        """Start a SuperNode."""
        self._spawn(
            "flower-supernode",
            "--insecure",
            "--superlink",
            f"127.0.0.1:{self.port}",
            "--port",
            str(free_port()),
            "--node-config",
            node_config,
        )

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / name, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)

    def stop(self) -> None:
        """Stop everything that was started, nodes first."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def federation(tmp_path: Path, environment: dict[str, str]) -> Iterator[Federation]:
    running = Federation(tmp_path, environment)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited 60 s for {what}")
        time.sleep(0.2)
