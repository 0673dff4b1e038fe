"""Silent and slow connections: they are closed in time, and take nothing from others meanwhile."""

import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from made_up_models import write_model
from service_models import Served, SlowPredictor, ask, connect, item, serving, until, waiting

from server.service.connections import CONNECTIONS

HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def silent(opened: ExitStack, client: httpx.Client, source: str = "127.0.0.1") -> socket.socket:
    """Open a connection, from an address of loopback."""
    address = (client.base_url.host, client.base_url.port or 0)
    return opened.enter_context(socket.create_connection(address, 10, (source, 0)))


def is_closed(connection: socket.socket) -> bool:
    """Whether the service closed a connection on which it has answered nothing."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, b"\r\n"])
def test_a_head_must_come_in_time(
    served: Served, opened: ExitStack, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("server.service.connections.HEAD", 0.5)
    with served() as client:
        began, connection = time.monotonic(), silent(opened, client)
        connection.sendall(sent)
        until(lambda: is_closed(connection))
        assert time.monotonic() - began > 0.4


def test_a_byte_now_and_then_does_not_keep_a_connection(
    served: Served, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.connections.HEAD", 0.5)
    with served() as client:
        connection = silent(opened, client)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HALF_A_HEAD)

        def dribble() -> bool:
            try:
                connection.setblocking(True)
                connection.sendall(b"x")
            except ConnectionError:
                return True
            return is_closed(connection)

        until(dribble)


def test_a_client_that_asks_in_time_keeps_its_connection(
    served: Served, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.connections.HEAD", 1.0)
    with served() as client:
        connection = silent(opened, client)
        for _ in range(8):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += (piece := connection.recv(1000))
                assert piece
            time.sleep(0.25)


def test_the_longest_silent_one_gives_way(served: Served, opened: ExitStack) -> None:
    with served(connections=6) as client:
        assert client.get("/health").status_code == 200  # it stays open
        others = [silent(opened, client, "127.0.0.2") for _ in range(2)]
        time.sleep(0.3)
        early = [silent(opened, client) for _ in range(3)]
        time.sleep(0.3)
        assert not any(map(is_closed, early + others))
        late = [silent(opened, client) for _ in range(3)]
        # Those of the address that has most, though the other's are older.
        until(lambda: all(map(is_closed, early)))
        assert not any(map(is_closed, late + others))
        assert client.get("/health").status_code == 200


def test_a_slow_body_gives_way_and_a_request_that_is_being_answered_does_not(
    served: Served, slow: SlowPredictor, opened: ExitStack
) -> None:
    with served(model=slow, connections=3) as client, ThreadPoolExecutor(2) as callers:
        held = [
            callers.submit(httpx.post, f"{client.base_url}/predict", json={"items": [item(seed)]})
            for seed in range(2)
        ]
        until(lambda: waiting(client) == 2)
        body = opened.enter_context(connect(client, length=100))
        time.sleep(0.3)
        newest = silent(opened, client)
        until(lambda: is_closed(body))
        assert not is_closed(newest)
        slow.open.set()
        assert [answer.result().status_code for answer in held] == [200, 200]


def test_an_answer_must_be_read_in_time(
    served: Served, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.connections.HEAD", 0.2)
    monkeypatch.setattr("server.service.connections.ANSWER", 1.0)
    many = {"items": [{"id": "x" * 9_000, "audio": [[1, 2, 3]]}] * 1000}
    body = json.dumps(many).encode()
    with served() as client:
        # More than fits between the two, so that the service holds the rest.
        connection = opened.enter_context(connect(client, length=len(body)))
        connection.sendall(body)
        assert len(connection.recv(1)) == 1
        time.sleep(0.5)
        assert len(read_all(connection)) > 9_000_000  # slow, and still in time
        unread = opened.enter_context(connect(client, length=len(body)))
        unread.sendall(body)
        assert len(unread.recv(1)) == 1
        time.sleep(2)
        assert len(read_all(unread)) < 9_000_000


def read_all(connection: socket.socket) -> bytes:
    """Read an answer of nine megabytes, or what there is of it."""
    content = b""
    try:
        while len(content) < 9_000_000 and (piece := connection.recv(1 << 20)):
            content += piece
    except ConnectionError:
        pass
    return content


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD])
def test_idle_connections_do_not_take_the_service(tmp_path: Path, sent: bytes) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    count = min(10_000, most - 200)
    assert count > 1000
    write_model(tmp_path / "run")
    given = serving(tmp_path, "model=run", "examples=none")
    seconds: list[float] = []
    try:
        with given as (process, _, url), httpx.Client(base_url=url) as client, ExitStack() as idle:

            def check() -> None:
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                assert ask(client, {"audio": [[1, 2, 3]]}).status_code == 200
                seconds.append(time.monotonic() - began)

            for number in range(count):
                silent(idle, client).sendall(sent)
                if number % 250 == 0:
                    check()
            files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            assert files < 2 * CONNECTIONS
            for _ in range(20):
                check()
                time.sleep(0.05)
            idle.close()
            check()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    # A second for each of the two; a machine that does other things besides takes longer.
    assert sorted(seconds)[-2] < 2 and max(seconds) < 10
