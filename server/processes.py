"""All clients on this machine, as many at once as it has processors for.

The same apps and the same messages as in Flower's simulation, without Ray: the processes are copies
of this one, which has the libraries loaded and the data read, so they begin at once.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import import_module
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.app import given_config, make_client_app
from client.node import SimulatedNode, hosted_clients
from common.config import Config
from server.machine import clients_at_once, log_to_file, prepare_machine
from server.run.federation import Run
from server.run.folder import FLOWER_LOG
from server.sequential import SequentialGrid

#: Seconds that one look for replies waits for the first.
_LOOK = 0.5

#: Messages of a process, with the one that it is at: the next lies ready, and no more replies wait.
_AHEAD = 2


class ProcessGrid(SequentialGrid):
    """Nodes that answer in processes of their own; used as a context, which ends them.

    Parameters
    ----------
    config
        The run's configuration.
    nodes
        How many there are; node k has partition k.
    log
        File for what Flower logs.
    """

    def __init__(self, config: Config, nodes: int, log: Path) -> None:
        app = make_client_app(partial(given_config, config))
        super().__init__(app, nodes)
        self._processes = min(clients_at_once(config.runtime), nodes)
        # A process that has used a GPU cannot be copied, nor safely one on macOS.
        forked = sys.platform == "linux" and not torch.cuda.is_available()
        self._context = multiprocessing.get_context("fork" if forked else "spawn")
        if forked:
            # What every copy needs, and would else read and load for itself.
            hosted_clients(SimulatedNode(0, nodes), config)
            import_module("torch._dynamo")
        self._begin = (config, nodes, log, self._context.Value("i", 0))
        self._others = multiprocessing.active_children()
        self._running: dict[str, Future[Message]] = {}
        self._pool, self._broken = self._start(), False

    def __enter__(self) -> "ProcessGrid":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Nobody waits for what they may still be at.
        ours = [each for each in multiprocessing.active_children() if each not in self._others]
        for process in ours:
            process.kill()
        for process in ours:
            process.join()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._processes, self._context, _begin, self._begin)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Wait a moment for a reply to one of some messages; yield those that are there, once."""
        wanted = set(message_ids)
        self._forget()
        self._submit()
        awaited = [future for key, future in self._running.items() if key in wanted]
        wait(awaited, _LOOK, FIRST_COMPLETED)
        for key, future in list(self._running.items()):
            if key in wanted and future.done():
                del self._running[key]
                yield self._reply(self._sent.pop(key), future)
                self._submit()

    def _forget(self) -> None:
        """Make room: drop messages that have expired, unless a process is at them."""
        now = time.time()
        for key, message in list(self._sent.items()):
            if message.metadata.created_at + message.metadata.ttl < now:
                future = self._running.get(key)
                if future is None or future.done() or future.cancel():
                    self._running.pop(key, None)
                    del self._sent[key]

    def _submit(self) -> None:
        """Hand on messages, in the order in which they were sent."""
        if self._broken and not self._running:
            self._pool, self._broken = self._start(), False
        for key, message in self._sent.items():
            if self._broken or len(self._running) >= _AHEAD * self._processes:
                return
            if key not in self._running:
                try:
                    self._running[key] = self._pool.submit(_answer, message)
                except BrokenProcessPool:
                    self._broken = True

    def _reply(self, message: Message, future: "Future[Message]") -> Message:
        try:
            return future.result()
        except BrokenProcessPool:
            # As are all that were under way: nobody knows whose process it was.
            self._broken = True
            reason = "the process of a client ended; was there too little memory?"
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)


_nodes: SequentialGrid


def _begin(config: Config, nodes: int, log: Path, begun: "Synchronized[int]") -> None:
    """Make this process one that answers."""
    global _nodes
    # The user's Ctrl-C is for the server, which then ends this process.
    for wish in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wish, signal.SIG_IGN)
    threading.Thread(target=_end_with_server, daemon=True).start()
    log_to_file(log)
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    if (gpus := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    _nodes = SequentialGrid(make_client_app(partial(given_config, config)), nodes)


def _end_with_server() -> None:
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _answer(message: Message) -> Message:
    return _nodes.answer(message)


def run_in_processes(run: Run) -> None:
    """Execute a prepared run.

    Raises
    ------
    UserError
        As `server.run.federation.Run.execute`.
    """
    prepare_machine(run)
    log = run.folder.path / FLOWER_LOG
    with run.console, ProcessGrid(run.config, len(run.data.clients), log) as grid:
        run.execute(grid)
