"""Which requests go through the model together, and what happens when one fails or leaves."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fastapi import HTTPException

from server.service.batcher import PAIRS, Batcher, Record
from server.service.requests import Item

pytestmark = pytest.mark.anyio


def items(*values: float, steps: int = 1) -> list[Item]:
    """Items of one number each, repeated over some steps."""
    rows = [np.full((steps, 1), value, dtype=np.float32) for value in values]
    return [Item(str(value), {"audio": own}) for value, own in zip(values, rows, strict=True)]


class Model:
    """Predicts the mean of an item, and records batches; blocks while it is closed."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, asked: Sequence[Item]) -> Sequence[Record]:
        self.batches.append([item.id for item in asked])
        assert threading.current_thread().name == "predict_0"
        assert self.open.wait(10)
        if "13" in self.batches[-1]:
            raise ValueError("13")
        return [{"mean": item.features["audio"].mean().item()} for item in asked]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@asynccontextmanager
async def batching(model: Model, max_wait: float = 0.0) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, max_batch=4, max_wait=max_wait, max_queue=100)
    async with batcher.running():
        yield batcher


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def batcher(model: Model) -> AsyncIterator[Batcher]:
    async with batching(model) as batcher:
        yield batcher
    assert batcher.held == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_request_that_leaves_at_once_is_not_predicted(
    model: Model, batcher: Batcher
) -> None:
    task = asyncio.create_task(batcher.ask(items(1)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(batcher.ask(items(2)), task, return_exceptions=True)
    assert model.batches == [["2"]]


async def occupied(model: Model, batcher: Batcher) -> asyncio.Task[list[Record]]:
    """Have the closed model work on an item, so that what is asked next has to wait."""
    model.open.clear()
    task = asyncio.create_task(batcher.ask(items(0)))
    await until(lambda: model.sizes[-1:] == [1])
    return task


async def test_answers_are_in_order(batcher: Batcher, model: Model) -> None:
    asked = [items(*(10 * caller + n for n in range(caller + 1))) for caller in range(7)]
    for caller, answer in enumerate(await asyncio.gather(*map(batcher.ask, asked))):
        assert answer == [{"mean": 10 * caller + n} for n in range(caller + 1)]
    assert sum(model.sizes) == 28 and max(model.sizes) <= 4


async def test_a_request_of_many_items_gives_way(batcher: Batcher, model: Model) -> None:
    model.open.clear()
    long = asyncio.create_task(batcher.ask(items(*range(10))))
    await until(lambda: model.sizes == [4])
    short = asyncio.create_task(batcher.ask(items(50)))
    await until(lambda: batcher.held == 11)
    model.open.set()
    assert await short == [{"mean": 50}]
    assert not long.done()
    assert await long == [{"mean": n} for n in range(10)]
    assert model.batches[1] == ["50"]


@pytest.mark.parametrize("others", [0, 1, 3])
async def test_a_batch_waits_only_if_others_are_likely(model: Model, others: int) -> None:
    """Others are likely where the batch before joined several; three of them fill the batch."""
    async with batching(model, 0.2) as batcher:
        first = await occupied(model, batcher)
        waiting = [asyncio.create_task(batcher.ask(items(n))) for n in range(others)]
        await until(lambda: batcher.held == 1 + others)
        model.open.set()
        await asyncio.gather(first, *waiting)
        began = time.monotonic()
        await asyncio.gather(*(batcher.ask(items(n)) for n in range(max(1, others))))
        took = time.monotonic() - began
    assert took >= 0.2 if others == 3 else took < 0.2


async def test_a_full_batch_does_not_wait(model: Model) -> None:
    began = time.monotonic()
    async with batching(model, 10.0) as batcher:
        for _ in range(3):
            await asyncio.gather(*(batcher.ask(items(n)) for n in range(4)))
    assert time.monotonic() - began < 5


async def test_long_items_go_in_smaller_batches(batcher: Batcher, model: Model) -> None:
    steps = int((PAIRS / 2) ** 0.5)  # two fit
    assert await batcher.ask(items(1, 2, 3, steps=steps)) == [{"mean": n} for n in (1, 2, 3)]
    await batcher.ask(items(1, 2, 3, steps=2 * steps))
    await asyncio.gather(*(batcher.ask(items(n, steps=steps)) for n in range(3)))
    assert model.sizes == [2, 1, 1, 1, 1, 2, 1]


async def test_cancelled_requests_are_not_predicted(batcher: Batcher, model: Model) -> None:
    running = await occupied(model, batcher)
    gone = asyncio.create_task(batcher.ask(items(2)))
    stays = asyncio.create_task(batcher.ask(items(3)))
    await until(lambda: batcher.held == 3)
    running.cancel()
    gone.cancel()
    await until(lambda: batcher.held == 1)
    model.open.set()
    assert await stays == [{"mean": 3}]
    assert model.batches == [["0"], ["3"]]


async def test_a_request_that_fails_does_not_fail_the_others(
    batcher: Batcher, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [batcher.ask(items(value)) for value in (12, 13, 14)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[0] == [{"mean": 12}] and answers[2] == [{"mean": 14}]
    assert isinstance(answers[1], HTTPException) and answers[1].status_code == 500
    assert answers[1].detail == "the model failed; see the log of the service"
    assert await batcher.ask(items(1)) == [{"mean": 1}]
    assert model.sizes == [3, 1, 1, 1, 1]
    (record,) = caplog.records
    assert record.message == "the model failed" and "ValueError: 13" in (record.exc_text or "")


async def test_waiting_requests_are_cancelled_at_the_end(model: Model) -> None:
    async with batching(model) as batcher:
        model.open.clear()
        tasks = [asyncio.create_task(batcher.ask(items(n))) for n in range(8)]
        await until(lambda: batcher.held == 8)
        threading.Timer(0.1, model.open.set).start()
    await asyncio.wait(tasks, timeout=10)
    assert all(task.cancelled() for task in tasks)
    assert batcher.held == 0
