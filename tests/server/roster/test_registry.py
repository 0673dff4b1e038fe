"""The registry over a grid in memory: who is asked, who is known, what is refused."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_nodes import TERMS, Answer, Clock, client, failing, hosting, named, silent
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

import server.roster.registry
from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.messages import ClientDescription, NodeDescription
from common.model.linear import LinearSums
from common.protocol import encode_description
from common.task import Task
from server.roster.registry import QUERY_AGAIN, Registry


class Roster:
    """A registry and its nodes, of which some are registered, as in ``n7="audio-0"``."""

    def __init__(self, nodes: dict[int, Answer], **registered: str) -> None:
        self.grid, self.registry = named(nodes, **registered), Registry(TERMS)

    def faults(self, timeout: float = 1) -> list[str]:
        """Look at the nodes once more."""
        return [str(error) for error in self.registry.refresh(self.grid, timeout)]

    @property
    def nodes(self) -> dict[str, int]:
        """The clients that are known, in order, and their nodes."""
        return {str(key): member.node for key, member in self.registry.members.items()}


def known(*clients: ClientDescription) -> Registry:
    roster = Roster({1: hosting(*clients)})
    assert roster.faults() == []
    return roster.registry


# --- Who is asked -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(7, 3, 9), (9, 3, 7)])
def test_nodes_are_asked_once_and_members_are_in_order(order: tuple[int, ...]) -> None:
    nodes = {7: hosting("audio-10"), 3: hosting("vision-0", "audio-2"), 9: hosting()}
    roster = Roster({node: nodes[node] for node in order})
    for _ in range(3):
        assert roster.faults() == []
    assert sorted(roster.grid.asked) == [3, 7, 9]
    assert list(roster.nodes.items()) == [("audio-2", 3), ("audio-10", 7), ("vision-0", 3)]
    grouped = roster.registry.by_modality()
    parts = {name: [member.client.key.part for member in each] for name, each in grouped.items()}
    assert list(parts.items()) == [("audio", [2, 10]), ("vision", [0])]


def test_node_that_joins_is_asked_and_one_that_left_is_forgotten() -> None:
    roster = Roster({1: hosting("audio-0"), 2: hosting("audio-1")})
    roster.faults()
    del roster.grid.nodes[1]
    roster.grid.nodes[3] = hosting("audio-2")
    roster.faults()
    assert (roster.grid.asked, list(roster.nodes)) == ([1, 2, 3], ["audio-1", "audio-2"])
    # What has left and comes back is asked again: its data may have changed.
    roster.grid.nodes[1] = hosting(client("audio-0", examples=99))
    roster.faults()
    assert roster.grid.asked == [1, 2, 3, 1]
    assert roster.registry.members[ClientKey("audio", 0)].client.examples == 99


def test_node_that_does_not_answer_holds_up_nobody_and_is_asked_once() -> None:
    roster = Roster({1: silent, 2: hosting("audio-0")})
    for _ in range(2):
        roster.faults(timeout=0)
        assert list(roster.nodes) == ["audio-0"]
    # Its query is still under way; the network says when it is lost.
    assert roster.grid.asked == [1, 2]


def test_node_that_never_answers_is_waited_for_when_it_is_asked_and_not_in_every_round() -> None:
    roster, times = Roster({1: silent, 2: hosting("audio-0")}), []
    for _ in range(3):
        began = time.monotonic()
        roster.faults(timeout=0.3)
        times.append(time.monotonic() - began)
    assert times[0] >= 0.3 > max(times[1:])


# --- What is refused --------------------------------------------------------------------------


def another_protocol(message: Message) -> Message:
    content = encode_description(NodeDescription(()))
    content.config_records["about"]["version"] = 99
    return Message(content, reply_to=message)


def of_shape(name: str, *shape: int) -> Answer:
    return hosting(replace(client(name), moments=FeatureMoments(*np.ones((3, *shape)))))


def nonsense(message: Message) -> Message:
    return Message(RecordDict({"x": ConfigRecord()}), reply_to=message)


def impossible(**fields: object) -> dict[int, Answer]:
    return {5: hosting(replace(client("audio-0"), **fields))}


def moments(count: float = 1, mean: float = 1, squares: float = 1) -> FeatureMoments:
    return FeatureMoments(*(np.full(4, float(value)) for value in (count, mean, squares)))


def linear(mean: float = 1.0, square: float = 5.0) -> LinearSums:
    """Sums that fit the label sums of a client of ten items, by default."""
    means = torch.tensor([0, 0, 0, 0, mean], dtype=torch.float64)
    squares = torch.tensor([3, 3, 3, 3, square], dtype=torch.float64)
    return LinearSums(10.0, means, torch.diag(squares), 4)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({17: hosting("audio-0"), 23: hosting("audio-0")}, "17 23 audio-0 part=1"),
        ({5: of_shape("audio-1", 6)}, "node 5: audio is 6 wide at client audio-1 but 4 wide in"),
        ({5: of_shape("audio-1", 7, 4)}, "audio 7 at client audio-1 but 4 wide in"),
        (impossible(task=Task.multilabel), "client audio-0 labels for task=multilabel regression"),
        (impossible(label_sums=torch.ones(4)), "client audio-0 labels for 4 outputs for 3"),
        ({5: hosting(error="data=x.npz does not exist")}, "node 5: data=x.npz does not exist"),
        ({5: failing}, "node 5: no route"),
        ({5: another_protocol}, "node 5: it speaks another protocol"),
        ({5: nonsense}, "node 5: another protocol"),
        (impossible(examples=0), "client audio-0 no examples"),
        (impossible(examples=10**9 + 1), "client audio-0 has 1000000001 examples"),
        (impossible(label_sums=torch.tensor([9.0, 0, 1])), "client audio-0 labels of 9 items"),
        (impossible(moments=moments(mean=np.inf)), "client audio-0 cannot be"),
        (impossible(moments=moments(squares=-1)), "client audio-0 cannot be"),
        (impossible(moments=moments(count=-1)), "client audio-0 cannot be"),
        (impossible(linear=linear(mean=0.2)), "client audio-0 linear expert disagree"),
        (impossible(linear=linear(square=-1)), "client audio-0 linear expert semi-definite"),
    ],
)
def test_nodes_that_cannot_take_part_are_named_and_why(
    nodes: dict[int, Answer], words: str
) -> None:
    (line,) = Roster({**nodes, 9: hosting("vision-0")}).faults()
    assert all(word in line for word in words.split()) and "vision" not in line


def test_bad_node_is_left_out_and_the_others_stay() -> None:
    bad = replace(client("audio-1"), examples=0)
    nodes = {1: hosting("audio-0"), 2: hosting(bad, "vision-1"), 3: failing, 4: hosting("smell-0")}
    roster = Roster(nodes)
    faults = roster.faults()
    assert list(roster.nodes) == ["audio-0"]
    assert [fault.split(":")[0] for fault in faults] == ["node 2", "node 3", "node 4"]
    # They are not asked over and over.
    assert roster.faults() == []
    assert len(roster.grid.asked) == len(nodes)


# --- Who is who -------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["vision-0", "audio-1", "audio-0, vision-0", "no client"])
def test_node_is_no_other_client_than_it_is_registered_as(said: str) -> None:
    claimed = [] if said == "no client" else said.split(", ")
    nodes = {7: hosting(*claimed), 8: hosting("vision-0")}
    roster = Roster(nodes, n7="audio-0", n8="vision-0")
    (line,) = roster.faults()
    assert line.startswith(f"node 7 is registered as audio-0 and says that it is {said}: ")
    assert roster.nodes == {"vision-0": 8}
    assert roster.faults() == []


@pytest.mark.parametrize(
    ("registered", "words", "holder"),
    [
        ({}, "nodes 1 and 2 both say that they are audio-0; node 2 is left out part=1", 1),
        ({"n1": "audio-0", "n2": "vision-0"}, "node 2 is registered as vision-0", 1),
        ({"n1": "audio-0", "n2": "audio-0"}, "node 2 takes the place of node 1", 2),
    ],
)
def test_of_two_that_claim_a_client_the_registered_name_decides_or_who_came_first(
    registered: dict[str, str], words: str, holder: int
) -> None:
    roster = Roster({1: hosting("audio-0")}, **registered)
    assert roster.faults() == []
    roster.grid.nodes[2] = hosting(client("audio-0", examples=9))
    (line,) = roster.faults()
    assert all(word in line for word in words.split())
    assert roster.nodes == {"audio-0": holder}


def test_a_claimant_may_have_the_client_when_the_other_node_is_gone() -> None:
    roster = Roster({1: hosting("audio-0")})
    roster.faults()
    roster.grid.nodes[2] = hosting("audio-0")
    assert len(roster.faults()) == 1 and roster.faults() == []
    del roster.grid.nodes[1]
    assert roster.faults() == []
    assert roster.nodes == {"audio-0": 2}
    assert roster.grid.asked == [1, 2, 2]


def test_node_without_a_name_is_not_even_asked_where_others_have_one() -> None:
    roster = Roster({1: hosting("audio-0"), 2: hosting("vision-0")}, n1="audio-0")
    (line,) = roster.faults()
    assert line.startswith("node 2 is registered without a name") and "--name" in line
    assert (roster.nodes, roster.grid.asked) == ({"audio-0": 1}, [1])
    assert roster.faults() == []


def test_node_without_a_name_is_left_out_when_the_first_with_one_comes() -> None:
    roster = Roster({2: hosting("vision-0")}, n1="audio-0")
    assert roster.faults() == []
    assert roster.nodes == {"vision-0": 2}
    roster.grid.nodes[1] = hosting("audio-0")
    (line,) = roster.faults()
    assert line.startswith("node 2 ")
    assert roster.nodes == {"audio-0": 1}
    # That federation stays one with names when nobody who has one is there.
    del roster.grid.nodes[1]
    roster.grid.nodes[3] = hosting("audio-0")
    (line,) = roster.faults()
    assert line.startswith("node 3 ")
    assert roster.nodes == {}


# --- Pooled sums ------------------------------------------------------------------------------


def test_sums_for_linear_experts_are_let_go_of_and_not_taken_in_again() -> None:
    with_sums = replace(client("audio-0"), linear=linear())
    roster = Roster({1: hosting(with_sums)})
    assert roster.faults() == []
    member = roster.registry.members[with_sums.key]
    assert member.client.linear is not None and torch.equal(
        member.client.linear.scatter, linear().scatter
    )
    roster.registry.forget_linear()
    roster.grid.nodes[2] = hosting(replace(client("audio-1"), linear=linear()))
    assert roster.faults() == [] and len(roster.nodes) == 2
    assert all(each.client.linear is None for each in roster.registry.members.values())


# --- Nodes that are slow to answer --------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(server.roster.registry, "time", clock := Clock())
    return clock


@pytest.mark.parametrize(("waited", "asked"), [(0, 1), (QUERY_AGAIN - 1, 1), (QUERY_AGAIN, 2)])
def test_a_late_description_is_taken_in_once_and_asked_for_again_after_a_while(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, waited: float, asked: int
) -> None:
    roster = Roster({1: hosting("audio-0"), 2: hosting("vision-0")})
    pull = roster.grid.pull_messages
    with monkeypatch.context() as patch:
        patch.setattr(roster.grid, "pull_messages", lambda keys: pull(list(keys)[:1]))
        roster.faults(timeout=0)
        assert list(roster.nodes) == ["audio-0"]
        patch.setattr(roster.grid, "pull_messages", lambda _: [])
        clock.now += waited
        roster.faults(timeout=0)
    assert roster.faults(timeout=0) == []
    assert list(roster.nodes) == ["audio-0", "vision-0"]
    assert roster.grid.asked == [1, 2, 2][: 1 + asked]


def test_a_node_that_lost_its_query_answers_the_next(clock: Clock) -> None:
    roster = Roster({1: silent})
    roster.faults(timeout=0)
    roster.grid.nodes[1] = hosting("audio-0")
    clock.now += QUERY_AGAIN
    roster.faults(timeout=0)
    assert (list(roster.nodes), roster.grid.asked) == (["audio-0"], [1, 1])


def test_a_node_that_was_not_there_to_be_asked_is_asked_again() -> None:
    gone = Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")
    roster = Roster({1: lambda message: Message(gone, reply_to=message)})
    assert (roster.faults(), roster.nodes) == ([], {})
    roster.grid.nodes[1] = hosting("audio-0")
    assert (roster.faults(), roster.nodes) == ([], {"audio-0": 1})
    assert roster.grid.asked == [1, 1]


# --- The extractors of features ---------------------------------------------------------------


def from_extractor(name: str, extractor: str) -> Answer:
    return hosting(replace(client(name), extractor=extractor))


def test_sites_of_one_modality_whose_extractors_differ_are_refused_by_name() -> None:
    roster = Roster(
        {
            1: from_extractor("audio-0", "log-mel 1 (aaa)"),
            2: from_extractor("audio-1", "log-mel 1 (bbb)"),
            3: from_extractor("audio-2", "log-mel 1 (aaa)"),
            4: from_extractor("vision-0", "video-onnx 1 (ccc)"),
            5: hosting("audio-3"),  # does not say
        }
    )
    assert roster.faults() == [
        "node 2: client audio-1 has features of the extractor log-mel 1 (bbb), and client audio-0 "
        "of log-mel 1 (aaa): all sites of a modality must use the same; extract again as the "
        "other's extractor.json says"
    ]
    assert list(roster.nodes) == ["audio-0", "audio-2", "audio-3", "vision-0"]
    said = {"audio": "log-mel 1 (aaa)", "vision": "video-onnx 1 (ccc)"}
    assert roster.registry.extractors == said


def test_the_extractor_of_the_evaluation_data_counts() -> None:
    roster = Roster(
        {1: from_extractor("audio-0", "log-mel 1 (aaa)"), 2: from_extractor("vision-0", "b")}
    )
    extractors = {"audio": "log-mel 1 (bbb)"}
    roster.registry.terms = replace(TERMS, extractors=extractors)
    (fault,) = roster.faults()
    assert "log-mel 1 (aaa), and the evaluation data of log-mel 1 (bbb): " in fault
    assert list(roster.nodes) == ["vision-0"]
    assert roster.registry.extractors == {"audio": "log-mel 1 (bbb)", "vision": "b"}


def test_a_site_may_come_back_with_another_extractor_where_it_is_alone() -> None:
    roster = Roster({1: from_extractor("audio-0", "old")}, n1="audio-0", n2="audio-0")
    assert roster.faults() == []
    roster.grid.nodes[2] = from_extractor("audio-0", "new")
    (told,) = roster.faults()
    assert "takes the place" in told and roster.registry.extractors == {"audio": "new"}
