"""Shards and the raw files they were made of: one reading, remembered, and equal predictions."""

import csv
import io
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_checks import refusal
from made_up_models import EXPERTS, JOINT, PRIORS, SIZES
from rich.console import Console
from trained_runs import train

from common.config import (
    EvaluateConfig,
    FusionRule,
    PredictConfig,
    PrepareConfig,
    ServeConfig,
    compose,
)
from common.data.manifest import Manifest, write_manifest
from common.data.shards import read_shard
from common.data.source import Reading
from common.model.calibrated import Joint
from common.model.fusion import Fusion
from common.model.ha_fedformer import ModelSpec, build_model
from server.model_file import load_model, model_bytes
from server.prediction.evaluation import evaluate_model
from server.prediction.files import predict_file
from server.prediction.predictor import Predictor
from server.preparation.preparation import prepare as prepare_shards
from server.run.folder import MODEL
from server.service.examples import load_examples
from server.terminal import Terminal
from tests.common.data.formats import writers

STEPS = 3
UTTERANCES = writers.make_utterances(3, count=60, videos=20, zero_text=4, missing_audio=6)
#: Format to how it is written, and the settings with which it is read.
FORMATS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "multibench": ({}, []),
    "mult": ({}, []),
    "mmsa": ({}, []),
    "csd": ({"per_video": True}, []),
    "npz": ({}, ["group=video"]),
    "table": ({}, []),
    "table by id": ({"kind": "parquet", "arrays": "npz-by-id"}, []),
}


def prepare(path: Path, out: Path, *given: str) -> Manifest:
    settings = [f"path={path}", f"out={out}", "clients.default=0", "split=random", *given]
    return prepare_shards(compose(PrepareConfig, settings), lambda *_: None, lambda _: {})


def write_model(folder: Path, manifest: Manifest) -> Path:
    """Leave a model of shards as a run would: with their shapes, and how they were read."""
    shapes = {name: (facts["width"],) for name, facts in manifest.modalities.items()}
    task, names = manifest.task, manifest.label_names
    spec = ModelSpec(shapes, manifest.outputs, task, SIZES, names, reading=manifest.reading)
    experts = {name: EXPERTS.get(name, EXPERTS["vision"]) for name in shapes}
    alike = tuple(tuple(row) for row in np.eye(len(shapes)).tolist())
    opinions = {name: JOINT.opinions.get(name, JOINT.opinions["vision"]) for name in shapes}
    joint, prior = Joint(opinions, alike), PRIORS[task]
    fusion = Fusion(FusionRule.reliability, task, prior, experts, joint)
    folder.mkdir()
    (folder / MODEL).write_bytes(model_bytes(build_model(spec, seed=1), fusion))
    return folder


def predictions(model: Path, source: Path, *given: str) -> dict[str, dict[str, str]]:
    out = model / "predictions.csv"
    settings = [f"model={model}", f"input={source}", f"out={out}", "overwrite=true", *given]
    predict_file(compose(PredictConfig, settings), Terminal(Console(file=io.StringIO())))
    with out.open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def assert_equal(
    raw: Mapping[str, Mapping[str, str]], shards: Mapping[str, Mapping[str, str]]
) -> None:
    assert shards.keys() <= raw.keys() and len(shards) > 5
    for name, row in shards.items():
        for column, value in row.items():
            if column in ("id", "sign") or not value or value in (*WORDS, *CODES):
                assert raw[name][column] == value, (name, column)
            else:
                assert float(raw[name][column]) == pytest.approx(float(value), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_raw_input_is_cut_as_the_shards_were(tmp_path: Path, format: str) -> None:
    """Also: some items lack a modality."""
    options, given = FORMATS[format]
    source = writers.WRITERS[format.split()[0]](tmp_path, UTTERANCES, **options)
    read = [f"max_seq_len={STEPS}", *given]
    manifest = prepare(source, tmp_path / "shards", *read, "test_fraction=0.5")
    assert any("cut to their last 3 steps" in what for what in manifest.cleaning)
    assert manifest.cleaning["items without audio"] > 0
    model = write_model(tmp_path / "run", manifest)
    shards = predictions(model, tmp_path / "shards" / "test.safetensors")
    assert_equal(predictions(model, source), shards)
    # The file by itself remembers too, where there is no run around it.
    assert load_model(model / MODEL)[0].spec.reading == manifest.reading
    assert manifest.reading.max_seq_len == STEPS


def write_vectors(folder: Path, format: str) -> tuple[Path, list[str]]:
    """Write items of one vector each, in groups; in the second modality some are missing."""
    rng = np.random.default_rng(0)
    audio, vision = rng.normal(size=(60, 4)), rng.normal(size=(60, 2, 3))
    vision[::7] = 0
    video = [f"v{item // 5}" for item in range(60)]
    label = rng.normal(size=60)
    if format == "npz":
        lengths = np.where(np.arange(60) % 7, 2, 0)
        rows = {"vision": vision[lengths > 0].reshape(-1, 3)}
        ends = {"vision_offsets": np.r_[0, np.cumsum(lengths)]}
        names = {"id": [f"i{item}" for item in range(60)], "video": video}
        np.savez(folder / "a.npz", audio=audio, label=label, **rows, **ends, **names)
        return folder / "a.npz", ["group=video"]
    np.save(folder / "audio.npy", audio)
    np.save(folder / "vision.npy", vision)
    columns = {"id": [f"i{item}" for item in range(60)], "speaker": video, "score": label.tolist()}
    table = writers.write_columns(folder / f"items.{format}", columns)
    return table, ["group=speaker", "labels=[score]"]


@pytest.mark.parametrize("format", ["npz", "csv", "parquet"])
def test_raw_input_has_the_context_of_the_shards(tmp_path: Path, format: str) -> None:
    source, given = write_vectors(tmp_path, format)
    manifest = prepare(source, tmp_path / "shards", "context=3", "max_seq_len=3", *given)
    model = write_model(tmp_path / "run", manifest)
    shard = tmp_path / "shards" / "test.safetensors"
    shards = predictions(model, shard)
    assert_equal(predictions(model, source), shards)
    # As do the labels' columns, which only an evaluation reads.
    settings = [f"model={model}", f"dataset={source}"]
    evaluation = evaluate_model(compose(EvaluateConfig, settings))
    assert evaluation.about["items"] == 60
    cut = "items of audio cut to their last 3 steps (max_seq_len)"
    assert evaluation.about["cleaning"][cut] == manifest.cleaning[cut] == 24


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source, given = write_vectors(tmp_path, "csv")
    prepare(source, tmp_path / "other", *given)
    prepare(source, tmp_path / "short", "context=3", "max_seq_len=2", *given)
    manifest = prepare(source, tmp_path / "shards", "context=3", *given)
    return write_model(tmp_path / "run", manifest)


def test_what_contradicts_the_reading_is_refused_by_name(tmp_path: Path, model: Path) -> None:
    own, raw = tmp_path / "shards" / "test.safetensors", tmp_path / "items.csv"
    known = "the model's data were read with"
    for given, words in (
        ("context=2", f"context=2: {known} context=3; leave context out"),
        ("max_seq_len=5", f"max_seq_len=5: {known} max_seq_len=50; leave max_seq_len out"),
    ):
        refusal(lambda given=given: predictions(model, raw, given), words)
        settings = [f"model={model}", f"dataset={own}", given]
        refusal(lambda given=settings: evaluate_model(compose(EvaluateConfig, given)), words)
    assert predictions(model, own, "context=3", "max_seq_len=50") == predictions(model, own)
    for folder, words in (
        ("other", f"was prepared with context=0, and {known} context=3: prepare it again"),
        ("short", f"was prepared with max_seq_len=2, and {known} max_seq_len=50"),
    ):
        shard = tmp_path / folder / "test.safetensors"
        refusal(lambda shard=shard: predictions(model, shard), f"shard {shard} {words}")
        settings = [f"model={model}", f"dataset={shard}"]
        refusal(lambda given=settings: evaluate_model(compose(EvaluateConfig, given)), words)
        examples = compose(ServeConfig, [f"model={model}", f"examples={shard}"])
        predictor = Predictor.load(model)
        refusal(lambda: load_examples(examples, predictor), words)  # noqa: B023


def test_classes_are_known_by_their_names(tmp_path: Path) -> None:
    """A column that is called otherwise in case is used, and not told as unused."""
    columns = {"ID": list("abcd"), "Answer": ["no", "yes"] * 2, "Group": list("abcd")}
    table = writers.write_columns(tmp_path / "items.csv", columns)
    np.save(tmp_path / "audio.npy", np.ones((4, 2)))
    given = ["task=classification", "classes=[no,maybe,yes]", "labels=[answer]"]
    manifest = prepare(table, tmp_path / "shards", *given)
    shard = read_shard(tmp_path / "shards" / "test.safetensors")
    assert manifest.label_names == shard.items.label_names == ("no", "maybe", "yes")
    assert (shard.info.reading, shard.info.outputs) == (manifest.reading, 3)
    assert manifest.settings["classes"] == ["no", "maybe", "yes"]
    assert not {"context", "labels"} & {*manifest.settings}
    assert manifest.cleaning == {}


WORDS = ("negative", "neutral", "positive")
CODES = ("-1", "0", "1")
#: Format to how it is written, and how it is read where items of one vector have context.
ALL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "multibench": ({}, []),
    "mult": ({}, []),
    "mmsa": ({}, []),
    "csd": ({"per_video": True}, []),
    "npz": ({}, ["group=video", "context=2"]),
    "table csv": ({}, ["context=2"]),
    "table parquet": ({"kind": "parquet", "arrays": "npz"}, ["context=2"]),
    "table by id": ({"arrays": "npz-by-id"}, []),
    "table safetensors": ({"arrays": "safetensors"}, ["context=2"]),
    "table tensors": ({"arrays": "npz-by-id"}, ["context=2"]),
}


def write_classes(folder: Path, format: str) -> Path:
    """Write a source whose labels are words, or codes where it cannot hold words."""
    items = [replace(item, sentiment=n % 3 - 1.0) for n, item in enumerate(UTTERANCES)]
    kind, (options, given) = format.split()[0], ALL[format]
    vectors = np.random.default_rng(1).normal(size=(len(items), 2)).astype(np.float32)
    vectors[::5] = np.nan
    words = [WORDS[int(item.sentiment) + 1] for item in items]
    if kind == "table":
        table = writers.write_table(folder, items, **options)
        writers.write_columns(table, writers.table_columns(items) | {"label": words})
        if given:
            np.save(folder / "gait.npy", vectors)
        for file in folder.glob("*.npz") if format == "table tensors" else ():
            tensors = {k: torch.from_numpy(v) for k, v in np.load(file).items()}
            torch.save(tensors, file.with_suffix(".pt"))
            file.unlink()
        return table
    if kind == "npz":
        path = folder / "data.npz"
        np.savez(path, **writers.npz_content(items) | {"label": np.array(words), "gait": vectors})
        return path
    if kind == "csd":
        return writers.WRITERS[kind](folder, items, **options)
    content: dict[str, Any] = getattr(writers, f"{kind}_content")(items)
    key = "classification_labels" if kind == "mmsa" else "labels"
    for split in content.values():
        numbers = np.asarray(split[key]).astype(int) + (0 if kind == "mmsa" else 1)
        split[key] = np.array(WORDS)[numbers]
    return writers.write_pickle(folder / "data.pkl", content)


@pytest.mark.parametrize("format", ALL)
def test_steps_context_classes_and_missing_items_are_those_of_the_shards(
    tmp_path: Path, format: str
) -> None:
    source, read = write_classes(tmp_path, format), ALL[format][1]
    given = ["task=classification", f"max_seq_len={STEPS}", "test_fraction=0.5", *read]
    manifest = prepare(source, tmp_path / "shards", *given)
    assert manifest.label_names == (CODES if format == "csd" else WORDS)
    assert any("cut to their last 3 steps" in what for what in manifest.cleaning)
    assert manifest.cleaning["items without audio"] > 0
    assert ("gait" in manifest.modalities) == bool(read) == (manifest.reading.context == 2)
    if read:
        assert manifest.cleaning["items without gait"] == 12
        assert manifest.modalities["gait"]["lengths"]["max"] == 3
    model = write_model(tmp_path / "run", manifest)
    shard = tmp_path / "shards" / "test.safetensors"
    shards, raw = predictions(model, shard), predictions(model, source)
    assert_equal(raw, shards)
    assert {row["prediction"] for row in raw.values()} <= {*manifest.label_names}
    # An evaluation of either counts the same items right.
    scores = [scored(model, source), scored(model, shard)]
    truth = read_shard(shard).items
    right = [
        shards[name]["prediction"] == manifest.label_names[label]
        for name, label in zip(truth.ids.tolist(), truth.labels.tolist(), strict=True)
    ]
    assert scores[1]["accuracy"] == pytest.approx(np.mean(right))
    assert set(scores[0]) == set(scores[1])


def scored(model: Path, source: Path) -> dict[str, float]:
    settings = compose(EvaluateConfig, [f"model={model}", f"dataset={source}"])
    scores: dict[str, float] = evaluate_model(settings).results["test"]["multimodal"]
    return scores


def test_classes_of_a_file_are_found_by_name(tmp_path: Path) -> None:
    source = write_classes(tmp_path, "table csv")
    manifest = prepare(source, tmp_path / "shards", "task=classification", "test_fraction=0.5")
    model = write_model(tmp_path / "run", manifest)
    rows = list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))
    predicted = predictions(model, source)

    def relabelled(*names: str) -> Path:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        own = [names[number % len(names)] for number in range(len(rows))]
        return writers.write_columns(source, columns | {"label": own})

    # Only some of the model's, in another order: their own numbers would be others.
    relabelled("positive", "negative")
    right = [
        predicted[row["id"]]["prediction"] == ("positive", "negative")[number % 2]
        for number, row in enumerate(rows)
    ]
    assert scored(model, source)["accuracy"] == pytest.approx(np.mean(right))
    prepare(source, tmp_path / "two", "task=classification", "test_fraction=0.5")
    words = "has 'positive' for class 1, which is 'neutral' in the model"
    refusal(lambda: scored(model, tmp_path / "two" / "test.safetensors"), words)
    relabelled("negative", "mixed", "positive")
    words = "column 'label' is 'mixed' in data row 2 (and 19 more); expected one of the classes "
    refusal(lambda: scored(model, source), words + "negative, neutral, positive")


def write_sites(folder: Path) -> Path:
    """Prepare at two sites and at the coordinator, each from files of its own, with words.

    A site lacks a class. Returns the coordinator's folder, with the sites' shards in it.
    """
    given = ["task=classification", f"classes=[{','.join(WORDS)}]", f"max_seq_len={STEPS}"]
    manifests: list[Manifest] = []
    for number, name in enumerate(("audio", "language", "all")):
        modalities = ("audio", "language") if name == "all" else (name,)
        items = writers.make_utterances(number, count=60, videos=20)
        there = WORDS[1:] if name == "audio" else WORDS
        words = [there[item % len(there)] for item in range(60)]
        table = writers.write_table(folder / name, items, arrays="npz", modalities=modalities)
        writers.write_columns(table, writers.table_columns(items) | {"label": words})
        side = ["test_fraction=0.5"] if name == "all" else ["split=none", "clients.default=1"]
        manifests.append(prepare(table, folder / name / "shards", *given, *side))
    assert {manifest.label_names for manifest in manifests} == {WORDS}
    for name in ("audio", "language"):
        shard = folder / name / "shards" / f"{name}-0.safetensors"
        shutil.copy(shard, folder / "all" / "shards")
    listed = {file: shard for manifest in manifests for file, shard in manifest.shards.items()}
    write_manifest(folder / "all" / "shards", replace(manifests[-1], shards=listed))
    return folder / "all"


def test_sites_that_prepared_words_by_themselves_train_one_model(tmp_path: Path) -> None:
    folder = write_sites(tmp_path)
    given = ("dataset=shards", f"dataset.path={folder}/shards", "clients.default=1")
    run = train(tmp_path / "run", *given)
    assert load_model(run / MODEL)[0].spec.label_names == WORDS
    source, shard = folder / "items.csv", folder / "shards" / "test.safetensors"
    raw = predictions(run, source)
    assert_equal(raw, predictions(run, shard))
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    right = [raw[row["id"]]["prediction"] == row["label"] for row in rows]
    assert scored(run, source)["accuracy"] == pytest.approx(np.mean(right))


def test_one_vector_for_each_id_has_no_order_for_context(tmp_path: Path) -> None:
    columns = {"id": list("abcd"), "label": [1, 2, 3, 4], "group": list("aabb")}
    table = writers.write_columns(tmp_path / "items.csv", columns)
    for arrays in ({name: np.ones(2) for name in "abcd"}, {"values": np.ones((4, 2))}):
        ids = {"ids": list("abcd")} if "values" in arrays else {}
        np.savez(tmp_path / "audio.npz", **arrays, **ids)
        words = "audio.npz: context=2 needs rows in the table's order, one for each item"
        refusal(lambda: prepare(table, tmp_path / "shards", "context=2"), words)


def test_a_reading_out_of_range_is_no_reading() -> None:
    for wrong in ({"max_seq_len": 0}, {"context": -1}):
        with pytest.raises(ValueError, match="expected a number"):
            Reading(**wrong)
