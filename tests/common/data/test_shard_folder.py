"""A folder of shards is a federation: whole, as prepared, and equal to one dealt out in memory."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import (
    ITEMS,
    PER_GROUP,
    STEPS,
    assert_same,
    assert_same_sequences,
    labels_for,
    refusal,
    write_items,
)

from common.clients import DEFAULT_CLIENTS, ClientKey
from common.config import (
    ClientConfig,
    Config,
    FileConfig,
    Labels,
    PartitionConfig,
    PartitionRule,
    PrepareConfig,
    ShardsConfig,
)
from common.data.federation import (
    FederatedDataset,
    client_data_of,
    load_federation,
    load_joint,
)
from common.data.manifest import MANIFEST, read_listed_shard, read_manifest, write_manifest
from common.data.shards import read_shard, write_shard
from common.data.source import Reading
from common.task import Task
from server.preparation.preparation import prepare

CLIENTS: dict[str, int | None] = {"default": 2, "audio": 3}
ALL: Mapping[str, int | None] = {"default": None}
MODALITIES = ["vision", "audio", "language"]
READ: dict[str, Any] = {"group": "video", "context": 2, "tabular": ["vision"], "max_seq_len": 6}
READ |= {"modalities": MODALITIES}


def write_npz(path: Path, task: Task) -> Path:
    """Write items of three modalities; `audio` is ragged, and `vision` a table."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, size=ITEMS)
    return write_items(
        path,
        label=labels_for(task, ITEMS),
        video=[f"vidéo-{item // PER_GROUP % 17}-{item // PER_GROUP}" for item in range(ITEMS)],
        vision=rng.normal(size=(ITEMS, STEPS, 3)).astype(np.float32),
        audio=rng.normal(size=(lengths.sum(), 2)).astype(np.float32),
        audio_offsets=np.r_[0, np.cumsum(lengths)],
        language=rng.normal(size=(ITEMS, 5)).astype(np.float16),
    )


def joint_config(path: Path, task: Task = Task.regression) -> Config:
    return Config(
        run_dir="", clients=CLIENTS, dataset=FileConfig(path=str(path), task=task, **READ)
    )


def prepared(path: Path, out: Path, task: Task = Task.regression, **settings: Any) -> Path:
    """Prepare what `joint_config` deals out in memory."""
    groups = PartitionConfig(name=PartitionRule.groups)
    given = READ | {"clients": CLIENTS, "partition": groups} | settings
    config = PrepareConfig(path=str(path), out=str(out), task=Labels(task.value), **given)
    prepare(config, lambda *_: None, lambda _: {})
    return out


def shards_config(folder: Path, clients: Mapping[str, int | None] = ALL, **dataset: Any) -> Config:
    return Config(
        run_dir="", clients=dict(clients), dataset=ShardsConfig(path=str(folder), **dataset)
    )


def load(folder: Path, clients: Mapping[str, int | None] = ALL, **dataset: Any) -> FederatedDataset:
    return load_federation(shards_config(folder, clients, **dataset))


def change_manifest(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    text = json.dumps(content | changes, ensure_ascii=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and what was prepared of it: nobody may write here."""
    place = tmp_path_factory.mktemp("made")
    write_npz(place / "joint.npz", Task.regression)
    prepared(place / "joint.npz", place / "shards")
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A folder of shards of one's own."""
    shutil.copytree(made / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def names(data: FederatedDataset) -> list[str]:
    return [str(key) for key in data.clients]


@pytest.mark.parametrize("task", list(Task))
def test_prepared_shards_are_what_would_be_dealt_out_in_memory(tmp_path: Path, task: Task) -> None:
    file = write_npz(tmp_path / "joint.npz", task)
    folder = prepared(file, tmp_path / "shards", task, seed=7)
    joint, shards = joint_config(file, task), shards_config(folder)
    joint.seed = shards.seed = 7
    joint.client = shards.client = ClientConfig(validation_fraction=0.4)
    actual, expected = load_federation(shards), load_joint(joint)
    for name in ("task", "outputs", "shapes", "clients", "label_names"):
        assert getattr(actual, name) == getattr(expected, name)
    assert list(actual.shapes) == list(expected.shapes)
    assert_same(actual.validation, expected.validation)
    assert_same(actual.test, expected.test)
    for key in expected.clients:
        one, two = client_data_of(actual, key, shards), client_data_of(expected, key, joint)
        assert (one.modality, one.task) == (two.modality, two.task)
        assert one.labels.dtype == two.labels.dtype
        assert len(one.train) > 0
        assert len(one.validation) > 0
        for part in ("labels", "train", "validation"):
            np.testing.assert_array_equal(getattr(one, part), getattr(two, part))
        assert_same_sequences(one.sequences, two.sequences)


def test_what_only_the_manifest_or_one_side_says_is_kept(folder: Path) -> None:
    """A table that no test item has keeps its shape, which validation items show."""
    path = folder / "test.safetensors"
    test = read_shard(path)
    vision = test.items.sequences["vision"]
    none = replace(vision, lengths=np.zeros_like(vision.lengths))
    items = replace(test.items, sequences={**test.items.sequences, "vision": none})
    path.unlink()
    seal = write_shard(path, items, test.info)
    shards = {**read_manifest(folder).shards, path.name: {"seal": seal}}
    change_manifest(folder, shards=shards, cleaning={"rows": 3}, warnings=["careful"])
    data = load(folder)
    assert data.shapes["vision"] == (STEPS, 3)
    assert (data.cleaning, data.warnings) == ({"rows": 3}, ("careful",))


EVERYONE = "vision-0 vision-1 audio-0 audio-1 audio-2 language-0 language-1"


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        (ALL, EVERYONE),
        ({"default": None, "audio": None}, EVERYONE),
        ({"default": None, "audio": 1}, "vision-0 vision-1 audio-0 language-0 language-1"),
        ({"default": 1}, "vision-0 audio-0 language-0"),
        ({"default": 1, "audio": 2}, "vision-0 audio-0 audio-1 language-0"),
        ({"default": 1, "audio": None}, "vision-0 audio-0 language-0"),
    ],
)
def test_counts_take_the_first_clients(
    folder: Path, clients: dict[str, int | None], expected: str
) -> None:
    assert names(load(folder, clients)) == expected.split()


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ({"default": None, "audio": 4}, ["prepare", "clients.audio=4", "prepared for 3"]),
        ({"default": 3}, ["prepare", "clients.vision=3", "prepared for 2"]),
        ({"default": 1, "language": 10**6}, ["clients.language=1000000", "prepared for 2"]),
    ],
)
def test_counts_of_clients_that_were_not_prepared_are_refused(
    folder: Path, clients: dict[str, int | None], words: list[str]
) -> None:
    refusal(lambda: load(folder, clients), folder, *words)


def test_clients_that_are_not_there_are_refused(folder: Path) -> None:
    config = shards_config(folder, {"default": 1})
    data = load_federation(config)
    refusal(lambda: client_data_of(data, ClientKey("audio", 1), config), "no client audio-1")
    listed = dict(read_manifest(folder).shards)
    change_manifest(folder, shards={k: v for k, v in listed.items() if "language" not in k})
    refusal(lambda: load(folder), "'language' has no client")
    assert len(names(load(folder, modalities=["vision", "audio"]))) == 5


def test_modalities_are_taken_once_and_in_the_order_asked_for(folder: Path, made: Path) -> None:
    names_ = ["language", "vision"]
    data = load(folder, modalities=[*names_, "language"])
    joint = load_joint(joint_config(made / "joint.npz"))
    assert list(data.shapes) == names_
    assert names(data) == ["language-0", "language-1", "vision-0", "vision-1"]
    assert_same(data.test, joint.test.in_modalities(names_))
    assert_same(data.validation, joint.validation.in_modalities(names_))


def test_what_was_not_prepared_is_refused(folder: Path) -> None:
    words = folder, "'smell'", "vision, audio, language"
    refusal(lambda: load(folder, modalities=["audio", "smell"]), *words)
    words = folder, "dataset.task=multilabel", "task=regression"
    refusal(lambda: load(folder, task=Task.multilabel), *words)
    assert load(folder, task=Task.regression).task is Task.regression


def test_sequences_are_cut_to_their_last_steps(folder: Path) -> None:
    whole, cut = load(folder), load(folder, max_seq_len=2)
    pairs = [(whole.validation, cut.validation), (whole.test, cut.test)]
    pairs += [(whole.client_items(key), cut.client_items(key)) for key in whole.clients]
    for before, after in pairs:
        assert_same(after, before.last_steps(2))
    assert cut.shapes["vision"] == (2, 3)
    # The model will hold it; and what was cut away before is gone.
    assert whole.reading == Reading(6, 2, "video") and cut.reading == Reading(2, 2, "video")
    counts = {w: n for w, n in cut.cleaning.items() if w not in whole.cleaning}
    longer = sum(int((side.sequences["vision"].lengths > 2).sum()) for side, _ in pairs[:2])
    what = "items of vision cut to their last 2 steps (max_seq_len), of validation and test"
    assert counts[what] == longer
    words = "dataset.max_seq_len=7: ", "was prepared with max_seq_len=6; prepare it again, or le"
    refusal(lambda: load(folder, max_seq_len=7), *words)


def test_a_folder_of_before_has_its_reading_among_its_settings(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    reading = content.pop("reading")
    content["settings"] |= reading
    path.write_text(json.dumps(content))
    assert load(folder).reading == Reading(6, 2, "video")


def open_all(folder: Path) -> None:
    data = load(folder)
    for key in data.clients:
        data.client_items(key)


SHARDS = ["validation", "test", "audio-1"]


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_is_damaged_or_lost_or_not_prepared_is_refused(
    folder: Path, name: str
) -> None:
    path = folder / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)
    refusal(lambda: open_all(folder), f"shard {path} is damaged")
    path.unlink()
    refusal(lambda: open_all(folder), f"{folder / name}.safetensors does not exist")
    listed = dict(read_manifest(folder).shards)
    del listed[f"{name}.safetensors"]
    change_manifest(folder, shards=listed)
    if name == "audio-1":
        assert "audio-2" not in names(load(folder))
    else:
        refusal(lambda: load(folder), str(folder), f"lists no {name}.safetensors")


def test_shards_of_another_preparation_are_refused(
    made: Path, tmp_path: Path, folder: Path
) -> None:
    newer = prepared(made / "joint.npz", tmp_path / "newer", seed=99)
    swapped = [(folder, "audio-0", "audio-1"), (folder, "test", "validation")]
    for place, source, name in [*swapped, *((newer, name, name) for name in SHARDS)]:
        path = folder / f"{name}.safetensors"
        former = path.read_bytes()
        shutil.copy(place / f"{source}.safetensors", path)
        message = f"{folder / MANIFEST} lists other contents for {path.name}"
        refusal(lambda: open_all(folder), message)
        path.write_bytes(former)


def test_a_manifest_that_says_otherwise_than_its_shards_is_refused(folder: Path) -> None:
    """It carries no seal of its own, and people edit what they can read."""
    whole = (folder / MANIFEST).read_bytes()
    for changes in ({"task": "classification"}, {"outputs": 5}):
        change_manifest(folder, **changes)
        refusal(lambda: load(folder), folder, "prepare the data again")
        (folder / MANIFEST).write_bytes(whole)
    change_manifest(folder, modalities={**read_manifest(folder).modalities, "smell": {}})
    refusal(lambda: load(folder), folder, "smell")
    refusal(lambda: load(folder, modalities=["smell"]), folder, "smell")


def test_a_folder_without_clients_has_those_of_sites(made: Path, tmp_path: Path) -> None:
    """As a coordinator prepares it whose sites have files of their own."""
    evaluation = prepared(made / "joint.npz", tmp_path / "evaluation", clients={"default": 0})
    assert read_manifest(evaluation).clients() == []
    data = load(evaluation)
    everyone = [f"{name}-{part}" for name in MODALITIES for part in range(DEFAULT_CLIENTS)]
    assert names(data) == everyone
    assert len(names(load(evaluation, {"default": None, "audio": 9}))) == 9 + 2 * DEFAULT_CLIENTS
    refusal(lambda: data.client_items(ClientKey("audio", 0)), str(evaluation), "lists no audio-0")


def test_a_site_s_shard_is_read_alone_or_beside_its_manifest(folder: Path, tmp_path: Path) -> None:
    beside = read_listed_shard(folder / "audio-1.safetensors")
    alone = shutil.copy(folder / "audio-1.safetensors", tmp_path / "site.safetensors")
    assert_same(read_listed_shard(Path(alone)).items, beside.items)
    (folder / "audio-1.safetensors").rename(folder / "ours.safetensors")
    assert_same(read_listed_shard(folder / "ours.safetensors").items, beside.items)
    alone, missing = tmp_path / "site.safetensors", tmp_path / "missing.safetensors"
    refusal(lambda: read_listed_shard(missing), f"shard {missing} does not exist")
    write_manifest(tmp_path, replace(read_manifest(folder), shards={}))
    refusal(lambda: read_listed_shard(alone), "does not list site.safetensors")
    (tmp_path / MANIFEST).write_text("{")
    refusal(lambda: read_listed_shard(alone), f"{tmp_path / MANIFEST} cannot be read")
