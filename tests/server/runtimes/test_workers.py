"""Clients in processes of their own: the same run, and what becomes of processes."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from tiny_runs import soon, tiny

import server.runtimes.local
from common.config import Config
from common.protocol import decode_description, encode_query
from server.runtimes.local import LocalGrid, Workers, clients_at_once

NODES = 6


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def with_workers(config: Config, log: Path) -> LocalGrid:
    return LocalGrid(ClientApp(), NODES, Workers(config, NODES, log))


def query(
    grid: LocalGrid,
    lifetime: float = 3600.0,
    nodes: Sequence[int] | None = None,
    group: str = "",
) -> list[str]:
    """Ask every node, or some; return the keys of the replies."""
    return grid.push_messages(
        Message(encode_query(), node, MessageType.QUERY, ttl=lifetime, group_id=group)
        for node in nodes or grid.get_node_ids()
    )


def answers(grid: LocalGrid, keys: list[str]) -> Iterator[Message]:
    """Look until all have answered."""
    for _ in range(200):
        for reply in grid.pull_messages(keys):
            keys.remove(reply.metadata.reply_to_message_id)
            yield reply
        if not keys:
            return
        time.sleep(0.05)


def app_that(answer: Callable[[Message, Context], Message]) -> Callable[..., ClientApp]:
    app = ClientApp()
    app.query()(answer)
    return lambda _: app


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "begun anew"])
def test_every_node_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool) -> None:
    # Where there are GPUs, processes cannot be copies.
    monkeypatch.setattr("torch.cuda.is_available", lambda: not copied)
    with with_workers(tiny("client.device=cpu"), tmp_path / "log") as grid:
        found = [decode_description(reply.content) for reply in answers(grid, query(grid))]
        assert len(multiprocessing.active_children()) == 2
    keys = sorted(str(client.key) for each in found for client in each.clients)
    assert keys == [f"{name}-{part}" for name in ("audio", "language", "vision") for part in (0, 1)]


def test_messages_that_have_expired_make_room(tmp_path: Path) -> None:
    with with_workers(tiny(), tmp_path / "log") as grid:
        query(grid, lifetime=0.1)
        # Nobody waits for them; two for each process are under way.
        assert list(grid.pull_messages([])) == []
        assert len(grid._workers._running) == 4
        time.sleep(0.5)
        keys = query(grid)
        under_way = [len(grid._workers._running) for _ in answers(grid, keys)]
        assert len(under_way) == NODES and max(under_way) <= 4
        assert soon(lambda: not list(grid.pull_messages([])) and not grid._sent)
        assert not grid._workers._running


def test_late_replies_keep_no_message_of_the_next_round_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_that(lambda message, _: Message(encode_query(), reply_to=message))
    monkeypatch.setattr(server.runtimes.local, "make_client_app", app)
    with with_workers(tiny(), tmp_path / "log") as grid:
        late = query(grid, nodes=[1, 2, 3, 4], group="1")
        assert list(grid.pull_messages([])) == []
        assert soon(lambda: all(future.done() for future in grid._workers._running.values()))
        assert len(grid._workers._running) == len(late)
        assert len(list(answers(grid, query(grid, nodes=[5, 6], group="2")))) == 2
        assert len(list(answers(grid, late))) == 4


def test_a_dead_process_costs_its_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = tmp_path / "died"

    def answer(message: Message, _: Context) -> Message:
        if message.metadata.dst_node_id == 1 and not died.exists():
            died.touch()
            os._exit(9)
        return Message(encode_query(), reply_to=message)

    monkeypatch.setattr(server.runtimes.local, "make_client_app", app_that(answer))
    with with_workers(tiny(), tmp_path / "log") as grid:
        first, again = (list(answers(grid, query(grid))) for _ in range(2))
    lost = [reply for reply in first if reply.has_error()]
    assert len(first) == NODES and 1 <= len(lost) <= 4
    assert all("the process of a client ended" in reply.error.reason for reply in lost)
    assert 1 in {reply.metadata.src_node_id for reply in lost}
    assert len(again) == NODES
    assert not any(reply.has_error() for reply in again)


def test_a_dead_process_loses_no_message_that_is_not_waited_for_and_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = tmp_path / "died"

    def answer(message: Message, _: Context) -> Message:
        if not died.exists():
            died.touch()
            os._exit(9)
        return Message(encode_query(), reply_to=message)

    monkeypatch.setattr(server.runtimes.local, "make_client_app", app_that(answer))
    with with_workers(tiny(), tmp_path / "log") as grid:
        late = query(grid, nodes=[1])
        assert list(grid.pull_messages([])) == []
        assert soon(grid._workers._running[late[0]].done) and died.exists()
        # One of another round, while nobody looks for the first.
        (reply,) = answers(grid, query(grid, nodes=[2]))
        assert not reply.has_error()
        (reply,) = answers(grid, late)
        assert not reply.has_error()


def runs(process: int | None) -> bool:
    state = ["ps", "-o", "stat=", "-p", str(process)]
    return subprocess.run(state, capture_output=True, text=True).stdout.strip()[:1] not in ("", "Z")


def ended(processes: Sequence[int | None]) -> bool:
    return soon(lambda: not any(map(runs, processes)))


def stuck(message: Message, _: Context) -> Message:
    time.sleep(600)
    return message


def test_processes_end_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.runtimes.local, "make_client_app", app_that(stuck))
    with pytest.raises(KeyboardInterrupt), with_workers(tiny(), tmp_path / "log") as grid:
        assert list(grid.pull_messages(query(grid))) == []
        processes = multiprocessing.active_children()
        assert len(processes) == 2
        assert soon(lambda: grid._workers._begin[-1].value >= 2)
        # From the terminal it reaches all of them.
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
        assert all(process.is_alive() for process in processes)
        raise KeyboardInterrupt
    assert ended([process.pid for process in processes])


def stuck_in_c(message: Message, _: Context) -> Message:
    """Keep all other threads of the process from running."""
    re.match("(a+)+b", 60 * "a")
    return message


def _serve(folder: Path, pipe: Connection, answer: Callable[..., Message]) -> None:
    server.runtimes.local.make_client_app = app_that(answer)
    with with_workers(tiny(), folder / "log") as grid:
        list(grid.pull_messages(query(grid)))
        assert soon(lambda: grid._workers._begin[-1].value >= 2)
        pipe.send([process.pid for process in multiprocessing.active_children()])
        time.sleep(600)


@pytest.mark.parametrize("answer", [stuck, stuck_in_c])
def test_processes_end_with_a_server_that_is_killed(
    tmp_path: Path, answer: Callable[..., Message]
) -> None:
    ours, theirs = multiprocessing.Pipe()
    arguments = (tmp_path, theirs, answer)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=arguments)
    process.start()
    assert ours.poll(60)
    workers = ours.recv()
    assert len(workers) == 2 and all(map(runs, workers))
    process.kill()
    process.join()
    try:
        assert ended(workers)
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("setting", "gpus", "expected"),
    [("cpus=1", 0, 8), ("cpus=3", 0, 2), ("cpus=8", 0, 1), ("gpus=0.5", 2, 4), ("gpus=1", 1, 1)],
)
def test_as_many_at_once_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, setting: str, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert clients_at_once(tiny(f"runtime.client_{setting}").runtime) == expected
