"""Items for a small model that nobody trained, and services of it on loopback."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from forked_command import ENVIRONMENT
from made_up_models import predictor_for

from common.config import ServeConfig
from common.task import Task
from server.prediction.predictor import Predictions, Predictor
from server.service.connections import CONNECTIONS
from server.service.listening import make_server

Served = Callable[..., AbstractContextManager[httpx.Client]]


def small_predictor(
    task: Task = Task.regression, sentiment: bool = True, names: Sequence[str] = ()
) -> Predictor:
    """Language and audio are sequences; vision is a table."""
    return predictor_for(task, max_seq_len=6, tabular=["vision"], sentiment=sentiment, names=names)


SHAPES = small_predictor().features


def item(seed: int, *names: str, steps: int = 5) -> dict[str, Any]:
    """An item of a request; it has every modality where none is named."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(shape[0] if shape[1:] else steps, shape[-1])).round(3).tolist()
        for name, shape in SHAPES.items()
        if not names or name in names
    }


@contextmanager
def running(
    app: FastAPI, token: str | None = None, connections: int = CONNECTIONS
) -> Iterator[httpx.Client]:
    """Serve on a free port, in a thread; keep at most so many connections open."""
    server = make_server(app, ServeConfig(), connections)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30
            ) as client:
                yield client
        finally:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()


@contextmanager
def serving(folder: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run `utmp-serve` in a folder; give its process, its output so far, and its address."""
    with subprocess.Popen(
        [Path(sys.executable).with_name("utmp-serve"), "port=0", *settings],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        try:
            while not (address := re.search(r"https?://\S+/", said)):
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                said += line
            yield process, said, address[0]
        finally:
            process.kill()


def ask(client: httpx.Client, *items: Any, **others: Any) -> httpx.Response:
    return client.post("/predict", json={"items": items, **others})


def connect(client: httpx.Client, *, length: int, header: str = "") -> socket.socket:
    """Send the head of a request; what follows is up to the test."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), 10)
    connection.settimeout(10)
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}{header}Content-Length: {length}\r\n\r\n".encode())
    return connection


def counted(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def waiting(client: httpx.Client) -> float:
    return counted(client, "utmp_waiting_items")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class SlowPredictor(Predictor):
    """A model that answers once it is open."""

    open = threading.Event()

    def predict_sequences(self, *given: Any) -> Predictions:
        assert self.open.wait(20)
        return super().predict_sequences(*given)
