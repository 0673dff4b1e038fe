"""All clients on this machine, without Ray: in this process, or in several worker processes.

The same apps and messages as in Flower's simulation. Workers are copies of this process, which has
the libraries loaded and the data read, so they start at once.
"""

import ctypes
import gc
import itertools
import logging
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
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from client.app import given_config, make_client_app
from client.node import SimulatedNode, hosted_clients
from common.config import Config, Runtime, RuntimeConfig
from common.errors import UserError
from common.training import choose_device
from server.run.federation import federate
from server.run.folder import FLOWER_LOG
from server.run.run import Run

#: Flower stamps messages with this number; a SuperLink would assign it.
_RUN_ID = 1

#: Linux's name for the signal that a process gets when its parent dies, in <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1

#: Seconds that a pull waits for the first reply.
_LOOK = 0.5

#: Messages per worker, its current one included: the next lies ready, and few replies wait.
_AHEAD = 2


class LocalGrid(Grid):
    """Nodes 1, 2, … with partitions 0, 1, …; use as a context manager, which ends the workers.

    Workers answer for the nodes; without them the app answers when a reply is pulled, so that one
    reply at a time is in memory.
    """

    def __init__(self, client_app: ClientApp, nodes: int, workers: "Workers | None" = None) -> None:
        self._client_app, self._nodes, self._workers = client_app, nodes, workers
        self._sent: dict[str, Message] = {}
        self._numbers = itertools.count()
        TaskIdentity.run_id = _RUN_ID
        TaskIdentity.node_id = 0
        TaskIdentity.task_id = _RUN_ID

    def __enter__(self) -> "LocalGrid":
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.kill()

    def set_run(self, run: FlowerRun) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> FlowerRun:
        """The run."""
        return FlowerRun.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes' ids."""
        return list(range(1, self._nodes + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until they are answered; return keys of the replies."""
        keys = []
        for message in messages:
            # Where Flower's own grids put it, so that the reply says what it answers.
            key = message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            self._sent[key] = message
            keys.append(key)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies to some keys that have come, once."""
        if self._workers is not None:
            yield from self._workers.replies(set(message_ids), self._sent)
            return
        for key in list(message_ids):
            if key in self._sent:
                yield self.answer(self._sent.pop(key))

    def answer(self, message: Message) -> Message:
        """Let its node answer a message; nodes keep nothing from one message to the next."""
        node = message.metadata.dst_node_id
        config: UserConfig = {"partition-id": node - 1, "num-partitions": self._nodes}
        try:
            return self._client_app(message, Context(_RUN_ID, node, config, RecordDict(), {}))
        except Exception as error:
            # As in Flower's runtimes, one client's failure does not end the run.
            fault = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}")
            return Message(fault, reply_to=message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies, in the order of the messages."""
        return list(self.pull_messages(self.push_messages(messages)))


class Workers:
    """Processes that answer for the nodes of a `LocalGrid`; Flower logs to a file."""

    def __init__(self, config: Config, nodes: int, log: Path) -> None:
        self._processes = min(clients_at_once(config.runtime), nodes)
        # A process that has used a GPU cannot be copied, nor safely one on macOS.
        forked = sys.platform == "linux" and not torch.cuda.is_available()
        self._context = multiprocessing.get_context("fork" if forked else "spawn")
        if forked:
            # What every copy needs, and would otherwise read and load itself.
            hosted_clients(SimulatedNode(0, nodes), config)
            import_module("torch._dynamo")
        gc.collect()
        gc.freeze()
        self._begin = (config, nodes, log, self._context.Value("i", 0))
        self._others = set(multiprocessing.active_children())
        self._running: dict[str, Future[Message]] = {}
        self._pool, self._broken = self._start(), False

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._processes, self._context, _begin, self._begin)

    def kill(self) -> None:
        """End the processes, whatever they are at."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        ours = set(multiprocessing.active_children()) - self._others
        for process in ours:
            process.kill()
        for process in ours:
            process.join()

    def replies(self, wanted: set[str], sent: dict[str, Message]) -> Iterator[Message]:
        """Wait a moment; yield the wanted replies; take answered and expired ones from `sent`."""
        self._forget_expired(sent)
        self._submit(sent)
        awaited = [future for key, future in self._running.items() if key in wanted]
        wait(awaited, _LOOK, FIRST_COMPLETED)
        for key, future in list(self._running.items()):
            broke = future.done() and isinstance(future.exception(), BrokenProcessPool)
            self._broken |= broke
            if broke and key not in wanted:
                del self._running[key]  # the next process has it
            elif key in wanted and future.done():
                del self._running[key]
                message = sent.pop(key)
                if broke:
                    # All that were under way fail with it: which one broke it is unknown.
                    reason = "the process of a client ended; was there too little memory?"
                    yield Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
                else:
                    yield future.result()
                self._submit(sent)

    def _forget_expired(self, sent: dict[str, Message]) -> None:
        """Drop messages that have expired, unless a worker has begun with them."""
        now = time.time()
        for key, message in list(sent.items()):
            if message.metadata.created_at + message.metadata.ttl < now:
                future = self._running.get(key)
                if future is None or future.done() or future.cancel():
                    self._running.pop(key, None)
                    del sent[key]

    def _submit(self, sent: dict[str, Message]) -> None:
        """Hand messages to the pool in the order in which they were sent."""
        if self._broken and not self._running:
            self._pool, self._broken = self._start(), False
        for key, message in sent.items():
            if self._broken or self._under_way(sent) >= _AHEAD * self._processes:
                return
            if key not in self._running:
                try:
                    self._running[key] = self._pool.submit(_answer, message)
                except BrokenProcessPool:
                    self._broken = True

    def _under_way(self, sent: dict[str, Message]) -> int:
        """Count messages without a reply, and replies that wait; not those of a former round."""
        newest = sent[next(reversed(sent))].metadata.group_id
        return sum(
            not future.done() or sent[key].metadata.group_id == newest
            for key, future in self._running.items()
        )


_nodes: LocalGrid


def _begin(config: Config, nodes: int, log: Path, begun: "Synchronized[int]") -> None:
    """Make this process a worker."""
    global _nodes
    # The user's Ctrl-C is for the server, which then ends this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Also where no thread of this process has its turn.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_server, daemon=True).start()
    log_to_file(log)
    with begun.get_lock():
        place, begun.value = begun.value, begun.value + 1
    if (gpus := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
    _nodes = LocalGrid(make_client_app(partial(given_config, config)), nodes)


def _end_with_server() -> None:
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _answer(message: Message) -> Message:
    return _nodes.answer(message)


def run_locally(run: Run) -> None:
    """Execute a prepared run; ``runtime=processes`` has workers, ``runtime=sequential`` none."""
    prepare_machine(run)
    config, nodes = run.config, len(run.data.clients)
    parallel = config.runtime.name is Runtime.processes
    workers = Workers(config, nodes, run.folder.path / FLOWER_LOG) if parallel else None
    app = make_client_app(partial(given_config, config))
    with LocalGrid(app, nodes, workers) as grid:
        federate(run, grid, ours=True)


def prepare_machine(run: Run) -> None:
    """Send Flower's log to the run's folder.

    Raises `UserError`, and gives the folder up, for resources that this machine does not have.
    """
    runtime, there = run.config.runtime, {"cpus": os.cpu_count() or 1}
    there["gpus"] = torch.cuda.device_count()
    try:
        if runtime.ray.address is None:
            for name, needed in {"cpus": runtime.client_cpus, "gpus": runtime.client_gpus}.items():
                if (needed or 0) > there[name]:
                    raise UserError(
                        f"runtime.client_{name}={needed}: this machine has {there[name]}"
                    )
            choose_device(run.config.client.device)
    except UserError:
        run.give_up()
        raise
    log_to_file(run.folder.path / FLOWER_LOG)


def clients_at_once(runtime: RuntimeConfig) -> int:
    """Return how many clients this machine trains at a time."""
    at_once = max((os.cpu_count() or 1) // runtime.client_cpus, 1)
    if runtime.client_gpus:
        at_once = min(at_once, max(int(torch.cuda.device_count() / runtime.client_gpus), 1))
    return at_once


def log_to_file(path: Path) -> None:
    """Send what Flower and Ray log to a file instead of the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("flwr", "ray"):
        logger = logging.getLogger(name)
        for former in list(logger.handlers):
            logger.removeHandler(former)
            former.close()
        logger.addHandler(handler)
        logger.propagate = False
