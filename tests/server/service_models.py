"""Items for a small model that nobody trained, and services of it on loopback."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from forked_command import ENVIRONMENT
from made_up_models import predictor_for

from common.task import Task
from server.prediction.predictor import Predictor

Served = Callable[..., AbstractContextManager[httpx.Client]]


def small_predictor(task: Task = Task.regression) -> Predictor:
    """Language and audio are sequences; vision is a table."""
    return predictor_for(task, max_seq_len=6, tabular=["vision"])


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
def running(app: FastAPI, token: str | None = None) -> Iterator[httpx.Client]:
    """Serve on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_level="critical"))
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
