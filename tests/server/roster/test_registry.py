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
from common.messages import NodeDescription
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


def test_client_may_move_to_a_new_node_when_its_old_one_is_gone() -> None:
    grid = FakeGrid({1: hosting("audio-0")})
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=1)
    grid.nodes = {2: hosting("audio-0")}
    registry.refresh(grid, KNOWN, timeout=1)
    assert registry.members[ClientKey("audio", 0)].node == 2


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


def test_widths_that_differ_are_named_with_their_clients() -> None:
    nodes = {
        1: hosting(client("audio-0", width=4), client("vision-0", width=9)),
        2: hosting(client("audio-1", width=6)),
    }
    with pytest.raises(UserError) as raised:
        refreshed(nodes)
    for word in ("audio-0", "4", "audio-1", "6"):
        assert word in str(raised.value)
    assert "vision" not in str(raised.value)


def test_tables_of_other_lengths_are_named_with_their_clients() -> None:
    tables = []
    for name, steps in (("audio-0", 5), ("audio-1", 7)):
        plain = client(name)
        tables.append(replace(plain, moments=FeatureMoments(*np.ones((3, steps, 4)))))
    with pytest.raises(UserError) as raised:
        refreshed({1: hosting(tables[0]), 2: hosting(tables[1])})
    for word in ("audio-0", "5", "audio-1", "7"):
        assert word in str(raised.value)


def test_widths_may_differ_between_modalities() -> None:
    registry = refreshed(
        {1: hosting(client("audio-0", width=4)), 2: hosting(client("vision-0", width=9))}
    )
    assert len(registry.members) == 2


def test_node_with_a_mistake_is_named_with_it() -> None:
    with pytest.raises(UserError, match=r"node 5: data=x\.npz does not exist"):
        refreshed({5: hosting(error="data=x.npz does not exist")})


def test_node_that_fails_is_named_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"node 5.*no route"):
        refreshed({5: failing})


def test_node_of_another_protocol_is_named() -> None:
    content = encode_description(NodeDescription(()))
    content.config_records["about"]["version"] = 99
    for strange in (content, RecordDict({"fitres": ConfigRecord({"x": 1})})):
        with pytest.raises(UserError, match="node 5: it speaks another protocol"):
            refreshed({5: lambda message, strange=strange: Message(strange, reply_to=message)})


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


@pytest.mark.parametrize(
    "moments",
    [
        FeatureMoments(np.ones(4), np.full(4, np.inf), np.ones(4)),
        FeatureMoments(np.ones(4), np.ones(4), -np.ones(4)),
        FeatureMoments(-np.ones(4), np.ones(4), np.ones(4)),
    ],
    ids=["infinite mean", "negative squares", "negative count"],
)
def test_moments_that_cannot_be_are_refused_with_their_client(moments: FeatureMoments) -> None:
    with pytest.raises(UserError, match=r"audio-0.*cannot be"):
        refreshed({1: hosting(replace(client("audio-0"), moments=moments))})


def test_restarted_node_takes_its_client_over() -> None:
    grid = FakeGrid({1: hosting("audio-0")})
    registry = Registry()
    registry.refresh(grid, KNOWN, timeout=1)
    grid.nodes[2] = hosting("audio-0")
    (fault,) = registry.refresh(grid, KNOWN, timeout=1)
    assert "1" in fault and "2" in fault
    assert registry.members[ClientKey("audio", 0)].node == 2


# --- Who is who -------------------------------------------------------------------------------


def test_node_may_be_the_client_that_it_is_registered_as() -> None:
    grid = named({1: hosting("audio-0"), 2: hosting("vision-3")}, n1="audio-0", n2="vision-3")
    registry = Registry()
    assert registry.refresh(grid, KNOWN, timeout=1) == []
    assert names(registry) == ["audio-0", "vision-3"]


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


def test_label_sums_of_numbers_are_pooled() -> None:
    registry = refreshed(
        {
            1: hosting(client("audio-0", sums=(3, 1.5, 4)), client("vision-0", sums=(2, -1, 7))),
            2: hosting(client("audio-1", sums=(10, 0.25, 1))),
        }
    )
    assert registry.label_sums(Task.regression, 1).tolist() == [15, 0.75, 12]


def test_label_counts_of_classes_are_pooled_though_clients_know_fewer() -> None:
    registry = refreshed(
        {
            1: hosting(client("audio-0", sums=(3, 4), task=Task.classification)),
            2: hosting(client("audio-1", sums=(1, 0, 2), task=Task.classification)),
        }
    )
    assert registry.label_sums(Task.classification, 4).tolist() == [4, 4, 2, 0]
    assert registry.label_sums(Task.classification, 3).tolist() == [4, 4, 2]


@pytest.mark.parametrize(
    ("task", "outputs", "sums"),
    [
        (Task.classification, 2, (1.0, 0.0, 2.0)),
        (Task.regression, 1, (1.0, 2.0)),
        (Task.multilabel, 3, (5.0, 1.0, 2.0)),
        (Task.multilabel, 1, (5.0, 1.0, 2.0)),
    ],
)
def test_labels_that_the_server_does_not_know_are_refused_with_their_client(
    task: Task, outputs: int, sums: tuple[float, ...]
) -> None:
    registry = refreshed({1: hosting(client("audio-7", sums=sums, task=task))})
    with pytest.raises(UserError, match="audio-7"):
        registry.label_sums(task, outputs)


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


def test_label_sums_of_numbers_are_pooled_with_their_bins() -> None:
    sums = [(3, 1.5, 4, 1, 2), (10, 0.25, 1, 4, 6)]
    registry = refreshed(
        {node: hosting(client(f"audio-{node}", sums=each)) for node, each in enumerate(sums)}
    )
    assert registry.label_sums(Task.regression, 1, bins=2).tolist() == [13, 1.75, 5, 5, 8]


@pytest.mark.parametrize("bins", [0, 1, 3])
def test_numbers_counted_in_other_bins_are_refused_with_their_client(bins: int) -> None:
    registry = refreshed({1: hosting(client("audio-7", sums=(10, 0.25, 1, 4, 6)))})
    with pytest.raises(UserError, match="client audio-7"):
        registry.label_sums(Task.regression, 1, bins)


@pytest.mark.parametrize(("task", "outputs"), [(Task.classification, 3), (Task.multilabel, 2)])
def test_labels_of_another_task_are_refused_though_their_sums_would_fit(
    task: Task, outputs: int
) -> None:
    registry = refreshed({1: hosting(client("audio-7", sums=(18.0, 22.6, 39.7)))})
    with pytest.raises(UserError, match="audio-7 has labels for task=regression"):
        registry.label_sums(task, outputs)


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
