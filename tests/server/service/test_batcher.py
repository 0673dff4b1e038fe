"""Who waits with whom, for how long, and what becomes of those who fail or leave."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from common.data.dataset import Sequences
from server.service.batcher import PAIRS, Batcher, Record
from server.service.refusal import RefusedError
from server.service.requests import Question


def question(*values: float, name: str = "audio", steps: int = 1) -> Question:
    """Ask about items of one number each, repeated over some steps."""
    lengths = np.full(len(values), steps, dtype=np.int64)
    rows = np.repeat(np.array(values, dtype=np.float32), steps)[:, None]
    items = {name: Sequences(rows, np.cumsum(lengths) - lengths, lengths)}
    return Question(tuple(str(value) for value in values), items)


class Model:
    """Answers each item with its numbers; keeps the batches that it was given.

    While it is closed it keeps whoever asks waiting.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, asked: Question) -> Sequence[Record]:
        self.batches.append(list(asked.ids))
        self.threads.add(threading.current_thread().name)
        assert self.open.wait(10)
        if "13.0" in asked.ids:
            raise ValueError("13")
        return [
            {name: each[number].sum().item() for name, each in asked.items.items()}
            for number in range(len(asked))
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def run(
    model: Model, play: Callable[[Batcher], Awaitable[Any]], **settings: Any
) -> list[tuple[int, float]]:
    """Play with a batcher; return what it told of its batches."""
    told: list[tuple[int, float]] = []

    async def whole() -> None:
        given = {"max_batch": 4, "max_wait": 0.0, "max_queue": 100} | settings
        batcher = Batcher(model, observe=lambda *each: told.append(each), **given)
        async with batcher:
            await asyncio.wait_for(play(batcher), 20)
        assert batcher.held == 0

    asyncio.run(whole())
    return told


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_gets_its_own_answer_in_order() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        asked = [
            question(*(10 * caller + each for each in range(caller + 1))) for caller in range(7)
        ]
        answers = await asyncio.gather(*map(batcher.ask, asked))
        for caller, answer in enumerate(answers):
            assert answer == [{"audio": 10 * caller + each} for each in range(caller + 1)]

    told = run(model, play)
    assert [items for items, _ in told] == model.sizes
    assert sum(model.sizes) == 28 and max(model.sizes) <= 4
    assert all(seconds >= 0 for _, seconds in told)
    assert model.threads == {"predict_0"}


def test_modalities_of_one_are_lacking_for_the_other() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        tasks = [asyncio.create_task(batcher.ask(question(1)))]
        await until(lambda: model.sizes == [1])
        tasks += [
            asyncio.create_task(batcher.ask(question(2, 3))),
            asyncio.create_task(batcher.ask(question(5, name="vision"))),
        ]
        await until(lambda: batcher.held == 4)
        model.open.set()
        assert await tasks[1] == [{"audio": 2, "vision": 0}, {"audio": 3, "vision": 0}]
        assert await tasks[2] == [{"audio": 0, "vision": 5}]
        await tasks[0]

    run(model, play)
    assert model.sizes == [1, 3]


def test_many_items_give_way() -> None:
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
        assert await long == [{"audio": each} for each in range(10)]

    run(model, play)
    # The short one goes with what the long one still has, and before the rest of it.
    assert model.batches[1] == ["50", "4", "5", "6"]
    assert model.sizes == [4, 4, 3]


def test_who_is_alone_does_not_wait() -> None:
    async def play(batcher: Batcher) -> None:
        began = time.monotonic()
        await batcher.ask(question(1))
        assert time.monotonic() - began < 5

    run(Model(), play, max_wait=10.0)


def test_who_is_not_alone_waits_for_what_was_announced() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        with batcher.announced():
            first = asyncio.create_task(batcher.ask(question(1)))
            await asyncio.sleep(0.05)
            assert model.batches == []
            second = asyncio.create_task(batcher.ask(question(2)))
            await asyncio.sleep(0)
        await asyncio.gather(first, second)

    run(model, play, max_wait=10.0)
    assert model.sizes == [2]


def test_nobody_waits_for_longer_than_may_be() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        with batcher.announced():
            began = time.monotonic()
            await batcher.ask(question(1))
            assert 0.05 <= time.monotonic() - began < 5

    run(model, play, max_wait=0.05)


def test_a_full_batch_does_not_wait() -> None:
    async def play(batcher: Batcher) -> None:
        with batcher.announced():
            began = time.monotonic()
            await asyncio.gather(*(batcher.ask(question(each)) for each in range(4)))
            assert time.monotonic() - began < 5

    run(Model(), play, max_wait=10.0)


def test_long_items_go_in_smaller_batches() -> None:
    model = Model()
    steps = int((PAIRS / 2) ** 0.5)  # two fit

    async def play(batcher: Batcher) -> None:
        answer = await batcher.ask(question(1, 2, 3, steps=steps))
        assert [round(each["audio"] / steps) for each in answer] == [1, 2, 3]
        await batcher.ask(question(1, 2, 3, steps=2 * steps))

    run(model, play)
    assert model.sizes == [2, 1, 1, 1, 1]


def test_the_line_is_bounded() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        asked = asyncio.create_task(batcher.ask(question(1, 2, 3)))
        await until(lambda: model.sizes == [3])
        with pytest.raises(RefusedError, match="3 items are waiting, and 5 may") as raised:
            await batcher.ask(question(1, 2, 3))
        assert (raised.value.status, raised.value.headers) == (503, {"Retry-After": "1"})
        more = asyncio.create_task(batcher.ask(question(4, 5)))
        await until(lambda: batcher.held == 5)
        model.open.set()
        await asyncio.gather(asked, more)
        assert len(await batcher.ask(question(*range(5)))) == 5

    run(model, play, max_queue=5)


def test_who_leaves_the_line_is_not_predicted() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        running = asyncio.create_task(batcher.ask(question(1)))
        await until(lambda: model.sizes == [1])
        gone = asyncio.create_task(batcher.ask(question(2)))
        stays = asyncio.create_task(batcher.ask(question(3)))
        await until(lambda: batcher.held == 3)
        running.cancel()
        gone.cancel()
        await until(lambda: batcher.held == 1)
        model.open.set()
        assert await stays == [{"audio": 3}]

    run(model, play)
    assert model.batches == [["1"], ["3"]]


def test_one_that_fails_does_not_fail_the_others(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        with batcher.announced():
            asked = [batcher.ask(question(each)) for each in (12.0, 13.0, 14.0)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0] == [{"audio": 12}] and answers[2] == [{"audio": 14}]
        assert isinstance(answers[1], RefusedError) and answers[1].status == 500
        assert await batcher.ask(question(1)) == [{"audio": 1}]

    run(model, play, max_wait=0.05)
    assert model.sizes == [3, 1, 1, 1, 1]
    assert [record.message for record in caplog.records] == ["the model failed"]


def test_what_still_waits_at_the_end_is_given_up() -> None:
    model = Model()

    async def play(batcher: Batcher) -> None:
        model.open.clear()
        tasks = [asyncio.create_task(batcher.ask(question(each))) for each in range(8)]
        await until(lambda: batcher.held == 8)
        model.open.set()
        await batcher.__aexit__()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(each, asyncio.CancelledError) for each in done)

    async def whole() -> None:
        batcher = Batcher(model, 4, 0.0, 100)
        await batcher.__aenter__()
        await play(batcher)
        assert batcher.held == 0

    asyncio.run(whole())
