"""The extractor's identity from `utmp-extract` to a model; features of another are refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from data_checks import refusal
from made_up_models import EXPERTS, JOINT, PRIORS, SIZES
from recordings import tone, write_wav
from rich.console import Console

from common.config import EvaluateConfig, ExtractConfig, FusionRule, PredictConfig, compose
from common.config import PrepareConfig as Prepare
from common.data.manifest import MANIFEST, Manifest, read_manifest
from common.data.shards import read_shard
from common.model.calibrated import Joint
from common.model.fusion import Fusion
from common.model.ha_fedformer import ModelSpec, build_model
from common.task import Task
from server.extraction.extraction import extract
from server.model_file import load_model, model_bytes
from server.prediction.evaluation import evaluate_model
from server.prediction.files import predict_file
from server.preparation.preparation import prepare
from server.run.folder import MODEL
from server.terminal import Terminal

#: Of the default settings; another means that models of before refuse new features.
IDENTITY = "log-mel+mfcc 1 (d17b972d5866)"


def features(folder: Path, *given: str) -> Path:
    """Features of 16 recordings with labels."""
    sounds = folder / "sounds"
    sounds.mkdir(exist_ok=True)
    rows = ["id,file,label"]
    for number in range(16):
        write_wav(sounds / f"{number}.wav", tone(100 + 100 * number, 0.5))
        rows.append(f"i{number},{number}.wav,{np.sin(number)}")
    (sounds / "calls.csv").write_text("\n".join(rows) + "\n")
    out = folder / f"features {len(given)}"
    settings = ["modality=audio", f"source={sounds}/calls.csv", f"out={out}", *given]
    extract(compose(ExtractConfig, settings), "audio", lambda *_: None)
    return out


def shards(source: Path, out: Path, *given: str) -> Manifest:
    settings = [f"path='{source}'", f"out={out}", "clients.default=1", *given]
    return prepare(compose(Prepare, settings), lambda *_: None, lambda _: {})


def write_model(folder: Path, manifest: Manifest) -> Path:
    (width,) = {facts["width"] for facts in manifest.modalities.values()}
    spec = ModelSpec({"audio": (width,)}, 1, Task.regression, SIZES, reading=manifest.reading)
    joint = Joint({"audio": JOINT.opinions["audio"]}, ((1.0,),))
    prior, experts = PRIORS[Task.regression], {"audio": EXPERTS["audio"]}
    fusion = Fusion(FusionRule.reliability, Task.regression, prior, experts, joint)
    folder.mkdir()
    (folder / MODEL).write_bytes(model_bytes(build_model(spec, seed=1), fusion))
    return folder


def predict(model: Path, source: Path) -> list[dict[str, str]]:
    out = model / "predictions.csv"
    settings = [f"model={model}", f"input='{source}'", f"out={out}", "overwrite=true"]
    predict_file(compose(PredictConfig, settings), Terminal(Console(file=io.StringIO())))
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_identity_goes_with_the_shards_and_into_the_model(tmp_path: Path) -> None:
    manifest = shards(features(tmp_path), tmp_path / "shards")
    expected = {"audio": IDENTITY}
    assert manifest.reading.extractors == expected
    assert read_manifest(tmp_path / "shards") == manifest
    assert json.loads((tmp_path / "shards" / MANIFEST).read_text())["reading"]["extractors"]
    for name in ("audio-0", "test"):
        shard = read_shard(tmp_path / "shards" / f"{name}.safetensors")
        assert shard.info.reading is not None and shard.info.reading.extractors == expected
    model = write_model(tmp_path / "run", manifest)
    spec = load_model(model / MODEL)[0].spec
    assert spec.reading is not None and spec.reading.extractors == expected


@pytest.mark.parametrize("form", ["folder", "shard"])
def test_features_of_another_extractor_are_refused(tmp_path: Path, form: str) -> None:
    own, other = features(tmp_path), features(tmp_path, "audio.step=0.1")
    model = write_model(tmp_path / "run", shards(own, tmp_path / "shards"))
    shards(other, tmp_path / "others")
    good, bad = own, other
    if form == "shard":
        good, bad = (tmp_path / name / "test.safetensors" for name in ("shards", "others"))
    assert predict(model, good)
    words = (
        "audio is from the extractor log-mel+mfcc 1 (",
        f"and the model's data from {IDENTITY}",
    )
    refusal(lambda: predict(model, bad), *words)
    given = [f"model={model}", f"dataset='{bad}'"]
    refusal(lambda: evaluate_model(compose(EvaluateConfig, given)), *words)


def test_features_that_do_not_say_are_taken(tmp_path: Path) -> None:
    own = features(tmp_path)
    model = write_model(tmp_path / "run", shards(own, tmp_path / "shards"))
    known = predict(model, own)
    (own / "extractor.json").unlink()
    assert predict(model, own) == known


def test_a_table_of_npy_files_is_checked_before_it_is_read(tmp_path: Path) -> None:
    own, other = features(tmp_path), features(tmp_path, "audio.step=0.1")
    model = write_model(tmp_path / "run", shards(own, tmp_path / "shards"))
    (other / "audio.npz").unlink()
    np.save(other / "audio.npy", np.zeros((16, 3, 53), dtype="f4"))
    refusal(lambda: predict(model, other), "audio is from the extractor log-mel+mfcc 1 (")
