"""Which clients a node hosts, and how it describes them."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from client.node import (
    DeployedNode,
    Node,
    NodeValue,
    SimulatedNode,
    client_data,
    describe,
    hosted_clients,
    parse_node,
)
from common.clients import ClientKey
from common.config import Config, compose_config
from common.data.federation import load_joint
from common.errors import UserError

SMALL = ("dataset.num_items=120", "dataset.num_speakers=24", "clients.default=2")


@cache
def synthetic(*overrides: str) -> Config:
    return compose_config("config", [*SMALL, *overrides])


def npz(path: Path, *overrides: str) -> Config:
    return compose_config("config", ["dataset=npz", f"dataset.path={path}", *overrides])


def write_site(path: Path, items: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "label": rng.normal(size=items).astype(np.float32),
        "audio": rng.normal(size=(items, 3, 5)).astype(np.float32),
    }
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"partition-id": 2, "num-partitions": 3}, SimulatedNode(2, 3)),
        ({"modality": "audio"}, DeployedNode(ClientKey("audio", 0), None)),
        ({"modality": "audio_2", "part": 4}, DeployedNode(ClientKey("audio_2", 4), None)),
        (
            {"modality": "vision", "part": 1, "data": "/x/site one.npz"},
            DeployedNode(ClientKey("vision", 1), "/x/site one.npz"),
        ),
        # What Flower itself sets does not hide what the site says.
        (
            {"modality": "audio", "partition-id": 0, "num-partitions": 3},
            DeployedNode(ClientKey("audio", 0), None),
        ),
    ],
)
def test_configuration_is_read(settings: dict[str, NodeValue], expected: Node) -> None:
    assert parse_node(settings) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["modality"]),
        ({"partition-id": 0}, ["lacks modality"]),
        ({"modality": "audio", "parts": 1}, ["parts", "modality, part, data"]),
        ({"modality": 3}, ["modality=3", "str", '"text"']),
        ({"modality": "audio", "part": "1"}, ["part='1'", "int", "part=0"]),
        ({"modality": "two words"}, ["'two words'"]),
        ({"modality": "audio", "part": -1}, ["part"]),
        ({"modality": "audio", "data": ""}, ["data"]),
        ({"partition-id": 3, "num-partitions": 3}, ["partition-id"]),
    ],
)
def test_mistake_in_the_configuration_is_one_line_that_names_it(
    settings: dict[str, NodeValue], words: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        parse_node(settings)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("nodes", [4, 11])
def test_simulated_nodes_share_all_clients_each_once(nodes: int) -> None:
    config = synthetic("clients.audio=3")
    hosted = [
        key
        for partition in range(nodes)
        for key in hosted_clients(SimulatedNode(partition, nodes), config)
    ]
    assert len(hosted) == len(set(hosted)) == 7
    assert set(hosted) == set(load_joint(config).clients)


def test_same_client_has_the_same_data_on_any_node() -> None:
    config, key = synthetic(), ClientKey("audio", 1)
    joint = load_joint(config)
    items = joint.dealt[key]
    for node in (SimulatedNode(0, 1), SimulatedNode(2, 5), DeployedNode(key, None)):
        data = client_data(node, key, config)
        np.testing.assert_array_equal(data.labels, joint.items.labels[items])
        assert sorted([*data.train, *data.validation]) == list(range(len(items)))
        assert data.modality == "audio"


def test_site_with_a_file_does_not_read_another_modality_from_it(tmp_path: Path) -> None:
    arrays = write_site(tmp_path / "site.npz")
    np.savez(tmp_path / "site.npz", **arrays, vision=arrays["audio"])
    node = DeployedNode(ClientKey("audio", 0), str(tmp_path / "site.npz"))
    with pytest.raises(UserError, match="vision-0"):
        client_data(node, ClientKey("vision", 0), npz(tmp_path / "site.npz"))


def test_description_sums_the_train_items_of_the_joint_dataset() -> None:
    config = synthetic()
    node = SimulatedNode(1, 2)
    description = describe(node, config)
    assert description.error == ""
    assert [client.key for client in description.clients] == hosted_clients(node, config)
    for client in description.clients:
        data = client_data(node, client.key, config)
        labels = data.labels[data.train].astype(np.float64)
        rows = np.concatenate([data.sequences[item] for item in data.train]).astype(np.float64)
        assert client.examples == len(data.train) > 0
        assert client.moments.mean.shape == rows.shape[1:]
        counts, _ = np.histogram(labels, [-np.inf, *config.dataset.label_bins, np.inf])
        np.testing.assert_allclose(
            client.label_sums.numpy(), [len(labels), labels.sum(), (labels**2).sum(), *counts]
        )
        np.testing.assert_allclose(client.moments.count, len(rows))
        np.testing.assert_allclose(client.moments.mean, rows.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(client.moments.squares, len(rows) * rows.var(axis=0))


def test_mistakes_become_the_description_s_error(tmp_path: Path) -> None:
    write_site(tmp_path / "site.npz")
    audio, vision = ClientKey("audio", 0), ClientKey("vision", 0)
    with_file = npz(tmp_path / "site.npz")
    cases = [
        (DeployedNode(ClientKey("audio", 9), None), synthetic(), "audio-9"),
        (DeployedNode(ClientKey("smell", 0), None), synthetic(), "smell-0"),
        (DeployedNode(audio, str(tmp_path / "absent.npz")), with_file, "absent.npz"),
        (DeployedNode(vision, str(tmp_path / "site.npz")), with_file, "'vision'"),
        (DeployedNode(audio, str(tmp_path / "site.npz")), synthetic(), "dataset=npz"),
        (SimulatedNode(0, 1), synthetic("clients.audio=90"), "clients"),
    ]
    for node, config, word in cases:
        description = describe(node, config)
        assert description.clients == ()
        assert word in description.error
        assert "\n" not in description.error


def test_a_site_s_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path, key = tmp_path / "site.npz", ClientKey("audio", 0)
    node = DeployedNode(key, str(path))
    config = npz(tmp_path / "joint.npz")
    write_site(path, items=12)
    first = client_data(node, key, config)
    assert client_data(node, key, config) is first
    write_site(path, items=20)
    assert len(client_data(node, key, config).labels) == 20


def test_the_run_s_data_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    path, key = tmp_path / "joint.npz", ClientKey("audio", 0)
    config, sizes = npz(path, "clients.default=1"), []
    for items in (30, 60):
        write_site(path, items)
        data = client_data(DeployedNode(key, None), key, config)
        sizes.append(len(data.labels))
    assert sizes[0] < 30 < sizes[1] < 60
