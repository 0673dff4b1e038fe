"""A whole run in this process: the same as over any other grid, and the same again."""

import json
import multiprocessing
from functools import partial
from pathlib import Path

import pytest
from fake_nodes import MemoryGrid
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from tiny_runs import left_in, soon, tiny

from client.app import given_config, make_client_app
from common.config import Config
from common.errors import UserError
from server.app import prepare
from server.evaluate import diagnose
from server.model_file import load_model
from server.run.federation import federate
from server.runtimes.local import LocalGrid, run_locally
from server.runtimes.simulation import join_cluster

CLIENTS = [f"{modality}-{part}" for modality in ("audio", "language", "vision") for part in (0, 1)]


class TwoNodes(MemoryGrid):
    """Another grid: two nodes that host all clients, and whose replies come in backwards."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self.app = app

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in (70, 71)]

    def answers(self, messages: list[Message]) -> list[Message]:
        nodes = [(node := each.metadata.dst_node_id, node - 70) for each in messages]
        contexts = [
            Context(1, node, {"partition-id": part, "num-partitions": 2}, RecordDict(), {})
            for node, part in nodes
        ]
        return list(map(self.app, messages, contexts))[::-1]


@pytest.mark.parametrize("strategy", ["fednova", "few_rounds"])
def test_a_run_is_the_same_in_processes_and_over_other_grids(tmp_path: Path, strategy: str) -> None:
    settings = (f"strategy={strategy}", "strategy.weights=agreement")
    runtimes = {"first": "sequential", "again": "sequential", "workers": "processes"}
    for name, runtime in runtimes.items():
        run_locally(prepare(tiny(*settings, f"runtime={runtime}"), tmp_path / name))
    # Soon, since a thread of the pool may be about to reap one.
    assert soon(lambda: multiprocessing.active_children() == [])
    other = prepare(tiny(*settings), tmp_path / "other")
    federate(other, TwoNodes(make_client_app(partial(given_config, other.config))))
    first, *others = (left_in(tmp_path / name) for name in (*runtimes, "other"))
    assert others == [first] * 3
    assert [record["round"] for record in first[0]] == [1, 2] and first[1]["rounds"] == 2
    for record in first[0]:
        assert list(record["clients"].values()) == [2, 2, 2]
        assert record["rejected"] == []
        assert sorted(record["trust"]) == CLIENTS


def test_a_run_records_what_a_report_shows(tmp_path: Path) -> None:
    run = prepare(tiny("strategy=paper", "client.batch_size=4"), tmp_path)
    run_locally(run)
    for record in map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines()):
        assert list(record["phases"]) == ["configure", "wait", "merge", "evaluate"]
        assert sum(record["phases"].values()) == pytest.approx(record["seconds"], abs=0.1)
        assert list(record["client_losses"]) == list(record["posterior_widths"]) == CLIENTS
        # Of precisions that keep no scale: between the root of the shrinkage and 1.
        for layers in record["posterior_widths"].values():
            assert all(0.5**0.5 - 1e-3 <= width <= 1 for width in layers.values())
    diagnosed = diagnose(*load_model(tmp_path / "model.safetensors"), run.data.test)
    assert left_in(tmp_path)[1]["diagnostics"] == diagnosed


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (UserError("its disk\nis full"), r"its disk\nis full"),
        (RuntimeError("out of\nmemory"), "RuntimeError"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_failure_of_a_client_is_one_line(tmp_path: Path, fault: Exception, reason: str) -> None:
    config, asked = tiny(), []

    def get_config(context: Context) -> Config:
        asked.append(context.node_id)
        if context.node_id == 3 and asked.count(3) > 1:  # not when it describes itself
            raise fault
        return config

    federate(prepare(config, tmp_path), LocalGrid(make_client_app(get_config), 6))
    rounds, summary, _ = left_in(tmp_path)
    assert summary["rounds"] == len(rounds) == 2
    for record in rounds:
        (line,) = record["rejected"]
        assert " (node 3): " in line and reason in line and "\n" not in line
        assert sum(record["clients"].values()) == 5


def test_a_run_that_cannot_start_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    def get_config(context: Context) -> Config:
        raise UserError("no data here")

    with pytest.raises(UserError, match="no data here"):
        federate(
            prepare(tiny("runtime.node_timeout=0"), tmp_path),
            LocalGrid(make_client_app(get_config), 6),
        )
    assert not (tmp_path / "rounds.jsonl").exists()
    for lacking in ("runtime.client_cpus=4096", "runtime.client_gpus=64", "client.device=abacus"):
        with pytest.raises(
            UserError, match=rf"^{lacking}.* (this machine has|cannot be used here)"
        ):
            run_locally(prepare(tiny(lacking), tmp_path))
    for setting in ("address=127.0.0.1:1", "address=nowhere", "address=127.0.0.1:ray"):
        run = prepare(tiny("runtime=simulation", f"runtime.ray.{setting}"), tmp_path)
        with pytest.raises(UserError, match=rf"^runtime\.ray\.{setting}: no Ray cluster answers"):
            join_cluster(run)
    run_locally(prepare(tiny("rounds=1"), tmp_path))
    assert left_in(tmp_path)[1]["rounds"] == 1
    assert "ROUND 1" in (tmp_path / "flower.log").read_text()


# The grid alone ---------------------------------------------------------------------------------


def echo() -> ClientApp:
    """Make an app that says which node and partition it is; node 9 is broken."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 9:
            raise ValueError("node 9 is broken")
        said = ConfigRecord({"node": context.node_id, **context.node_config})
        return Message(RecordDict({"said": said}), reply_to=message)

    return app


def test_each_message_is_answered_by_its_node_in_order() -> None:
    grid = LocalGrid(echo(), 9)
    assert grid.get_node_ids() == list(range(1, 10))
    messages = [
        grid.create_message(RecordDict(), MessageType.TRAIN, node, "1") for node in (3, 1, 3, 9)
    ]
    *replies, fault = grid.send_and_receive(messages, timeout=0.0)
    assert [dict(reply.content["said"]) for reply in replies] == [
        {"node": node, "partition-id": node - 1, "num-partitions": 9} for node in (3, 1, 3)
    ]
    assert [reply.metadata.src_node_id for reply in (*replies, fault)] == [3, 1, 3, 9]
    assert "ValueError: node 9 is broken" in (fault.error.reason or "")


def test_a_reply_is_taken_once_and_rounds_are_not_mixed_up() -> None:
    grid = LocalGrid(echo(), 2)
    messages = [grid.create_message(RecordDict(), MessageType.TRAIN, node, "1") for node in (1, 2)]
    kept, taken = grid.push_messages(messages)
    assert [reply.metadata.src_node_id for reply in grid.pull_messages([taken])] == [2]
    assert list(grid.pull_messages([taken])) == []
    (again,) = grid.push_messages([messages[1]])
    assert len({kept, taken, again}) == 3
    sources = [reply.metadata.src_node_id for reply in grid.pull_messages([kept, taken, again])]
    assert sources == [1, 2]
