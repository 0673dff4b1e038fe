"""Which requests go through the model together, and what happens when one fails or leaves."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException

from common.data.dataset import Sequences
from server.service.batcher import PAIRS, Batcher, Record
from server.service.requests import Question


def question(*values: float, name: str = "audio", steps: int = 1) -> Question:
    """Ask about items of one number each, repeated over some steps."""
    lengths = np.full(len(values), steps, dtype=np.int64)
    rows = np.repeat(np.array(values, dtype=np.float32), steps)[:, None]
    items = {name: Sequences(rows, np.cumsum(lengths) - lengths, lengths)}
    return Question(tuple(str(value) for value in values), items)


class Model:
    """Answers an item with its sums, and records batches; blocks while it is closed."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, asked: Question) -> Sequence[Record]:
        self.batches.append(list(asked.ids))
        assert threading.current_thread().name == "predict_0"
        assert self.open.wait(10)
        if "13.0" in asked.ids:
            raise ValueError("13")
        return [
            {name: part[number].sum().item() for name, part in asked.items.items()}
            for number in range(len(asked))
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def run(
    model: Model, play: Callable[[Batcher], Awaitable[Any]], **settings: Any
) -> list[tuple[int, float]]:
    """Play with a batcher; return what it observed."""
    observed: list[tuple[int, float]] = []

    async def whole() -> None:
        given = {"max_batch": 4, "max_wait": 0.0, "max_queue": 100} | settings
        batcher = Batcher(model, observe=lambda *batch: observed.append(batch), **given)
        async with batcher:
            await asyncio.wait_for(play(batcher), 20)
        assert batcher.held == 0

    asyncio.run(whole())
    return observed


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def occupied(model: Model, batcher: Batcher) -> asyncio.Task[list[Record]]:
    """Have the closed model work on a question, so that what is asked next has to wait."""
    model.open.clear()
    task = asyncio.create_task(batcher.ask(question(0)))
    await until(lambda: model.sizes[-1:] == [1])
    return task


def test_answers_are_in_order() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        asked = [question(*(10 * caller + n for n in range(caller + 1))) for caller in range(7)]
        answers = await asyncio.gather(*map(batcher.ask, asked))
        for caller, answer in enumerate(answers):
            assert answer == [{"audio": 10 * caller + n} for n in range(caller + 1)]

    observed = run(model, play)
    assert [items for items, _ in observed] == model.sizes
    assert sum(model.sizes) == 28 and max(model.sizes) <= 4
    assert all(seconds >= 0 for _, seconds in observed)


def test_items_lack_modalities_that_only_other_requests_have() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        first = await occupied(model, batcher)
        both = asyncio.gather(batcher.ask(question(2, 3)), batcher.ask(question(5, name="vision")))
        await until(lambda: batcher.held == 4)
        model.open.set()
        assert await both == [
            [{"audio": 2, "vision": 0}, {"audio": 3, "vision": 0}],
            [{"audio": 0, "vision": 5}],
        ]
        await first

    run(model, play)
    assert model.sizes == [1, 3]


def test_a_request_of_many_items_gives_way() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        long = asyncio.create_task(batcher.ask(question(*range(10))))
        await until(lambda: model.sizes == [4])
        short = asyncio.create_task(batcher.ask(question(50)))
        await until(lambda: batcher.held == 11)
        model.open.set()
        assert await short == [{"audio": 50}]
        assert not long.done()
        assert await long == [{"audio": n} for n in range(10)]

    run(model, play)
    assert model.batches[1] == ["50"]


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_batch_waits_only_if_others_are_likely_and_it_is_not_full(others: int) -> None:
    """Others are likely where the batch before joined several; three of them fill the batch."""
    model = Model()

    async def play(batcher: Batcher) -> None:
        first = await occupied(model, batcher)
        waiting = [asyncio.create_task(batcher.ask(question(n))) for n in range(others)]
        await until(lambda: batcher.held == 1 + others)
        model.open.set()
        await asyncio.gather(first, *waiting)
        began = time.monotonic()
        await asyncio.gather(*(batcher.ask(question(n)) for n in range(max(1, others))))
        took = time.monotonic() - began
        assert took >= 0.2 if others == 3 else took < 0.2

    run(model, play, max_wait=0.2)
    full = Model()

    async def fill(batcher: Batcher) -> None:
        began = time.monotonic()
        for _ in range(3):
            await asyncio.gather(*(batcher.ask(question(n)) for n in range(4)))
        assert time.monotonic() - began < 5

    run(full, fill, max_wait=10.0)


def test_long_items_go_in_smaller_batches() -> None:
    model = Model()
    steps = int((PAIRS / 2) ** 0.5)  # two fit

    async def play(batcher: Batcher) -> None:
        answer = await batcher.ask(question(1, 2, 3, steps=steps))
        assert [round(record["audio"] / steps) for record in answer] == [1, 2, 3]
        await batcher.ask(question(1, 2, 3, steps=2 * steps))
        await asyncio.gather(*(batcher.ask(question(n, steps=steps)) for n in range(3)))

    run(model, play)
    assert model.sizes == [2, 1, 1, 1, 1, 2, 1]


def test_the_queue_is_bounded() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        asked = asyncio.create_task(batcher.ask(question(1, 2, 3)))
        await until(lambda: model.sizes == [3])
        with pytest.raises(HTTPException, match="3 items are waiting, of at most 5") as raised:
            await batcher.ask(question(1, 2, 3))
        assert (raised.value.status_code, raised.value.headers) == (503, {"Retry-After": "1"})
        more = asyncio.create_task(batcher.ask(question(4, 5)))
        await until(lambda: batcher.held == 5)
        model.open.set()
        await asyncio.gather(asked, more)
        assert len(await batcher.ask(question(*range(5)))) == 5

    run(model, play, max_queue=5)


def test_cancelled_requests_are_not_predicted() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        running = await occupied(model, batcher)
        gone = asyncio.create_task(batcher.ask(question(2)))
        stays = asyncio.create_task(batcher.ask(question(3)))
        await until(lambda: batcher.held == 3)
        running.cancel()
        gone.cancel()
        await until(lambda: batcher.held == 1)
        model.open.set()
        assert await stays == [{"audio": 3}]

    run(model, play)
    assert model.batches == [["0"], ["3"]]


def test_a_request_that_fails_does_not_fail_the_others(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        asked = [batcher.ask(question(value)) for value in (12.0, 13.0, 14.0)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0] == [{"audio": 12}] and answers[2] == [{"audio": 14}]
        assert isinstance(answers[1], HTTPException) and answers[1].status_code == 500
        assert await batcher.ask(question(1)) == [{"audio": 1}]

    run(model, play)
    assert model.sizes == [3, 1, 1, 1, 1]
    (record,) = caplog.records
    assert record.message == "the model failed" and "ValueError: 13" in (record.exc_text or "")


def test_waiting_requests_are_cancelled_at_the_end() -> None:
    model = Model()

    async def whole() -> None:
        batcher = Batcher(model, 4, 0.0, 100)
        await batcher.__aenter__()
        model.open.clear()
        tasks = [asyncio.create_task(batcher.ask(question(n))) for n in range(8)]
        await until(lambda: batcher.held == 8)
        threading.Timer(0.1, model.open.set).start()
        await batcher.__aexit__()
        await asyncio.wait(tasks, timeout=10)
        assert all(task.cancelled() for task in tasks)
        assert batcher.held == 0

    asyncio.run(whole())
