"""From a source to a folder: the manifest says what is true, and the folder is whole or absent."""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import GROUPS, ITEMS, PER_GROUP, STEPS, files, refusal
from data_checks import write_items as write

from common.config import (
    DirichletConfig,
    Labels,
    PartitionConfig,
    PartitionRule,
    Precision,
    PrepareConfig,
    Split,
)
from common.data.dataset import MultimodalDataset
from common.data.manifest import Manifest, read_manifest
from common.data.shards import Shard, read_shard
from common.seal import SUFFIX
from common.task import Task
from server.preparation.preparation import prepare

GROUPS_RULE, IID, NATURAL = (
    PartitionConfig(name=PartitionRule(name)) for name in ("groups", "iid", "natural")
)


def config_of(path: Any, out: Any, **settings: Any) -> PrepareConfig:
    defaults = {"group": "video", "partition": GROUPS_RULE, "test_fraction": 0.2}
    return PrepareConfig(path=path and str(path), out=str(out), **(defaults | settings))


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total or total == 0


def drawn(manifest: Manifest) -> Mapping[str, bytes]:
    """Stand for the picture."""
    return {"partition.png": json.dumps(manifest.shards).encode()}


def run(path: Any, out: Any, **settings: Any) -> Manifest:
    return prepare(config_of(path, out, **settings), quiet, drawn)


def refused(path: Any, out: Any, *words: object, **settings: Any) -> str:
    return refusal(lambda: run(path, out, **settings), *words)


def shards_of(folder: Path) -> dict[str, Shard]:
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    return {path.name.removesuffix(SUFFIX): read_shard(path) for path in paths}


def ids_of(items: MultimodalDataset) -> list[int]:
    """The numbers of items, from ids such as ``joint.npz#7``."""
    return [int(name.rpartition("#")[2]) for name in items.ids.tolist()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return write(tmp_path / "source" / "joint.npz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "shards"


def left(out: Path) -> list[str]:
    """What lies where the folder should be, hidden files too."""
    return sorted(path.name for path in out.parent.iterdir())


def test_the_folder_holds_a_shard_for_each_client_and_side(file: Path, out: Path) -> None:
    manifest = run(file, out, clients={"default": 2, "vision": 3})
    names = ["audio-0", "audio-1", "vision-0", "vision-1", "vision-2", "validation", "test"]
    assert list(manifest.shards) == [f"{name}{SUFFIX}" for name in names]
    assert set(files(out)) == {*manifest.shards, "manifest.json", "partition.png"}
    assert left(out) == ["shards"]
    assert read_manifest(out) == manifest
    for name, shard in shards_of(out).items():
        assert shard.info.name == name
        modality = name.partition("-")[0]
        expected = ("audio", "vision") if modality in ("validation", "test") else (modality,)
        assert tuple(shard.items.sequences) == shard.info.modalities == expected
        assert (shard.info.task, shard.info.outputs) == (Task.regression, 1)
        listed, content = manifest.shards[f"{name}{SUFFIX}"], (out / f"{name}{SUFFIX}").read_bytes()
        assert listed["sha256"] == hashlib.sha256(content).hexdigest()
        assert listed["bytes"] == len(content)
        assert listed["seal"] == shard.seal


@pytest.mark.parametrize("rule", [GROUPS_RULE, IID, NATURAL, DirichletConfig(alpha=1.0)])
def test_no_item_is_in_two_shards_and_no_group_on_two_sides_and_again(
    tmp_path: Path, file: Path, out: Path, rule: PartitionConfig
) -> None:
    run(file, out, partition=rule)
    shards = shards_of(out)
    held = [ids_of(shard.items) for shard in shards.values()]
    assert sorted(chain(*held)) == list(range(ITEMS))
    sides: dict[str, set[str]] = {}
    for name, shard in shards.items():
        # Whole groups go to clients too, where items are not dealt one by one.
        side = "train" if "-" in name and rule not in (GROUPS_RULE, NATURAL) else name
        sides.setdefault(side, set()).update(shard.items.groups.tolist())
    assert sum(map(len, sides.values())) == GROUPS
    run(file, tmp_path / "again", partition=rule)
    assert files(tmp_path / "again") == files(out)
    run(file, tmp_path / "other", partition=rule, seed=1)
    one, other = files(out), files(tmp_path / "other")
    names = {"manifest.json", f"test{SUFFIX}"} if rule is NATURAL else set(one)
    assert names <= set(one) & set(other)
    assert all(one[name] != other[name] for name in names)


# What the manifest says -------------------------------------------------------------------------


def test_a_source_is_named_and_fingerprinted(tmp_path: Path, file: Path, out: Path) -> None:
    other = write(tmp_path / "other.npz", label=-np.arange(ITEMS))
    config = config_of(None, out, seed=1)
    config.path = [str(file), str(other)]
    manifest = prepare(config, quiet, drawn)
    assert [tuple(listed.values()) for listed in manifest.source["files"]] == [
        (path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (file, other)
    ]
    assert manifest.source["format"] == "npz"
    assert "4 arrays" in manifest.source["why"]
    assert sum(shard["items"] for shard in manifest.shards.values()) == 2 * ITEMS
    embedded = run(None, tmp_path / "synthetic", format="synthetic", group=None)
    assert embedded.source == {"format": "synthetic", "why": "", "files": []}
    assert list(embedded.modalities) == ["language", "audio", "vision"]
    assert sum(shard["items"] for shard in embedded.shards.values()) == 6000


def test_counts_and_labels_are_those_of_the_shards(file: Path, out: Path) -> None:
    manifest = run(file, out)
    edges = np.linspace(0, ITEMS - 1, 8)
    for name, shard in shards_of(out).items():
        listed, labels = dict(manifest.shards[f"{name}{SUFFIX}"]), shard.items.labels
        counted = {key: listed[key] for key in ("items", "groups", "labels")}
        assert counted == {
            "items": len(labels),
            "groups": len(set(shard.items.groups.tolist())),
            "labels": {
                "histogram": np.histogram(labels, edges)[0].tolist(),
                "mean": pytest.approx(labels.astype(float).mean(), abs=1e-6),
                "sd": pytest.approx(labels.astype(float).std(), abs=1e-6),
            },
        }
        if name in ("validation", "test"):
            assert manifest.sides[name] == counted
    held = sum(shard["items"] for name, shard in manifest.shards.items() if "-" in name)
    assert manifest.sides["train"]["items"] == held
    assert manifest.sides["test"]["groups"] == 6
    assert len(manifest.settings["label_bins"]) == 7


def test_what_was_cleaned_is_counted(tmp_path: Path, out: Path) -> None:
    label = np.arange(ITEMS, dtype=float)
    label[[3, 40, 41]] = np.nan
    audio = np.random.default_rng(0).normal(size=(ITEMS, STEPS, 2)).astype(np.float32)
    audio[7, 1, 0], audio[8, 2] = np.nan, np.inf
    source = write(tmp_path / "s.npz", label=label, audio=audio)
    manifest = run(source, out)
    assert manifest.cleaning == {
        "items without a label, dropped": 3,
        "audio values not finite, set to the mean": 3,
    }
    described = manifest.modalities["audio"]
    assert (described["items"], described["nan"], described["infinite"]) == (ITEMS - 3, 1, 2)
    held = sorted(chain(*(ids_of(shard.items) for shard in shards_of(out).values())))
    assert held == [number for number in range(ITEMS) if number not in (3, 40, 41)]


def test_items_that_lack_the_modality_that_they_are_dealt_in_are_left_out_and_counted(
    tmp_path: Path, out: Path
) -> None:
    lengths = np.where(np.arange(ITEMS) % 3 == 0, 0, 2)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vision = np.ones((offsets[-1], 3), dtype=np.float32)
    source = write(tmp_path / "s.npz", vision=vision, vision_offsets=offsets)
    manifest = run(source, out, clients={"default": 2})
    shards = shards_of(out)
    held = set(chain(*(ids_of(shard.items) for shard in shards.values())))
    gone = set(range(ITEMS)) - held
    assert gone
    assert all(number % 3 == 0 for number in gone)
    left_out = "items dealt to a client whose modality they lack, left out"
    lacking = len(lengths) - int((lengths > 0).sum())
    assert manifest.cleaning == {left_out: len(gone), "items without vision": lacking}
    for name, shard in shards.items():
        if name.startswith("vision"):
            assert (shard.items.sequences["vision"].lengths > 0).all()
        assert manifest.shards[f"{name}{SUFFIX}"]["items"] == len(shard.items)
    # Items for evaluation need only one of the modalities.
    evaluated = [number for name in ("validation", "test") for number in ids_of(shards[name].items)]
    assert any(number % 3 == 0 for number in evaluated)


def test_a_client_without_any_item_of_its_modality_is_refused(file: Path, out: Path) -> None:
    offsets = np.r_[np.zeros(ITEMS), 2].astype(int)
    write(file, vision=np.ones((2, 3)), vision_offsets=offsets)
    assert re.match(r"vision-\d gets no item that has vision", refused(file, out))
    assert left(out) == []


def test_the_manifest_says_what_decides_and_nothing_of_places_and_times(
    tmp_path: Path, file: Path, out: Path
) -> None:
    options = {"seed": 77, "arrays": {"audio": str(tmp_path / "a.npy")}, "tabular": ["audio"]}
    manifest = run(file, out, max_seq_len=3, **options)
    settings, modalities = manifest.settings, manifest.modalities
    assert (settings["seed"], manifest.reading.group) == (77, "video")
    assert (settings["partition"]["name"], settings["arrays"]) == ("groups", {"audio": "a.npy"})
    assert settings["clients"] == {"audio": 3, "vision": 3}
    assert not {"path", "out", "describe", "overwrite"} & set(settings)
    assert [modalities[name]["tabular"] for name in ("audio", "vision")] == [True, False]
    assert modalities["audio"]["lengths"]["max"] == 3
    assert modalities["audio"]["rows"] == ITEMS * 3
    text = (out / "manifest.json").read_text()
    assert not re.search(r"/|\\\\|\d{4}-\d\d-\d\d|\d\d:\d\d|seconds|date\b", text)
    for shard in out.glob(f"*{SUFFIX}"):
        assert str(tmp_path).encode() not in shard.read_bytes()


def test_where_the_source_lies_and_whence_it_is_called_do_not_matter(
    tmp_path: Path, file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(file, out)
    elsewhere = tmp_path / "some" / "where"
    elsewhere.mkdir(parents=True)
    (elsewhere / "joint.npz").write_bytes(file.read_bytes())
    monkeypatch.chdir(elsewhere.parent)
    run("where/joint.npz", "other-name")
    assert files(elsewhere.parent / "other-name") == files(out)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_something_else_is_never_overwritten(
    file: Path, out: Path, kind: str, overwrite: bool
) -> None:
    mine = out
    if kind == "folder":
        out.mkdir()
        mine = out / "thesis.tex"
    mine.write_text("years of work")
    refused("nowhere.npz", out, f"out={out} exists already", overwrite=overwrite)
    assert mine.read_text() == "years of work"
    assert left(out) == ["shards"]


def test_a_folder_of_shards_is_replaced_only_if_asked(
    tmp_path: Path, file: Path, out: Path
) -> None:
    run(file, out, clients={"default": 5}, overwrite=True)
    before = files(out)
    refused(file, out, f"out={out} exists already; choose another, or give overwrite=true")
    assert files(out) == before
    run(file, out, clients={"default": 2}, overwrite=True)
    (tmp_path / "fresh").mkdir()  # an empty folder is nothing
    run(file, tmp_path / "fresh", clients={"default": 2})
    assert files(out) == files(tmp_path / "fresh")
    assert left(out) == ["shards"]


def test_a_site_prepares_clients_only(file: Path, out: Path) -> None:
    fractions = {"validation_fraction": 0.5, "test_fraction": 0.4}
    one = {"clients": {"default": 1}, "modalities": ["audio"]}
    manifest = run(file, out, split=Split.none, **one, **fractions)
    assert list(manifest.shards) == [f"audio-0{SUFFIX}"]
    assert list(manifest.modalities) == ["audio"]
    assert ids_of(shards_of(out)["audio-0"].items) == list(range(ITEMS))
    assert [side["items"] for side in manifest.sides.values()] == [ITEMS, 0, 0]
    words = "nothing to write: no clients and no items for evaluation"
    refused(file, out.parent / "no", words, clients={"default": 0}, split=Split.none)
    assert left(out) == ["shards"]


def test_a_server_prepares_evaluation_only(tmp_path: Path, file: Path, out: Path) -> None:
    manifest = run(file, out, clients={"default": 0})
    assert list(manifest.shards) == [f"validation{SUFFIX}", f"test{SUFFIX}"]
    assert manifest.clients() == []
    assert manifest.settings["clients"] == {}
    run(file, tmp_path / "joint")
    for name in manifest.shards:
        assert (out / name).read_bytes() == (tmp_path / "joint" / name).read_bytes()
    no_validation = run(file, tmp_path / "test-only", validation_fraction=0.0).shards
    assert f"validation{SUFFIX}" not in no_validation
    assert f"test{SUFFIX}" in no_validation


def test_a_source_that_has_sides_decides_and_groups_on_two_are_warned_of(
    tmp_path: Path, out: Path
) -> None:
    sides = np.array(["train", "train", "valid", "test"])[np.arange(ITEMS) // PER_GROUP % 4]
    source = write(tmp_path / "joint.npz", split=sides)
    assert run(source, out).warnings == ()
    for name, word in (("validation", "valid"), ("test", "test")):
        assert ids_of(shards_of(out)[name].items) == np.flatnonzero(sides == word).tolist()
    sides[0] = "test"
    (warning,) = run(write(source, split=sides), out, overwrite=True).warnings
    assert "1 groups" in warning
    assert read_manifest(out).warnings == (warning,)


def test_one_client_of_each_group_takes_no_counts(file: Path, out: Path) -> None:
    counts, words = {"default": None, "audio": 2}, "partition=natural makes each group a client"
    refused(file, out, words, partition=NATURAL, clients=counts)
    manifest = run(file, out, partition=NATURAL, clients={"default": None})
    assert len(manifest.clients()) == manifest.sides["train"]["groups"]
    assert sum(manifest.settings["clients"].values()) == len(manifest.clients())


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (Labels.classification, np.arange(ITEMS) % 4),
        (Labels.multilabel, np.arange(ITEMS)[:, None] % np.array([2, 3, 5, 1]) == 0),
    ],
)
def test_classes_and_several_labels(
    tmp_path: Path, out: Path, task: Labels, label: np.ndarray
) -> None:
    manifest = run(write(tmp_path / "s.npz", label=label), out, task=task)
    assert (manifest.task, manifest.outputs) == (Task(task), 4)
    assert manifest.settings["label_bins"] == ["0", "1", "2", "3"]
    one_hot = label if label.ndim == 2 else label[:, None] == np.arange(4)
    for name, shard in shards_of(out).items():
        counts = one_hot[ids_of(shard.items)].sum(axis=0).tolist()
        assert shard.info.outputs == 4
        assert manifest.shards[f"{name}{SUFFIX}"]["labels"] == {"histogram": counts}


@pytest.mark.parametrize(
    ("held", "asked", "stored"),
    [("f2", "auto", "f2"), ("f8", "auto", "f4"), ("f4", "float16", "f2"), ("f2", "float32", "f4")],
)
def test_features_are_stored_as_asked(
    tmp_path: Path, out: Path, held: str, asked: str, stored: str
) -> None:
    source = write(tmp_path / "s.npz", audio=np.ones((ITEMS, STEPS, 2), held))
    run(source, out, dtype=Precision(asked))
    for name in ("audio-0", "test"):
        assert shards_of(out)[name].items.sequences["audio"].values.dtype == np.dtype(stored)


SYNTHETIC = {"path": None, "format": "synthetic", "group": None}
MANY = PartitionConfig(name=PartitionRule.groups, min_items=50)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": None}, "out is required; give it as out=…"),
        ({"tabular": ["smell"]}, "tabular: 'smell' is not among audio, vision"),
        ({"clients": {"smell": 1}}, "clients.smell: the dataset has no modality 'smell'"),
        ({"partition": MANY}, "client audio-0 gets "),
        ({"modalities": ["smell"]}, "no array 'smell' (modalities)"),
        ({"dtype": Precision.float16}, "audio has values up to 1e+06, too large for float16; use"),
        ({"split": Split.source}, "the source does not say"),
        (SYNTHETIC | {"task": Labels.classification}, "task=classification: the synthetic dataset"),
        (SYNTHETIC | {"modalities": ["smell"]}, "modalities=['smell']: the synthetic dataset has"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    file: Path, out: Path, settings: dict[str, Any], message: str
) -> None:
    audio = np.ones((ITEMS, STEPS, 2), dtype=np.float32)
    audio[17, 2, 1] = 1e6
    config = config_of(write(file, audio=audio), out)
    for name, value in settings.items():
        setattr(config, name, value)
    refusal(lambda: prepare(config, quiet, drawn), message)
    assert left(out) == []


def test_progress_begins_at_nothing_and_ends_at_everything(file: Path, out: Path) -> None:
    news: list[tuple[str, int, int]] = []
    prepare(config_of(file, out), lambda *each: news.append(each), drawn)
    stages = list(dict.fromkeys(stage for stage, _, _ in news))
    # The first two at the same time.
    assert {*stages[:2]} == {"hashing joint.npz", "reading"} and stages[2:] == ["writing shards"]
    for stage in stages:
        done = [part for name, part, _ in news if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in news if name == stage)
    written = [(done, total) for stage, done, total in news if stage == "writing shards"]
    assert written == [(number, 8) for number in range(9)]


def test_labels_that_teach_nothing_are_warned_of(tmp_path: Path, out: Path) -> None:
    manifest = run(write(tmp_path / "a.npz", label=np.full(ITEMS, 2.5)), out)
    assert manifest.warnings == ("all labels are 2.5: nothing can be learned from them",)


@pytest.mark.parametrize(("side", "count"), [("train", 1), ("test", 0)])
def test_labels_beyond_sentiment_are_counted_where_evaluation_has_none(
    tmp_path: Path, out: Path, side: str, count: int
) -> None:
    sides = np.array(["train", "train", "validation", "test"])[np.arange(ITEMS) % 4]
    label = np.linspace(-2.5, 2.5, ITEMS)
    label[np.flatnonzero(sides == side)[:2]] = 5
    write(tmp_path / "a.npz", label=label, split=sides)
    found = [line for line in run(tmp_path / "a.npz", out).warnings if "beyond [-3, 3]" in line]
    assert len(found) == count
    assert all(line.startswith("2 labels lie beyond") for line in found)
