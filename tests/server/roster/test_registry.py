"""The registry over a grid in memory: who is asked, who is known, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_nodes import KNOWN, Answer, FakeGrid, client, failing, hosting, named, names, silent
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

import server.roster.registry
from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.messages import ClientDescription, NodeDescription
from common.protocol import encode_description
from common.task import Task
from server.roster.registry import QUERY_AGAIN, Registry

pytestmark = pytest.mark.usefixtures("in_a_task")


def refreshed(nodes: dict[int, Answer]) -> Registry:
    registry = Registry()
    faults = registry.refresh(FakeGrid(nodes), KNOWN, timeout=1)
    if faults:
        raise UserError(faults[0])
    return registry


# --- Who is asked -----------------------------------------------------------------------------


def test_each_node_is_asked_once() -> None:
    grid = FakeGrid({7: hosting("audio-0"), 3: hosting("vision-0", "audio-1"), 9: hosting()})
    registry = Registry()
    for _ in range(3):
        registry.refresh(grid, KNOWN, timeout=1)
    assert sorted(grid.asked) == [3, 7, 9]
    assert names(registry) == ["audio-0", "audio-1", "vision-0"]
    assert [member.node for member in registry.members.values()] == [7, 3, 3]


def test_members_are_in_order_whatever_the_order_of_the_replies() -> None:
    nodes = {1: hosting("vision-0"), 2: hosting("audio-10"), 3: hosting("audio-2")}
    registries = [refreshed(nodes), refreshed(dict(reversed(nodes.items())))]
    for registry in registries:
        assert names(registry) == ["audio-2", "audio-10", "vision-0"]
        assert list(registry.by_modality()) == ["audio", "vision"]
        assert [str(m.client.key) for m in registry.by_modality()["audio"]] == [
            "audio-2",
            "audio-10",
        ]


def test_node_that_joins_is_asked_and_one_that_left_is_forgotten() -> None:
    grid = FakeGrid({1: hosting("audio-0"), 2: hosting("audio-1")})
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=1)
    grid.nodes = {2: grid.nodes[2], 3: hosting("audio-2")}
    registry.refresh(grid, KNOWN, timeout=1)
    assert grid.asked == [1, 2, 3]
    assert names(registry) == ["audio-1", "audio-2"]
    # What has left and comes back is asked again: its data may have changed.
    grid.nodes[1] = hosting(client("audio-0", examples=99))
    registry.refresh(grid, KNOWN, timeout=1)
    assert grid.asked == [1, 2, 3, 1]
    assert registry.members[ClientKey("audio", 0)].client.examples == 99


def test_node_that_does_not_answer_holds_up_nobody_and_is_asked_once() -> None:
    grid = FakeGrid({1: silent, 2: hosting("audio-0")})
    registry = Registry()
    for _ in range(2):
        registry.refresh(grid, KNOWN, timeout=0)
        assert names(registry) == ["audio-0"]
    # Its query is still under way; the network says when it is lost.
    assert grid.asked == [1, 2]


# --- What is refused --------------------------------------------------------------------------


def test_two_nodes_that_claim_one_client_are_named() -> None:
    with pytest.raises(UserError) as raised:
        refreshed({17: hosting("audio-0"), 23: hosting("audio-0")})
    for word in ("17", "23", "audio-0", "part=1"):
        assert word in str(raised.value)


def of_shape(name: str, *shape: int) -> ClientDescription:
    return replace(client(name), moments=FeatureMoments(*np.ones((3, *shape))))


@pytest.mark.parametrize(("one", "other"), [((4,), (6,)), ((5, 4), (7, 4))])
def test_widths_that_differ_are_named_with_their_clients(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    nodes = {
        1: hosting(of_shape("audio-0", *one), of_shape("vision-0", 9)),
        2: hosting(of_shape("audio-1", *other)),
    }
    with pytest.raises(UserError) as raised:
        refreshed(nodes)
    for word in ("audio-0", str(one[0]), "audio-1", str(other[0])):
        assert word in str(raised.value)
    assert "vision" not in str(raised.value)


def another_protocol(message: Message) -> Message:
    content = encode_description(NodeDescription(()))
    content.config_records["about"]["version"] = 99
    return Message(content, reply_to=message)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hosting(error="data=x.npz does not exist"), r"data=x\.npz does not exist"),
        (failing, "no route"),
        (another_protocol, "it speaks another protocol"),
        (lambda m: Message(RecordDict({"x": ConfigRecord()}), reply_to=m), "another protocol"),
    ],
)
def test_node_that_cannot_take_part_is_named_with_the_reason(answer: Answer, reason: str) -> None:
    with pytest.raises(UserError, match=f"node 5: .*{reason}"):
        refreshed({5: answer})


def moments(count: float = 1, mean: float = 1, squares: float = 1) -> FeatureMoments:
    return FeatureMoments(*(np.full(4, float(value)) for value in (count, mean, squares)))


GOOD = client("audio-0", sums=(10, 1, 5))
CLASSES = replace(GOOD, task=Task.classification)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(GOOD, examples=0), "no examples"),
        (replace(GOOD, examples=10**9 + 1), "says that it has 1000000001 examples"),
        (replace(GOOD, label_sums=torch.tensor([9.0, 0, 1])), "labels of 9 items"),
        (replace(GOOD, label_sums=torch.tensor([10.0, 10, 5])), "expected at least 10"),
        (replace(CLASSES, label_sums=torch.zeros(0)), "label sums"),
        (replace(CLASSES, label_sums=torch.tensor([11.0, -1])), "negative count"),
        (replace(GOOD, moments=moments(mean=np.inf)), "cannot be"),
        (replace(GOOD, moments=moments(squares=-1)), "cannot be"),
        (replace(GOOD, moments=moments(count=-1)), "cannot be"),
    ],
)
def test_a_description_must_be_possible(bad: ClientDescription, words: str) -> None:
    refreshed({1: hosting(GOOD)})
    with pytest.raises(UserError, match=f"client audio-0 .*{words}"):
        refreshed({1: hosting(bad)})


def test_bad_node_is_left_out_and_the_others_stay() -> None:
    bad = replace(client("audio-1"), label_sums=torch.full((3,), torch.nan))
    nodes = {1: hosting("audio-0"), 2: hosting(bad, "vision-1"), 3: failing, 4: hosting("smell-0")}
    registry = Registry()
    faults = registry.refresh(FakeGrid(nodes), KNOWN, timeout=1)
    assert names(registry) == ["audio-0"]
    assert [fault.split(":")[0] for fault in faults] == ["node 2", "node 3", "node 4"]
    # They are not asked over and over.
    grid = FakeGrid(nodes)
    assert registry.refresh(grid, KNOWN, timeout=1) == []
    assert grid.asked == []


def test_restarted_node_takes_its_client_over() -> None:
    grid = FakeGrid({1: hosting("audio-0")})
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=1)
    grid.nodes[2] = hosting("audio-0")
    (fault,) = registry.refresh(grid, KNOWN, timeout=1)
    assert "1" in fault and "2" in fault
    assert registry.members[ClientKey("audio", 0)].node == 2


# --- Who is who -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (("vision-0",), "vision-0"),
        (("audio-1",), "audio-1"),
        (("audio-0", "vision-0"), "audio-0, vision-0"),
        ((), "no client"),
    ],
)
def test_node_is_no_other_client_than_it_is_registered_as(
    said: tuple[str, ...], shown: str
) -> None:
    grid = named({7: hosting(*said), 8: hosting("vision-0")}, n7="audio-0", n8="vision-0")
    registry = Registry()
    (line,) = registry.refresh(grid, KNOWN, timeout=1)
    assert line.startswith(f"node 7 is registered as audio-0 and says that it is {shown}: ")
    assert {key: member.node for key, member in registry.members.items()} == {
        ClientKey("vision", 0): 8
    }
    assert registry.refresh(grid, KNOWN, timeout=1) == []


def test_impostor_does_not_take_a_client_over() -> None:
    grid = named({1: hosting("audio-0")}, n1="audio-0", n2="vision-0")
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=1)
    grid.nodes[2] = hosting(client("audio-0", width=9))
    (line,) = registry.refresh(grid, KNOWN, timeout=1)
    assert "registered as vision-0" in line
    assert registry.members[ClientKey("audio", 0)].node == 1


def test_node_without_a_name_is_not_even_asked_where_others_have_one() -> None:
    grid = named({1: hosting("audio-0"), 2: hosting("vision-0")}, n1="audio-0")
    registry = Registry()
    (line,) = registry.refresh(grid, KNOWN, timeout=1)
    assert line.startswith("node 2 is registered without a name")
    assert "--name" in line
    assert (names(registry), grid.asked) == (["audio-0"], [1])
    assert registry.refresh(grid, KNOWN, timeout=1) == []


def test_node_without_a_name_is_left_out_when_the_first_with_one_comes() -> None:
    grid = named({2: hosting("vision-0")}, n1="audio-0")
    registry = Registry()
    assert registry.refresh(grid, KNOWN, timeout=1) == []
    assert names(registry) == ["vision-0"]
    grid.nodes[1] = hosting("audio-0")
    (line,) = registry.refresh(grid, KNOWN, timeout=1)
    assert line.startswith("node 2 ")
    assert names(registry) == ["audio-0"]
    # That federation stays one with names when nobody who has one is there.
    del grid.nodes[1]
    grid.nodes[3] = hosting("audio-0")
    (line,) = registry.refresh(grid, KNOWN, timeout=1)
    assert line.startswith("node 3 ")
    assert names(registry) == []


# --- Pooled sums ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "clients", "outputs", "bins", "pooled"),
    [
        (Task.regression, [(3, 1.5, 4), (2, -1, 7), (10, 0.25, 1)], 1, 0, [15, 0.75, 12]),
        (Task.regression, [(3, 1.5, 4, 1, 2), (10, 0, 1, 4, 6)], 1, 2, [13, 1.5, 5, 5, 8]),
        # Clients may know fewer classes.
        (Task.classification, [(3, 4), (1, 0, 2)], 4, 0, [4, 4, 2, 0]),
        (Task.multilabel, [(5, 1, 2), (3, 1, 0)], 2, 0, [8, 2, 2]),
    ],
)
def test_label_sums_are_pooled(
    task: Task, clients: list[tuple[float, ...]], outputs: int, bins: int, pooled: list[float]
) -> None:
    described = [client(f"audio-{n}", sums=sums, task=task) for n, sums in enumerate(clients)]
    assert refreshed({1: hosting(*described)}).label_sums(task, outputs, bins).tolist() == pooled


@pytest.mark.parametrize(
    ("task", "sums", "own", "outputs", "bins"),
    [
        (Task.classification, (1.0, 0.0, 2.0), Task.classification, 2, 0),
        (Task.regression, (1.0, 2.0), Task.regression, 1, 0),
        (Task.multilabel, (5.0, 1.0, 2.0), Task.multilabel, 3, 0),
        (Task.multilabel, (5.0, 1.0, 2.0), Task.multilabel, 1, 0),
        *((Task.regression, (10, 0.25, 1, 4, 6), Task.regression, 1, bins) for bins in (0, 1, 3)),
        # Sums that would fit, of another task.
        (Task.regression, (18.0, 22.6, 39.7), Task.classification, 3, 0),
        (Task.regression, (18.0, 22.6, 39.7), Task.multilabel, 2, 0),
    ],
)
def test_labels_that_the_server_does_not_know_are_refused_with_their_client(
    task: Task, sums: tuple[float, ...], own: Task, outputs: int, bins: int
) -> None:
    registry = refreshed({1: hosting(client("audio-7", sums=sums, task=task))})
    with pytest.raises(UserError, match="client audio-7 has labels for"):
        registry.label_sums(own, outputs, bins)


def test_moments_are_pooled_by_modality() -> None:
    clients = [
        client("audio-0", examples=5),
        client("audio-11", examples=9),
        client("vision-0", width=2),
    ]
    pooled = refreshed({1: hosting(*clients)}).moments()
    assert set(pooled) == {"audio", "vision"}
    rows = np.concatenate(
        [np.random.default_rng([n, length]).normal(size=(n, 4)) for n, length in ((5, 7), (9, 8))]
    )
    np.testing.assert_allclose(pooled["audio"].count, 14)
    np.testing.assert_allclose(pooled["audio"].mean, rows.mean(axis=0))
    np.testing.assert_allclose(pooled["audio"].std, rows.std(axis=0))
    np.testing.assert_allclose(pooled["vision"].mean, clients[2].moments.mean)


# --- Nodes that are slow to answer --------------------------------------------------------------


def test_a_description_that_comes_late_is_taken_in_and_nobody_is_asked_twice() -> None:
    grid = FakeGrid({1: hosting("audio-0"), 2: hosting("vision-0")})
    slow = grid.pull_messages
    held = [True]
    grid.pull_messages = lambda keys: slow(list(keys)[:1] if held[0] else keys)
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=0)
    assert names(registry) == ["audio-0"]
    held[0] = False
    registry.refresh(grid, KNOWN, timeout=0)
    assert names(registry) == ["audio-0", "vision-0"]
    assert grid.asked == [1, 2]


def test_a_node_that_lost_its_query_is_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(server.roster.registry.time, "monotonic", lambda: now[0])
    grid, registry = FakeGrid({1: silent}), Registry()
    for seconds, asked in ((0.0, 1), (QUERY_AGAIN - 1, 1), (1.0, 2)):
        now[0] += seconds
        if asked == 2:
            grid.nodes[1] = hosting("audio-0")
        registry.refresh(grid, KNOWN, timeout=0)
        assert len(grid.asked) == asked
    assert names(registry) == ["audio-0"]


def test_a_node_that_answers_two_queries_is_taken_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(server.roster.registry.time, "monotonic", lambda: now[0])
    grid, registry = FakeGrid({1: hosting("audio-0")}), Registry()
    pull, held = grid.pull_messages, [True]
    grid.pull_messages = lambda keys: [] if held[0] else pull(keys)
    registry.refresh(grid, KNOWN, timeout=0)
    now[0] += QUERY_AGAIN
    registry.refresh(grid, KNOWN, timeout=0)
    held[0] = False
    assert registry.refresh(grid, KNOWN, timeout=0) == []
    assert grid.asked == [1, 1] and names(registry) == ["audio-0"]


def test_a_node_that_was_not_there_to_be_asked_is_asked_again() -> None:
    gone = [True]

    def answer(message: Message) -> Message:
        if gone[0]:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
        return hosting("audio-0")(message)

    grid, registry = FakeGrid({1: answer}), Registry()
    assert registry.refresh(grid, KNOWN, timeout=1) == []
    assert names(registry) == []
    gone[0] = False
    assert registry.refresh(grid, KNOWN, timeout=1) == []
    assert names(registry) == ["audio-0"]
    assert grid.asked == [1, 1]
