"""Which clients a node hosts and how it describes them; sites with a file of their own."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import (
    STEPS,
    labels_for,
    make_items,
    manifest_of,
    refusal,
    values_of,
    write_items,
)
from wire import assert_same

import client.app as client_app
from client.app import run_round
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
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import load_joint
from common.data.manifest import MANIFEST, write_manifest
from common.data.shards import info_of, write_shard
from common.data.source import Reading
from common.errors import UserError
from common.messages import Downlink
from common.model.ha_fedformer import ModelSpec, build_model, split_arrays
from common.task import Task
from common.wire import ProtocolError

AUDIO = ClientKey("audio", 0)


@cache
def synthetic(*overrides: str) -> Config:
    small = ("dataset.num_items=120", "dataset.num_speakers=24", "clients.default=2")
    return compose(Config, [*small, *overrides])


def npz(path: Path, *overrides: str) -> Config:
    return compose(Config, ["dataset=file", f"dataset.path={path}", *overrides])


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
    refusal(lambda: parse_node(settings), *words)


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
        expected = [len(labels), labels.mean(), len(labels) * labels.var()]
        np.testing.assert_allclose(client.label_sums, expected)
        np.testing.assert_allclose(client.moments.count, len(rows))
        np.testing.assert_allclose(client.moments.mean, rows.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(client.moments.squares, len(rows) * rows.var(axis=0))
        pooled = np.array([data.sequences[item].mean(axis=0) for item in data.train])
        joint = np.concatenate([pooled, labels[:, None]], axis=1)
        sums = client.linear
        assert sums is not None and (sums.count, sums.features) == (len(labels), rows.shape[1])
        np.testing.assert_allclose(sums.mean, joint.mean(axis=0), atol=1e-6)
        scatter = len(joint) * np.cov(joint, rowvar=False, bias=True)
        np.testing.assert_allclose(sums.scatter, scatter, rtol=1e-5, atol=1e-4)


def test_the_run_s_data_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    path, sizes = tmp_path / "joint.npz", []
    for items in (30, 120):
        write_items(path, number=items)
        data = client_data(DeployedNode(AUDIO, None), AUDIO, npz(path, "clients.default=1"))
        sizes.append(len(data.labels))
    assert sizes[0] < 30 < sizes[1] < 120


# Sites with an .npz file of their own ------------------------------------------------------------


@pytest.fixture
def npz_site(tmp_path: Path) -> Path:
    return write_items(tmp_path / "site.npz", number=12)


def test_site_with_a_file_does_not_read_another_modality_from_it(npz_site: Path) -> None:
    with pytest.raises(UserError, match="vision-0"):
        client_data(DeployedNode(AUDIO, str(npz_site)), ClientKey("vision", 0), npz(npz_site))


def test_mistakes_become_the_description_s_error(npz_site: Path) -> None:
    path, absent = str(npz_site), npz_site.with_name("absent.npz")
    for node, config, words in [
        (DeployedNode(ClientKey("audio", 9), None), synthetic(), "audio-9"),
        (DeployedNode(ClientKey("smell", 0), None), synthetic(), "smell-0"),
        (DeployedNode(AUDIO, str(absent)), npz(npz_site), "absent.npz"),
        (DeployedNode(ClientKey("smell", 0), path), npz(npz_site), f"{path} has no array 'smell'"),
        (DeployedNode(AUDIO, path), synthetic(), "dataset=file, and the run has dataset=synthetic"),
        (SimulatedNode(0, 1), synthetic("clients.audio=90"), "clients"),
    ]:
        description = describe(node, config)
        assert description.clients == ()
        assert words in description.error and "\n" not in description.error


def test_a_site_s_file_that_was_replaced_is_read_again(npz_site: Path) -> None:
    node, config = DeployedNode(AUDIO, str(npz_site)), npz(npz_site.with_name("joint.npz"))
    first = client_data(node, AUDIO, config)
    assert client_data(node, AUDIO, config) is first
    write_items(npz_site, number=21, vision=None)  # it needs its own modality only
    assert len(client_data(node, AUDIO, config).labels) == 21


# Sites with a shard of their own -----------------------------------------------------------------

ITEMS, WIDTH = 24, 5
SMALL = (
    *("model.width=10", "model.heads=2", "model.layers=1"),
    *("client.local_epochs=1", "client.device=cpu"),
)
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 3}
#: Numbers of a prior that fits each task.
PRIOR_SIZES = {Task.regression: 2, Task.classification: 3, Task.multilabel: 3}


def items_of(task: Task = Task.regression, modality: str = "audio") -> MultimodalDataset:
    """Items of a few steps, two to a group."""
    values = values_of(np.arange(ITEMS), WIDTH).reshape(-1, WIDTH)
    sequences = {modality: Sequences.ragged(values, np.full(ITEMS, STEPS))}
    groups = [f"g{item // 2}" for item in range(ITEMS)]
    return make_items(sequences, labels_for(task, ITEMS), groups=groups)


def write_site(path: Path, task: Task = Task.regression, modality: str = "audio") -> Path:
    items = items_of(task, modality)
    write_shard(path, items, info_of(items, "audio-0", task, OUTPUTS[task]))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site.safetensors")


def run_config(dataset: str, *overrides: str) -> Config:
    """What a run sends; its paths lead nowhere at a site."""
    path = () if dataset == "synthetic" else ("dataset.path=/not/here",)
    return compose(Config, [f"dataset={dataset}", *path, *SMALL, *overrides])


def node_of(path: Path) -> DeployedNode:
    return DeployedNode(AUDIO, str(path))


def downlink(config: Config, task: Task, outputs: int, numbers: int) -> Downlink:
    """What a server sends that evaluates on data of a task, with a prior of some numbers."""
    spec = ModelSpec({"audio": (WIDTH,)}, outputs, task, config.model)
    parts = split_arrays(build_model(spec, seed=3).state_dict())
    prior = torch.full((numbers,), 0.5, dtype=torch.float64)
    return Downlink(AUDIO, 1, parts.encoders["audio"], parts.decoder, prior)


def good_downlink(config: Config, task: Task = Task.regression) -> Downlink:
    return downlink(config, task, OUTPUTS[task], PRIOR_SIZES[task])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every training that begins."""
    begun: list[object] = []
    real = client_app.train

    def train(*arguments: Any) -> Any:
        begun.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr(client_app, "train", train)
    return begun


@pytest.mark.parametrize("dataset", ["shards", "file", "synthetic"])
def test_a_site_holds_all_of_its_shard_in_any_run(
    site: Path, dataset: str, trained: list[object]
) -> None:
    config, node, items = run_config(dataset), node_of(site), items_of()
    data = client_data(node, AUDIO, config)
    assert (data.modality, data.task) == ("audio", Task.regression)
    np.testing.assert_array_equal(data.labels, items.labels)
    assert sorted([*data.train, *data.validation]) == list(range(ITEMS))
    assert len(data.validation) > 0
    assert not set(items.groups[data.train]) & set(items.groups[data.validation])
    for item in range(ITEMS):
        np.testing.assert_array_equal(data.sequences[item], items.sequences["audio"][item])
    description = describe(node, config)
    assert description.error == ""
    (client,) = description.clients
    assert (client.key, client.examples) == (AUDIO, len(data.train))
    rows = np.concatenate([data.sequences[item] for item in data.train]).astype(np.float64)
    np.testing.assert_allclose(client.moments.mean, rows.mean(axis=0))
    uplink = run_round(good_downlink(config), node, config)
    assert (uplink.key, uplink.examples) == (AUDIO, len(data.train))
    assert np.isfinite(uplink.train_loss)
    assert len(trained) == 1


@pytest.mark.parametrize("task", list(Task))
def test_a_site_takes_part_in_a_run_of_its_task(tmp_path: Path, task: Task) -> None:
    path = write_site(tmp_path / "site.safetensors", task)
    config = run_config("shards", f"dataset.task={task}")
    (client,) = describe(node_of(path), config).clients
    assert len(client.label_sums) == {"regression": 3, "classification": 3, "multilabel": 4}[task]
    uplink = run_round(good_downlink(config, task), node_of(path), config)
    assert np.isfinite(uplink.train_loss)


def test_a_shard_is_the_same_data_as_the_same_npz(site: Path) -> None:
    items, file = items_of(), site.parent / "site.npz"
    audio = items.sequences["audio"].values.reshape(ITEMS, STEPS, WIDTH)
    np.savez(file, label=items.labels, group=items.groups, audio=audio)
    config = run_config("file", "dataset.group=group")
    shard, npz = (client_data(node_of(path), AUDIO, config) for path in (site, file))
    for part in ("labels", "train", "validation"):
        np.testing.assert_array_equal(getattr(shard, part), getattr(npz, part))
    assert_same(*(describe(node_of(path), config) for path in (site, file)))


def test_a_site_says_which_extractor_made_its_features(site: Path, npz_site: Path) -> None:
    items, reading = items_of(), Reading(extractors={"audio": "log-mel 1 (aaa)", "vision": "b"})
    (before,) = describe(node_of(site), run_config("synthetic")).clients
    write_shard(site, items, info_of(items, "audio-0", Task.regression, 1, reading))
    (client,) = describe(node_of(site), run_config("synthetic")).clients
    (plain,) = describe(DeployedNode(AUDIO, str(npz_site)), npz(npz_site)).clients
    assert (before.extractor, client.extractor, plain.extractor) == ("", "log-mel 1 (aaa)", "")


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip_last_byte, ["damaged"]),
        (
            lambda path: write_site(path, modality="vision"),
            ["holds vision", "this node is audio", "--node-config"],
        ),
        (
            lambda path: write_site(path, Task.multilabel),
            ["task=multilabel", "dataset.task=regression"],
        ),
        (
            lambda path: write_manifest(
                path.parent, manifest_of(shards={path.name: {"seal": "0" * 64}})
            ),
            [f"{MANIFEST} lists other contents for site.safetensors", "take both from the same"],
        ),
    ],
    ids=["flipped", "another modality", "another task", "an old manifest beside"],
)
def test_a_spoilt_shard_is_refused_with_the_reason_and_read_once_it_is_mended(
    site: Path, spoil: Callable[[Path], object], words: list[str], trained: list[object]
) -> None:
    """In its answer to the query, and in a round."""
    whole, config = site.read_bytes(), run_config("file", "dataset.task=regression")
    spoil(site)
    description = describe(node_of(site), config)
    message = description.error
    assert description.clients == () and len(message.splitlines()) == 1
    assert str(site) in message or str(site.parent / MANIFEST) in message
    assert all(word in message for word in words)
    with pytest.raises(UserError, match=re.escape(message)):
        run_round(good_downlink(config), node_of(site), config)
    assert trained == []
    (site.parent / MANIFEST).unlink(missing_ok=True)
    site.write_bytes(whole)
    assert describe(node_of(site), config).error == ""


@pytest.mark.parametrize(
    ("task", "run_task", "outputs", "numbers"),
    [
        # With dataset=shards a run need not say its task; the decoder that comes tells it.
        (Task.regression, Task.multilabel, 3, 3),
        (Task.multilabel, Task.regression, 1, 2),
        (Task.regression, Task.classification, 2, 2),  # a prior as long as that of regression
        (Task.classification, Task.classification, 2, 2),  # a class that the run does not know
        (Task.multilabel, Task.multilabel, 2, 2),
        (Task.multilabel, Task.multilabel, 4, 4),
        (Task.classification, Task.regression, 1, 2),
    ],
)
def test_no_shard_of_other_outputs_is_trained_on(
    tmp_path: Path, task: Task, run_task: Task, outputs: int, numbers: int, trained: list[object]
) -> None:
    path, config = write_site(tmp_path / "site.safetensors", task), run_config("shards")
    with pytest.raises((UserError, ProtocolError)):
        run_round(downlink(config, run_task, outputs, numbers), node_of(path), config)
    assert trained == []
