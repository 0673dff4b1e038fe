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
from common.config import Config, compose
from common.data.federation import load_joint
from common.errors import UserError

AUDIO = ClientKey("audio", 0)
SMALL = ("dataset.num_items=120", "dataset.num_speakers=24", "clients.default=2")


@cache
def synthetic(*overrides: str) -> Config:
    return compose(Config, [*SMALL, *overrides])


def npz(path: Path, *overrides: str) -> Config:
    return compose(Config, ["dataset=npz", f"dataset.path={path}", *overrides])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site.npz")


def write_site(path: Path, items: int = 12) -> Path:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(items, 3, 5)).astype(np.float32)
    np.savez(path, label=rng.normal(size=items).astype(np.float32), audio=features, text=features)
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"partition-id": 2, "num-partitions": 3}, SimulatedNode(2, 3)),
        ({"modality": "audio_2", "part": 4}, DeployedNode(ClientKey("audio_2", 4), None)),
        ({"modality": "audio", "data": "/x y.npz"}, DeployedNode(AUDIO, "/x y.npz")),
        # What Flower itself sets does not hide what the site says.
        ({"modality": "audio", "partition-id": 0, "num-partitions": 3}, DeployedNode(AUDIO, None)),
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
    assert "\n" not in message and all(word in message for word in words)


@pytest.mark.parametrize("nodes", [4, 11])
def test_simulated_nodes_share_all_clients_each_once(nodes: int) -> None:
    config = synthetic("clients.audio=3")
    hosted = [
        key for part in range(nodes) for key in hosted_clients(SimulatedNode(part, nodes), config)
    ]
    assert len(hosted) == 7 and set(hosted) == set(load_joint(config).clients)


def test_same_client_has_the_same_data_on_any_node() -> None:
    config, key = synthetic(), ClientKey("audio", 1)
    joint = load_joint(config)
    items = joint.dealt[key]
    for node in (SimulatedNode(0, 1), SimulatedNode(2, 5), DeployedNode(key, None)):
        data = client_data(node, key, config)
        np.testing.assert_array_equal(data.labels, joint.items.labels[items])
        assert sorted([*data.train, *data.validation]) == list(range(len(items)))
        assert data.modality == "audio"


def test_site_with_a_file_does_not_read_another_modality_from_it(site: Path) -> None:
    with pytest.raises(UserError, match="text-0"):
        client_data(DeployedNode(AUDIO, str(site)), ClientKey("text", 0), npz(site))


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


def test_mistakes_become_the_description_s_error(site: Path) -> None:
    for node, config, word in [
        (DeployedNode(ClientKey("audio", 9), None), synthetic(), "audio-9"),
        (DeployedNode(ClientKey("smell", 0), None), synthetic(), "smell-0"),
        (DeployedNode(AUDIO, str(site.parent / "absent.npz")), npz(site), "absent.npz"),
        (DeployedNode(ClientKey("vision", 0), str(site)), npz(site), "'vision'"),
        (DeployedNode(AUDIO, str(site)), synthetic(), "dataset=npz"),
        (SimulatedNode(0, 1), synthetic("clients.audio=90"), "clients"),
    ]:
        description = describe(node, config)
        assert description.clients == ()
        assert word in description.error and "\n" not in description.error


def test_a_site_s_file_that_was_replaced_is_read_again(site: Path) -> None:
    node, config = DeployedNode(AUDIO, str(site)), npz(site.parent / "joint.npz")
    first = client_data(node, AUDIO, config)
    assert client_data(node, AUDIO, config) is first
    write_site(site, items=20)
    assert len(client_data(node, AUDIO, config).labels) == 20


def test_the_run_s_data_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    path, sizes = tmp_path / "joint.npz", []
    for items in (30, 120):
        write_site(path, items)
        data = client_data(DeployedNode(AUDIO, None), AUDIO, npz(path, "clients.default=1"))
        sizes.append(len(data.labels))
    assert sizes[0] < 30 < sizes[1] < 120
