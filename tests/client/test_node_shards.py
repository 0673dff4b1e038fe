"""Nodes whose data are shards: sites with a file of their own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import client.app as client_app
from client.app import run_round
from client.node import (
    DeployedNode,
    client_data,
    describe,
)
from common.clients import ClientKey
from common.config import Config, compose_config
from common.data.dataset import MultimodalDataset, Sequences
from common.data.manifest import MANIFEST, Manifest, write_manifest
from common.data.shards import VERSION, info_of, write_shard
from common.errors import UserError
from common.messages import Downlink
from common.model.ha_fedformer import ModelSpec, build_model, split_arrays
from common.task import Task
from common.wire import ProtocolError

ITEMS, WIDTH = 24, 5
AUDIO = ClientKey("audio", 0)
SMALL = (
    "model.width=10",
    "model.heads=2",
    "model.layers=1",
    "client.local_epochs=1",
    "client.device=cpu",
)
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 3}
PRIORS = {
    Task.regression: torch.tensor([0.1, 1.5], dtype=torch.float64),
    Task.classification: torch.full((3,), 1 / 3, dtype=torch.float64).log(),
    Task.multilabel: torch.zeros(3, dtype=torch.float64),
}


def items_of(
    task: Task = Task.regression, modalities: tuple[str, ...] = ("audio",), first: int = 0
) -> MultimodalDataset:
    """Items of three steps each, two to a group; each modality is the number of its item."""
    numbers = np.arange(first, first + ITEMS)
    labels = {
        Task.regression: numbers.astype(np.float32) / 8,
        Task.classification: numbers % 3,
        Task.multilabel: (numbers[:, None] % np.array([2, 3, 5]) == 0).astype(np.float32),
    }
    values = np.repeat(numbers, 3)[:, None] + np.zeros(WIDTH)
    noise = np.random.default_rng(first).normal(size=values.shape)
    audio = Sequences((values + noise).astype(np.float32), np.arange(ITEMS) * 3, np.full(ITEMS, 3))
    return MultimodalDataset(
        np.array([f"item-{number}" for number in numbers]),
        np.array([f"group-{number // 2}" for number in numbers]),
        labels[task],
        dict.fromkeys(modalities, audio),
    )


def write_site(
    path: Path, task: Task = Task.regression, modalities: tuple[str, ...] = ("audio",)
) -> Path:
    items = items_of(task, modalities)
    write_shard(path, items, info_of(items, "audio-0", task, OUTPUTS[task]))
    return path


def write_manifest_of(shard: Path, seal: str) -> None:
    """Leave a manifest beside a shard, as `utmp-prepare` does, with some seal."""
    manifest = Manifest(
        version=VERSION,
        source={},
        task=Task.regression,
        outputs=1,
        label_names=(),
        modalities={"audio": {}},
        sides={},
        settings={},
        cleaning={},
        warnings=(),
        shards={shard.name: {"seal": seal}},
    )
    write_manifest(shard.parent, manifest)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site.safetensors")


def run_config(dataset: str, *overrides: str) -> Config:
    """What a run sends; its paths lead nowhere at a site."""
    path = () if dataset == "synthetic" else ("dataset.path=/not/here",)
    return compose_config("config", [f"dataset={dataset}", *path, *SMALL, *overrides])


def node_of(path: Path, key: ClientKey = AUDIO) -> DeployedNode:
    return DeployedNode(key, str(path))


def downlink_to(key: ClientKey, config: Config, task: Task = Task.regression) -> Downlink:
    """What a server sends that evaluates on data of a task."""
    spec = ModelSpec({key.modality: (WIDTH,)}, OUTPUTS[task], task, config.model)
    parts = split_arrays(build_model(spec, seed=3).state_dict())
    return Downlink(key, 1, parts.encoders[key.modality], parts.decoder, PRIORS[task])


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


def refused(path: Path, node: DeployedNode, config: Config, trained: list[object]) -> str:
    """The one line with which a site stays out: in its answer to the query, and in a round."""
    description = describe(node, config)
    message = description.error
    assert description.clients == () and len(message.splitlines()) == 1
    assert str(path) in message or str(path.parent / MANIFEST) in message
    with pytest.raises(UserError, match=re.escape(message)):
        run_round(downlink_to(node.key, config), node, config)
    assert trained == []
    return message


@pytest.mark.parametrize("dataset", ["shards", "npz", "synthetic"])
def test_a_site_holds_all_of_its_shard_in_any_run(
    site: Path, dataset: str, trained: list[object]
) -> None:
    config, node, items = run_config(dataset), node_of(site), items_of()
    data = client_data(node, AUDIO, config)
    assert (data.modality, data.task) == ("audio", Task.regression)
    np.testing.assert_array_equal(data.labels, items.labels)
    np.testing.assert_array_equal(data.groups, np.unique(items.groups, return_inverse=True)[1])
    assert sorted([*data.train, *data.validation]) == list(range(ITEMS))
    assert len(data.validation) > 0
    assert not set(data.groups[data.train]) & set(data.groups[data.validation])
    for item in range(ITEMS):
        np.testing.assert_array_equal(data.sequences[item], items.sequences["audio"][item])
    description = describe(node, config)
    assert description.error == ""
    (client,) = description.clients
    assert (client.key, client.examples) == (AUDIO, len(data.train))
    rows = np.concatenate([data.sequences[item] for item in data.train]).astype(np.float64)
    np.testing.assert_allclose(client.moments.mean, rows.mean(axis=0))
    uplink = run_round(downlink_to(AUDIO, config), node, config)
    assert (uplink.key, uplink.examples) == (AUDIO, len(data.train))
    assert np.isfinite(uplink.train_loss)
    assert len(trained) == 1


@pytest.mark.parametrize("task", list(Task))
def test_a_site_takes_part_in_a_run_of_its_task(tmp_path: Path, task: Task) -> None:
    path = write_site(tmp_path / "site.safetensors", task)
    config = run_config("shards", f"dataset.task={task}")
    (client,) = describe(node_of(path), config).clients
    assert len(client.label_sums) == {"regression": 10, "classification": 3, "multilabel": 4}[task]
    uplink = run_round(downlink_to(AUDIO, config, task), node_of(path), config)
    assert np.isfinite(uplink.train_loss)


def test_a_shard_is_the_same_data_as_the_same_npz(tmp_path: Path, site: Path) -> None:
    items = items_of()
    audio = items.sequences["audio"].values.reshape(ITEMS, 3, WIDTH)
    np.savez(tmp_path / "site.npz", label=items.labels, group=items.groups, audio=audio)
    config = run_config("npz", "dataset.group=group")
    shard, npz = (
        client_data(node_of(path), AUDIO, config) for path in (site, tmp_path / "site.npz")
    )
    for part in ("labels", "groups", "train", "validation"):
        np.testing.assert_array_equal(getattr(shard, part), getattr(npz, part))
    one, two = (describe(node_of(path), config) for path in (site, tmp_path / "site.npz"))
    assert torch.equal(one.clients[0].label_sums, two.clients[0].label_sums)
    np.testing.assert_array_equal(one.clients[0].moments.mean, two.clients[0].moments.mean)


def another_modality(path: Path) -> list[str]:
    write_site(path, modalities=("vision",))
    return ["holds vision", "this node is audio", "--node-config"]


def flipped_last_byte(path: Path) -> list[str]:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return ["damaged"]


def old_manifest_beside(path: Path) -> list[str]:
    write_manifest_of(path, "0" * 64)
    return [f"{MANIFEST} lists other contents for {path.name}", "take both from the same"]


def another_task(path: Path) -> list[str]:
    write_site(path, Task.multilabel)
    return ["task=multilabel", "dataset.task=regression"]


SPOILS = (another_modality, flipped_last_byte, old_manifest_beside, another_task)


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoilt_shard_is_refused_with_the_reason_and_read_once_it_is_mended(
    site: Path, spoil: Callable[[Path], list[str]], trained: list[object]
) -> None:
    whole = site.read_bytes()
    words = spoil(site)
    config = run_config("npz", "dataset.task=regression")
    message = refused(site, node_of(site), config, trained)
    for word in words:
        assert word in message
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
    tmp_path: Path,
    task: Task,
    run_task: Task,
    outputs: int,
    numbers: int,
    trained: list[object],
) -> None:
    path, config = write_site(tmp_path / "site.safetensors", task), run_config("shards")
    spec = ModelSpec({"audio": (WIDTH,)}, outputs, run_task, config.model)
    parts = split_arrays(build_model(spec, seed=3).state_dict())
    prior = torch.full((numbers,), 0.5, dtype=torch.float64)
    downlink = Downlink(AUDIO, 1, parts.encoders["audio"], parts.decoder, prior)
    with pytest.raises((UserError, ProtocolError)):
        run_round(downlink, node_of(path), config)
    assert trained == []
