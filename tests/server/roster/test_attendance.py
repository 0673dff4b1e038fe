"""Who is waited for, how long, and what is said meanwhile."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_nodes import (
    TERMS,
    Answer,
    Clock,
    FakeGrid,
    client,
    failing,
    hosting,
    named,
    names,
    silent,
)
from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid
from tiny_runs import left_in, tiny

import server.roster.attendance
from client.app import given_config, make_client_app
from common.errors import UserError
from server.app import prepare
from server.roster.attendance import PATIENCE_SECONDS, POLL_SECONDS, REMIND_SECONDS, Attendance
from server.roster.registry import Registry
from server.run.checkpoint import Checkpoints, read_checkpoint
from server.run.federation import federate
from server.runtimes.local import LocalGrid

BOTH = {"audio": 1, "vision": 1}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.setattr(server.roster.attendance, "time", clock := Clock())
    yield clock
    assert clock.longest <= POLL_SECONDS


# Before the first round ---------------------------------------------------------------------------


def attending(
    grid: FakeGrid, timeout: float = 45.0, ours: bool = False
) -> tuple[Attendance, list[str]]:
    told: list[str] = []
    return Attendance(Registry(TERMS), grid, timeout, told.append, ours), told


def wait(grid: FakeGrid, counts: dict[str, int], timeout: float) -> tuple[Registry, list[str]]:
    attendance, told = attending(grid, timeout)
    attendance.gather(counts)
    return attendance.registry, told


@pytest.mark.parametrize(
    ("nodes", "counts", "missing"),
    [({1: hosting("audio-0")}, BOTH, "vision"), ({}, {"audio": 1}, "audio")],
)
def test_modality_without_a_client_is_named_after_the_timeout(
    nodes: dict[int, Answer], counts: dict[str, int], missing: str
) -> None:
    with pytest.raises(UserError, match=f"'{missing}'.*'modality=\"{missing}\""):
        wait(FakeGrid(nodes), counts, 0.0)


def test_waits_for_nodes_that_join_and_goes_on_when_some_are_missing(clock: Clock) -> None:
    grid = FakeGrid({1: hosting("audio-0")})
    registry, told = wait(grid, {"audio": 3}, 0.0)
    assert names(registry) == ["audio-0"]
    assert told == ["going on without all clients (audio: 1 of 3)"]
    clock.after(8, lambda: grid.nodes.update({2: hosting("audio-1")}))
    registry, told = wait(grid, {"audio": 2}, 60.0)
    assert names(registry) == ["audio-0", "audio-1"]
    assert told == ["waiting for audio: 1 of 2, 57 s left"]
    assert 1008 <= clock.now < 1009
    assert grid.asked == [1, 1, 2]


def test_a_node_that_cannot_take_part_is_told_of_once_and_the_others_waited_for(
    clock: Clock,
) -> None:
    nodes = {1: hosting("audio-0"), 2: hosting(error="data=x.npz does not exist"), 4: silent}
    grid = named(nodes, n1="audio-0", n2="vision-0", n3="vision-9")
    attendance, told = attending(grid)
    clock.after(8, lambda: grid.nodes.update({3: hosting("vision-9")}))
    attendance.gather(BOTH)
    assert names(attendance.registry) == ["audio-0", "vision-9"]
    assert [line for line in told if line.startswith("left out: ")] == [
        "left out: node 4 is registered without a name, and others with one: it is left out until "
        "it is registered with --name",
        "left out: node 2: data=x.npz does not exist",
    ]
    # The first round's record says so too.
    assert [line.split(" ")[1] for line in attendance.quorum(BOTH)[1]] == ["4", "2:"]
    assert attendance.quorum(BOTH) == ([], [])


def test_who_waited_in_vain_is_told_who_was_left_out() -> None:
    grid = FakeGrid({1: hosting("audio-0"), 2: hosting(error="data=x.npz does not exist")})
    expected = r"no client of modality 'vision' .*; left out: node 2: data=x\.npz does not exist$"
    with pytest.raises(UserError, match=expected):
        wait(grid, BOTH, 0)


def test_a_mistake_of_a_node_of_ours_ends_the_wait_at_once() -> None:
    grid = FakeGrid({1: hosting(error="data=x.npz does not exist")})
    attendance, told = attending(grid, 10, ours=True)
    with pytest.raises(UserError, match=r"^node 1: data=x\.npz does not exist$"):
        attendance.gather(BOTH)
    assert told == []


# Before each round --------------------------------------------------------------------------------


def test_a_wait_is_told_of_with_names_and_numbers_and_reminded_of(clock: Clock) -> None:
    attendance, told = attending(FakeGrid({1: hosting("vision-0")}))
    assert attendance.quorum(BOTH) == (["audio: 0 of 1"], [])
    assert told[0] == "waiting for audio: 0 of 1, 42 s left"
    # Once a quarter of a minute, not at every look.
    lefts = [int(line.split(", ")[1].split()[0]) for line in told]
    assert len(told) == 1 + (45 - PATIENCE_SECONDS) // REMIND_SECONDS
    assert [early - late for early, late in pairwise(lefts)] == [15, 15]
    assert clock.now == pytest.approx(1045)


def test_an_absence_is_waited_for_once_until_it_has_ended(clock: Clock) -> None:
    audio, vision = hosting("audio-0"), hosting("vision-0")
    grid = FakeGrid({1: audio, 2: vision})
    attendance, _ = attending(grid)

    def waited() -> tuple[list[str], float]:
        began = clock.now
        short, _ = attendance.quorum(BOTH)
        return short, round(clock.now - began)

    assert waited() == ([], 0)
    del grid.nodes[1]
    assert waited() == (["audio: 0 of 1"], 45)
    assert [waited(), waited()] == [(["audio: 0 of 1"], 0)] * 2
    # Back for one round, and gone again: that is a new absence.
    grid.nodes[3] = audio
    assert waited() == ([], 0)
    del grid.nodes[3]
    assert waited() == (["audio: 0 of 1"], 45)
    # The absence of another does not hang on it.
    del grid.nodes[2]
    both = ["audio: 0 of 1", "vision: 0 of 1"]
    assert [waited(), waited()] == [(both, 45), (both, 0)]


def test_one_given_up_that_is_back_during_another_wait_is_waited_for_again(clock: Clock) -> None:
    audio, grid = hosting("audio-0"), FakeGrid({2: hosting("vision-0")})
    attendance, _ = attending(grid)
    attendance.quorum(BOTH)
    grid.nodes.clear()
    clock.after(10, lambda: grid.nodes.update({3: audio}))
    clock.after(20, grid.nodes.clear)
    clock.after(30, lambda: grid.nodes.update({2: hosting("vision-0")}))
    began = clock.now
    assert attendance.quorum(BOTH) == (["audio: 0 of 1"], [])
    assert clock.now - began == pytest.approx(45), "not ended by the other, at 30"


def test_nodes_that_were_left_out_meanwhile_are_reported_once_and_end_nothing(clock: Clock) -> None:
    grid = FakeGrid({1: hosting("audio-0"), 5: hosting(error="its disk is gone"), 6: failing})
    clock.after(2, lambda: grid.nodes.update({7: hosting("smell-0")}))
    clock.after(3, lambda: grid.nodes.update({8: hosting(client("audio-1", width=9))}))
    attendance, _ = attending(grid)
    short, faults = attendance.quorum(BOTH)
    assert short == ["vision: 0 of 1"]
    assert [line.split(":")[0] for line in faults] == ["node 5", "node 6", "node 7", "node 8"]
    assert "its disk is gone" in faults[0]
    assert attendance.quorum(BOTH) == (short, [])


# In a run -----------------------------------------------------------------------------------------


class Leaving(LocalGrid):
    """Nodes of which some are gone in one round."""

    def __init__(self, app: object, nodes: int, gone: set[int], in_round: int) -> None:
        super().__init__(app, nodes)
        self.gone, self.in_round, self.round = gone, in_round, 1

    def get_node_ids(self) -> list[int]:
        away = self.gone if self.round == self.in_round else set()
        return [node for node in super().get_node_ids() if node not in away]

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.round += any(m.metadata.message_type == MessageType.TRAIN for m in messages)
        return super().push_messages(messages)


def run(folder: Path, grid: Callable[..., Grid], *overrides: str) -> list[dict[str, Any]]:
    config = tiny("rounds=3", "runtime.node_timeout=0", "checkpoint.keep=9", *overrides)
    federate(prepare(config, folder), grid(make_client_app(partial(given_config, config)), 6))
    return left_in(folder)[0]


AUDIO = {3, 4}  # the nodes that host its two clients


@pytest.mark.parametrize(
    ("gone", "least", "rejected"),
    [(AUDIO, 1, []), ({3}, 2, ["audio: 1 updates, and runtime.min_clients=2"])],
)
def test_a_modality_that_is_gone_or_has_too_few_keeps_its_encoder_and_comes_back(
    tmp_path: Path, gone: set[int], least: int, rejected: list[str]
) -> None:
    leaving = partial(Leaving, gone=gone, in_round=2)
    rounds = run(tmp_path, leaving, f"runtime.min_clients={least}")
    assert [record["reused"] for record in rounds] == [[], ["audio"], []]
    assert [record["clients"].get("audio", 0) for record in rounds] == [2, 0, 2]
    assert rounds[1]["rejected"] == rejected
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    first, second, third = (read_checkpoint(checkpoints.path(n)).model for n in (1, 2, 3))
    for modality, keeps in (("audio", True), ("vision", False)):
        name = f"encoders.{modality}.embed.weight"
        assert torch.equal(first[name], second[name]) == keeps
        assert not torch.equal(second[name], third[name])


@pytest.mark.parametrize("least", [1, 2])
def test_an_absence_may_end_the_run_and_says_how_to_go_on(tmp_path: Path, least: int) -> None:
    leaving = partial(Leaving, gone=AUDIO if least == 1 else {3}, in_round=3)
    with pytest.raises(UserError) as raised:
        run(tmp_path, leaving, "runtime.absent=abort", f"runtime.min_clients={least}")
    line = str(raised.value)
    assert line.startswith(f"round 3: too few clients (audio: {least - 1} of {least}) after 0 s; ")
    assert "runtime.absent=reuse" in line
    assert line.endswith(f"; round 2 is kept: go on with resume={tmp_path}")
    assert Checkpoints(tmp_path / "checkpoints").rounds() == [1, 2]
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("since", [1, 2])
def test_a_modality_that_was_never_trained_is_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], since: int
) -> None:
    real = make_client_app(partial(given_config, tiny()))

    def breaking(message: Message, context: Context) -> Message:
        trains = message.metadata.message_type == MessageType.TRAIN
        if trains and context.node_id in AUDIO and int(message.metadata.group_id) >= since:
            raise MemoryError
        return real(message, context)

    rounds = run(tmp_path, lambda _, n: LocalGrid(breaking, n))
    assert [record["reused"] for record in rounds] == [["audio"] * (n >= since) for n in (1, 2, 3)]
    untrained = json.loads((tmp_path / "summary.json").read_text())["untrained"]
    assert untrained == (["audio"] if since == 1 else [])
    said = capsys.readouterr().out
    assert ("\nwarning: audio was never trained" in said) == (since == 1)


def test_replies_that_fail_may_end_the_run_too(tmp_path: Path) -> None:
    real = make_client_app(partial(given_config, tiny()))

    def breaking(message: Message, context: Context) -> Message:
        if context.node_id in AUDIO and message.metadata.group_id == "2":
            raise MemoryError
        return real(message, context)

    with pytest.raises(UserError) as raised:
        run(tmp_path, lambda _, n: LocalGrid(breaking, n), "runtime.absent=abort")
    line = str(raised.value)
    assert line.startswith("round 2: too few updates of audio; ")
    assert "node 3" in line and "MemoryError" in line
    assert line.endswith(f"; round 1 is kept: go on with resume={tmp_path}")
