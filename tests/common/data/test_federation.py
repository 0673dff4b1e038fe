"""Who holds what: nobody trains on what is evaluated, nobody holds what another holds."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import GROUPS, ITEMS, PER_GROUP, STEPS, WIDTHS, refusal, values_of
from data_checks import write_items as write

from common.clients import ClientKey
from common.config import (
    ClientConfig,
    Config,
    DirichletConfig,
    FileConfig,
    PartitionConfig,
    PartitionRule,
    ShardsConfig,
    SyntheticConfig,
)
from common.data.dataset import Sequences
from common.data.federation import (
    ClientData,
    JointDataset,
    client_data_of,
    load_federation,
    load_joint,
)
from common.data.partition import deal
from common.task import Task


def config_for(
    path: Any, clients: dict[str, int] | None = None, share: float = 0.2, **dataset: Any
) -> Config:
    dataset = {"group": "video", "validation_fraction": 0.2, "test_fraction": 0.2} | dataset
    return Config(
        run_dir="",
        clients=clients or {"default": 2, "audio": 3},
        dataset=FileConfig(path=str(path), **dataset),
        client=ClientConfig(validation_fraction=share),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "train.npz")


@pytest.fixture(params=[0, 1])
def config(request: pytest.FixtureRequest, file: Path) -> Config:
    config = config_for(file)
    config.seed = request.param
    return config


def refused(config: Config, *words: object) -> str:
    return refusal(lambda: load_joint(config), *words)


def numbers(labels: Iterable[float]) -> list[int]:
    return sorted(int(label) for label in labels)


def disjoint(parts: list[np.ndarray]) -> bool:
    sets = [set(part) for part in parts]
    return sum(map(len, sets)) == len(set().union(*sets))


def assert_features_are_those_of(labels: np.ndarray, sequences: Sequences) -> None:
    for item, label in enumerate(labels):
        assert sequences[item][:, 0].tolist() == (label * 100 + np.arange(STEPS)).tolist()


def dealt(joint: JointDataset, values: np.ndarray) -> list[np.ndarray]:
    """What each client gets of an array over all items."""
    return [values[part] for part in joint.dealt.values()]


def held(joint: JointDataset) -> list[list[float]]:
    parts = dealt(joint, joint.items.labels)
    return [part.tolist() for part in (joint.validation.labels, joint.test.labels, *parts)]


def test_every_item_is_held_once_and_groups_are_on_one_side(config: Config) -> None:
    joint = load_joint(config)
    assert numbers(np.concatenate(held(joint))) == list(range(ITEMS))
    groups = dealt(joint, joint.items.groups)
    assert disjoint([*groups, joint.validation.groups, joint.test.groups])
    assert len(joint.validation) == len(joint.test) == 0.2 * ITEMS
    assert tuple(joint.shapes) == ("audio", "vision")
    assert " ".join(map(str, joint.clients)) == "audio-0 audio-1 audio-2 vision-0 vision-1"
    sizes = [len(part) for part in joint.dealt.values()]
    assert max(sizes) - min(sizes) <= PER_GROUP


def test_the_server_keeps_every_modality_of_its_items_and_never_permutes(config: Config) -> None:
    config.dataset.permuted_clients = 9
    joint = load_joint(config)
    for kept in (joint.validation, joint.test):
        assert set(kept.sequences) == set(WIDTHS)
        for sequences in kept.sequences.values():
            assert_features_are_those_of(kept.labels, sequences)


def test_the_seed_decides_who_holds_what_and_the_clients_not_who_is_tested(file: Path) -> None:
    one, two = config_for(file), config_for(file)
    assert held(load_joint(one)) == held(load_joint(two))
    two.seed += 1
    assert held(load_joint(one)) != held(load_joint(two))
    few, many = (load_joint(config_for(file, {"default": number})) for number in (1, 4))
    assert held(few)[:2] == held(many)[:2]
    none = load_joint(config_for(file, validation_fraction=0.0, test_fraction=0.0))
    assert held(none)[:2] == [[], []]
    assert sum(map(len, none.dealt.values())) == ITEMS


def test_the_embedded_dataset_is_cut_and_split_by_speaker() -> None:
    names = ["vision", "language"]
    dataset = SyntheticConfig(modalities=names, num_items=120, num_speakers=30, max_seq_len=5)
    joint = load_joint(Config(run_dir="", clients={"default": 2}, dataset=dataset))
    parts = dealt(joint, joint.items.groups)
    assert tuple(joint.shapes) == ("vision", "language")
    assert disjoint([*parts, joint.validation.groups, joint.test.groups])
    assert {each.lengths.max() for each in joint.items.sequences.values()} == {5}


def test_a_test_file_is_the_test_set(tmp_path: Path, file: Path) -> None:
    test = write(tmp_path / "test.npz", first=300, number=12)
    joint = load_joint(config_for(file, test_path=str(test)))
    assert numbers(joint.test.labels) == list(range(300, 312))
    # Nothing of the training file is held back for testing besides.
    assert len(joint.validation) == 0.2 * ITEMS
    assert sum(map(len, joint.dealt.values())) == 0.8 * ITEMS


def test_the_groups_of_a_test_file_must_be_new(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = write(file.with_name("test.npz"), first=ITEMS - PER_GROUP, number=12)
    words = f"the group '{GROUPS - 1}'"  # and not np.str_('29')
    refused(config_for(file, test_path=str(test)), test, words)
    monkeypatch.chdir(file.parent)
    for spelling in ("train.npz", "./train.npz"):
        config = config_for("train.npz", group=None, test_path=spelling)
        refused(config, "its test items would not be new")


def test_what_a_test_file_must_have(tmp_path: Path, file: Path) -> None:
    def fails(word: str, arrays: dict[str, Any], **dataset: Any) -> None:
        write(test, first=300, number=6, **arrays)
        refused(config_for(file, test_path=str(test), **dataset), test, word)

    test = tmp_path / "test.npz"
    wide, long = np.zeros((6, STEPS, 5)), np.zeros((6, STEPS + 1, WIDTHS["vision"]))
    fails("vision is 3 wide in dataset.path but 5 wide in", {"vision": wide})
    fails("vision is 4 steps, 3 wide", {"vision": long}, tabular=["vision"])
    fails("'vision'", {"vision": None})
    write(file, label=np.ones((ITEMS, 3)))
    fails("label is 3 wide", {"label": np.ones((6, 2))}, task=Task.multilabel)


@pytest.mark.parametrize(
    ("clients", "dataset", "message"),
    [
        # 30 groups, a fifth each for validation and test
        ({"default": 20}, {}, r"40 clients are too many for the train items.* there are 18.*fewer"),
        ({"default": 1, "smell": 1}, {}, "clients.smell: .* no modality 'smell'; it has audio, vi"),
        ({"audio": 1}, {}, "modality 'vision' has no client"),
        ({}, {"modalities": ["audio", "smell"]}, "train.npz.*'smell'.*audio, label, video, vision"),
        *(({}, {"path": path}, "dataset.path=") for path in (None, 3, "", [], [""], ["a.npz", 3])),
    ],
)
def test_what_cannot_be_loaded(
    file: Path, clients: dict[str, int], dataset: dict[str, Any], message: str
) -> None:
    config = config_for(file, clients or None)
    for name, value in dataset.items():
        setattr(config.dataset, name, value)
    assert re.search(message, refused(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ["language", "smell"]}, r"dataset.modalities=\['language', 'smell'\]"),
        ({"modalities": []}, "dataset.modalities=.* language, audio, vision"),
        ({"modalities": ["audio"], "task": Task.classification}, "dataset.task=classification"),
    ],
)
def test_the_embedded_dataset_refuses(settings: dict[str, Any], message: str) -> None:
    config = Config(run_dir="", dataset=SyntheticConfig(**settings))
    assert re.search(message, refused(config))


@pytest.mark.parametrize("name", ["audio-2", "default"])
def test_modality_names_that_cannot_be_settings(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "odd.npz", **{name: values_of(np.arange(ITEMS), 2)})
    assert repr(name) in refused(config_for(file))


def test_train_items_are_dealt_by_the_partition(config: Config) -> None:
    by_groups = load_joint(config)
    config.partition = DirichletConfig(alpha=50.0)
    joint = load_joint(config)
    # The server's items stay as they were, and so do those that are dealt out.
    assert np.array_equal(joint.validation.labels, by_groups.validation.labels)
    assert np.array_equal(joint.test.labels, by_groups.test.labels)
    train = np.sort(np.concatenate([*by_groups.dealt.values()]))
    counts = {"audio": 3, "vision": 2}
    expected = deal(joint.items, train, counts, config.partition, Task.regression, config.seed)
    assert list(joint.dealt) == list(expected)
    for key, part in expected.items():
        assert np.array_equal(joint.dealt[key], part)


def test_shards_are_dealt_out_already(tmp_path: Path) -> None:
    partition = PartitionConfig(PartitionRule.iid)
    config = Config(run_dir="", dataset=ShardsConfig(path=str(tmp_path)), partition=partition)
    refusal(lambda: load_federation(config), "partition=iid: shards were dealt out by utmp-prepare")


def clients_of(config: Config) -> dict[ClientKey, ClientData]:
    joint = load_joint(config)
    return {key: client_data_of(joint, key, config) for key in joint.clients}


def test_a_client_holds_its_own_modality_of_its_items_and_validates_on_groups_of_its_own(
    config: Config,
) -> None:
    joint = load_joint(config)
    for key, data in clients_of(config).items():
        assert data.modality == key.modality
        assert data.sequences.width == WIDTHS[key.modality]
        assert numbers(data.labels) == numbers(joint.items.labels[joint.dealt[key]])
        assert_features_are_those_of(data.labels, data.sequences)
        assert sorted([*data.train, *data.validation]) == list(range(len(data.labels)))
        groups = data.labels // PER_GROUP
        assert len(data.validation) > 0
        assert disjoint([groups[data.train], groups[data.validation]])


def test_a_client_with_one_group_or_no_share_trains_on_all(tmp_path: Path, file: Path) -> None:
    few = write(tmp_path / "few.npz", number=5 * PER_GROUP)
    # Three of five groups are left to train on, one for each client.
    one_group = config_for(few, {"audio": 1, "vision": 2})
    for config in (one_group, config_for(file, share=0.0)):
        for data in clients_of(config).values():
            assert data.train.tolist() == list(range(len(data.labels)))
            assert data.validation.tolist() == []


def test_items_without_the_modality_are_neither_trained_nor_validated_on(tmp_path: Path) -> None:
    lengths = np.where(np.arange(ITEMS) % PER_GROUP == 1, 0, 2)
    audio, offsets = np.ones((lengths.sum(), 2)), np.r_[0, np.cumsum(lengths)]
    file = write(tmp_path / "train.npz", audio=audio, audio_offsets=offsets)
    data = clients_of(config_for(file))[ClientKey("audio", 0)]
    used = data.labels[[*data.train, *data.validation]]
    assert numbers(used) == [number for number in numbers(data.labels) if number % PER_GROUP != 1]
    write(file, audio=np.ones((0, 2)), audio_offsets=np.zeros(ITEMS + 1, dtype=int))
    refusal(lambda: clients_of(config_for(file)), "client audio-0 has no item with audio")


@pytest.mark.parametrize("number", [1, 2, 9])
def test_the_first_clients_of_each_modality_get_permuted_labels(
    config: Config, number: int
) -> None:
    right = clients_of(config)
    config.dataset.permuted_clients = number
    again = clients_of(config)
    orders = set()
    for key, data in clients_of(config).items():
        assert np.array_equal(data.labels, again[key].labels)
        moved = data.labels != right[key].labels
        assert (moved.mean() > 0.5) if key.part < number else not moved.any()
        # Nothing else of them is changed: the same labels, of other items.
        assert numbers(data.labels) == numbers(right[key].labels)
        for name in ("train", "validation"):
            assert np.array_equal(getattr(data, name), getattr(right[key], name))
        assert np.array_equal(data.sequences.values, right[key].sequences.values)
        if key.part < number:
            orders.add(tuple(np.argsort(np.argsort(data.labels)).tolist()))
    assert len(orders) == sum(key.part < number for key in right)


def test_rows_of_several_labels_move_together(file: Path) -> None:
    write(file, label=np.arange(ITEMS)[:, None] % [2, 4, 5])
    config = config_for(file, task=Task.multilabel)
    right = clients_of(config)
    config.dataset.permuted_clients = 9
    for key, data in clients_of(config).items():
        assert not np.array_equal(data.labels, right[key].labels)
        assert sorted(data.labels.tolist()) == sorted(right[key].labels.tolist())
