"""Real processes: commands of this environment, Flower's SuperLink and SuperNodes."""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

BIN = Path(sys.executable).parent
PROJECT = Path(__file__).parents[2]

#: Seconds until a test gives up on a process.
TIMEOUT = 240

#: Overrides for a tiny federation, for every run in these tests.
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


def flower_environment(folder: Path) -> dict[str, str]:
    """Return the environment of processes that keep Flower's files below a folder."""
    flower_home = folder / "flower-home"
    flower_home.mkdir()
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "COLUMNS": "200",
    }


def run_command(
    folder: Path, environment: dict[str, str], name: str, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment to its end."""
    where: dict[str, Any] = {"cwd": folder, "env": environment, "timeout": TIMEOUT}
    command = [BIN / name, *arguments]
    done = subprocess.run(command, **where, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        pytest.fail(f"{name} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@dataclass
class Node:
    """A site's process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self) -> tuple[int, str]:
        """Wait until it ends by itself; return its exit status and what it printed."""
        status = self.process.wait(timeout=60)
        return status, self.log.read_text()


class Federation:
    """A SuperLink on loopback and the sites that were started for it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def database(self) -> tuple[str, str]:
        """Options of a SuperLink that can be started again."""
        return "--database", str(self.folder / "superlink.db")

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the SuperLink and wait until it answers."""
        return self._start_superlink("insecure = true", True, "--insecure", *options)

    def _start_superlink(
        self, connection: str, trust: ssl.SSLContext | bool, *options: str
    ) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{self.port}"
        (Path(self.environment["FLWR_HOME"]) / "config.toml").write_text(
            f'[superlink.loopback]\naddress = "{address}"\n{connection}\n'
        )
        process = self.spawn(BIN / "utmp-superlink", "--port", str(self.port), *options)
        scheme = "http" if trust is True else "https"
        wait_until(lambda: answers(f"{scheme}://{address}/health", trust), "the SuperLink")
        return process

    def add_node(self, node_config: str, *security: str, port: int | None = None) -> Node:
        """Start a site with the options for its root certificates and key, by default none.

        It connects to the SuperLink's port, or another.
        """
        address = ("--superlink", f"127.0.0.1:{port or self.port}")
        options = (*(security or ["--insecure"]), *address, "--node-config", node_config)
        log = self.log_of("utmp-client")
        return Node(self.spawn(BIN / "utmp-client", *options), log)

    def add_flower_node(self, node_config: str) -> None:
        """Start a site with Flower's own command."""
        address = ("--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()))
        options = ("--insecure", *address, "--node-config", node_config)
        self.spawn(BIN / "flower-supernode", *options)

    def run(self, name: str, *arguments: str) -> str:
        """Run a command to its end; return what it printed."""
        return run_command(self.folder, self.environment, name, *arguments).stdout

    def train(self, overrides: list[str]) -> str:
        """Run a federation on the sites; return what it printed."""
        return self.run(*training(overrides))

    def spawn(self, *command: str | Path, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a process; what it prints goes to a file."""
        with (log or self.log_of(Path(command[0]).name)).open("wb") as file:
            outputs: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, **outputs)
        self.processes.append(process)
        return process

    def log_of(self, name: str) -> Path:
        """Return the file of the output of the next process."""
        return self.folder / f"{name}-{len(self.processes)}.log"

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


class SecureFederation(Federation):
    """The same over TLS, with the credentials of `utmp-credentials`: sites must be registered."""

    @property
    def credentials(self) -> Path:
        """The folder of all credentials."""
        return self.folder / "credentials"

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the SuperLink on what was made for it, and wait until it answers."""
        authority, certificate, key = (
            str(self.credentials / "server" / name)
            for name in ("ca.crt", "server.crt", "server.key")
        )
        return self._start_superlink(
            f'root-certificates = "{authority}"',
            ssl.create_default_context(cafile=authority),
            *("--ssl-ca-certfile", authority, "--ssl-certfile", certificate, "--ssl-keyfile", key),
            *("--enable-supernode-auth", *self.database, *options),
        )

    def register(self, name: str) -> str:
        """Register the key of a site by its name; return the id of its node."""
        key = self.credentials / "sites" / name / f"{name}.pub"
        printed = self.run(
            *("flwr", "supernode", "register", str(key), "loopback"),
            *("--name", name, "--format=json"),
        )
        return str(last_json(printed)["node-id"])

    def nodes(self) -> dict[str, tuple[str, str]]:
        """Id of every registered node to its status, and the time at which it last came online."""
        printed = self.run("flwr", "supernode", "list", "loopback", "--format=json")
        return {
            node["node-id"]: (node["status"], node["online-at"])
            for node in last_json(printed)["nodes"]
        }

    def wait_online(self, *nodes: str) -> None:
        """Wait until registered nodes are online."""
        wait_until(
            lambda: (
                set(nodes) <= {n for n, (status, _) in self.nodes().items() if status == "online"}
            ),
            f"nodes {', '.join(nodes)}",
        )

    def security_of(self, name: str) -> tuple[str, ...]:
        """The options of a site with the files that it was handed."""
        site = self.credentials / "sites" / name
        authority, key = str(site / "ca.crt"), str(site / f"{name}.key")
        return ("--root-certificates", authority, "--auth-supernode-private-key", key)


def training(overrides: list[str], connection: str = "loopback") -> tuple[str, ...]:
    """The command that runs a federation on the sites of a connection."""
    config = f'overrides="{" ".join(overrides)}"'
    return ("flwr", "run", str(PROJECT), connection, "--stream", "--run-config", config)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str, trust: ssl.SSLContext | bool = True) -> bool:
    try:
        return httpx.get(url, timeout=2, verify=trust).is_success
    except httpx.HTTPError:
        return False


def last_json(printed: str) -> dict[str, Any]:
    """The JSON in the output of a Flower command, below lines for people."""
    return json.loads(printed[printed.index("{") :])


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)
