"""Nodes whose data are shards: sites with a file of their own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wire import assert_same

import client.app as client_app
from client.app import run_round
from client.node import DeployedNode, client_data, describe
from common.clients import ClientKey
from common.config import Config, compose
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
    *("model.width=10", "model.heads=2", "model.layers=1"),
    *("client.local_epochs=1", "client.device=cpu"),
)
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 3}
#: Numbers of a prior that fits each task.
PRIOR_SIZES = {Task.regression: 2, Task.classification: 3, Task.multilabel: 3}


def items_of(task: Task = Task.regression, modality: str = "audio") -> MultimodalDataset:
    """Items of three steps each, two to a group; features are the number of the item, and noise."""
    numbers = np.arange(ITEMS)
    labels = {
        Task.regression: numbers.astype(np.float32) / 8,
        Task.classification: numbers % 3,
        Task.multilabel: (numbers[:, None] % np.array([2, 3, 5]) == 0).astype(np.float32),
    }
    noise = np.random.default_rng(0).normal(size=(3 * ITEMS, WIDTH))
    values = (np.repeat(numbers, 3)[:, None] + noise).astype(np.float32)
    return MultimodalDataset(
        np.array([f"item-{number}" for number in numbers]),
        np.array([f"group-{number // 2}" for number in numbers]),
        labels[task],
        {modality: Sequences(values, numbers * 3, np.full(ITEMS, 3))},
    )


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


def refused(path: Path, config: Config, trained: list[object]) -> str:
    """The one line with which a site stays out: in its answer to the query, and in a round."""
    description = describe(node_of(path), config)
    message = description.error
    assert description.clients == () and len(message.splitlines()) == 1
    assert str(path) in message or str(path.parent / MANIFEST) in message
    with pytest.raises(UserError, match=re.escape(message)):
        run_round(good_downlink(config), node_of(path), config)
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
    uplink = run_round(good_downlink(config), node, config)
    assert (uplink.key, uplink.examples) == (AUDIO, len(data.train))
    assert np.isfinite(uplink.train_loss)
    assert len(trained) == 1


@pytest.mark.parametrize("task", list(Task))
def test_a_site_takes_part_in_a_run_of_its_task(tmp_path: Path, task: Task) -> None:
    path = write_site(tmp_path / "site.safetensors", task)
    config = run_config("shards", f"dataset.task={task}")
    (client,) = describe(node_of(path), config).clients
    assert len(client.label_sums) == {"regression": 10, "classification": 3, "multilabel": 4}[task]
    uplink = run_round(good_downlink(config, task), node_of(path), config)
    assert np.isfinite(uplink.train_loss)


def test_a_shard_is_the_same_data_as_the_same_npz(site: Path) -> None:
    items, file = items_of(), site.parent / "site.npz"
    audio = items.sequences["audio"].values.reshape(ITEMS, 3, WIDTH)
    np.savez(file, label=items.labels, group=items.groups, audio=audio)
    config = run_config("npz", "dataset.group=group")
    shard, npz = (client_data(node_of(path), AUDIO, config) for path in (site, file))
    for part in ("labels", "groups", "train", "validation"):
        np.testing.assert_array_equal(getattr(shard, part), getattr(npz, part))
    assert_same(*(describe(node_of(path), config) for path in (site, file)))


def another_modality(path: Path) -> list[str]:
    write_site(path, modality="vision")
    return ["holds vision", "this node is audio", "--node-config"]


def flipped_last_byte(path: Path) -> list[str]:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return ["damaged"]


def old_manifest_beside(path: Path) -> list[str]:
    none: dict = {name: {} for name in ("source", "sides", "settings", "cleaning")}
    manifest = Manifest(
        version=VERSION,
        task=Task.regression,
        outputs=1,
        label_names=(),
        modalities={"audio": {}},
        warnings=(),
        shards={path.name: {"seal": "0" * 64}},
        **none,
    )
    write_manifest(path.parent, manifest)
    return [f"{MANIFEST} lists other contents for {path.name}", "take both from the same"]


def another_task(path: Path) -> list[str]:
    write_site(path, Task.multilabel)
    return ["task=multilabel", "dataset.task=regression"]


SPOILS = (another_modality, flipped_last_byte, old_manifest_beside, another_task)


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoilt_shard_is_refused_with_the_reason_and_read_once_it_is_mended(
    site: Path, spoil: Callable[[Path], list[str]], trained: list[object]
) -> None:
    whole, config = site.read_bytes(), run_config("npz", "dataset.task=regression")
    words = spoil(site)
    message = refused(site, config, trained)
    assert all(word in message for word in words)
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
