"""The files of the commands that use a trained model: they compose, and what is wrong is one line.

Their folder is no group: `model` and `dataset` are settings here, and groups of ``conf/``.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_checks import refusal

from common.config import SCHEMAS, EvaluateConfig, PredictConfig, compose, composed

FOLDER = Path(str(files("conf.trained")))
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

SCHEMAS_BY_FILE = {schema.file: schema for schema in SCHEMAS}

Compose = Callable[[list[str]], Any]

predict: Compose = partial(compose, PredictConfig)
evaluate: Compose = partial(compose, EvaluateConfig)

PREDICT = ["model=runs/a", "input=b.csv"]
EVALUATE = ["model=runs/a"]
COMMON = [
    *("modalities=[vision,audio]", "labels=[joy,fear]", "max_seq_len=9", "group=video"),
    *("context=0", "arrays.audio=a.npy", "arrays.new=b.npz", "device=cuda:1", "overwrite=true"),
    "format=npz",
]
both = pytest.mark.parametrize(("compose", "least"), [(predict, PREDICT), (evaluate, EVALUATE)])


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes_and_starts_with_its_command(name: str) -> None:
    composition = composed(SCHEMAS_BY_FILE[name], ("model=runs/2026-11-24/10-00-00",), name)
    assert composition.model == "runs/2026-11-24/10-00-00"
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.splitlines()[2].startswith(f"#   utmp-{name} model=")
    assert yaml.safe_load(text)["hydra"]["job"]["name"] == f"utmp-{name}"


@pytest.mark.parametrize("schema", [PredictConfig, EvaluateConfig])
def test_every_setting_is_in_its_file(schema: type[PredictConfig | EvaluateConfig]) -> None:
    text = (FOLDER / f"{schema.file}.yaml").read_text()
    written = set(yaml.safe_load(text)) - {"defaults", "hydra"}
    assert written == {field.name for field in fields(schema)}


def test_names_of_groups_are_settings() -> None:
    for dataset in ("npz", "shards", "synthetic", "shards/mosei", "npz_schema", "/a/b=c.npz"):
        quoted = f"dataset='{dataset}'" if "=" in dataset else f"dataset={dataset}"
        config = evaluate(["model=small", quoted])
        assert (config.model, config.dataset) == ("small", dataset)


@both
def test_every_setting_can_be_given(compose: Compose, least: list[str]) -> None:
    more = ["dataset=c"] if compose is evaluate else []
    config = compose([*least, *more, *COMMON])
    assert (config.modalities, config.labels) == (["vision", "audio"], ["joy", "fear"])
    assert (config.max_seq_len, config.group, config.context) == (9, "video", 0)
    assert config.arrays == {"audio": "a.npy", "new": "b.npz"}
    assert (config.device, config.overwrite, config.format) == ("cuda:1", True, "npz")


#: What is wrong with either command, and what only with one.
WRONG = [
    *(
        (command, [*least, override], message)
        for command, least in ((predict, PREDICT), (evaluate, EVALUATE))
        for override, message in (
            ("modell=a", "there is no setting 'modell'; did you mean model?"),
            (
                "model=null",
                "model is required; give it as model=…: a run folder, a model file or a checkpoint",
            ),
            ("model=", "model is required; give it as model=…"),
            ("max_seq_len=0", "max_seq_len=0: expected a number above 0"),
            ("dataset/x=y", "there is no setting 'dataset/x'"),
        )
    ),
    (predict, ["model=a", "input=[]"], "input is required; give it as input=…: a shard, or"),
    (predict, [*PREDICT, "out=.csv"], "out=.csv: expected a file that ends in .csv, .json"),
    (predict, [*PREDICT, "dataset=a"], "there is no setting 'dataset'"),
    (evaluate, [*EVALUATE, "out=a.JSON"], "out=a.JSON: expected a file that ends in .json"),
    (evaluate, [*EVALUATE, "side=train"], "side=train: Invalid value 'train', expected one of [va"),
    (evaluate, [*EVALUATE, "input=a"], "there is no setting 'input'"),
    (evaluate, [*EVALUATE, "arrays.audio=a.npy"], "arrays says how a dataset is read; give that"),
    (evaluate, [*EVALUATE, "emotions=true"], "emotions says how a dataset is read; give that too"),
]


@pytest.mark.parametrize(("compose", "overrides", "message"), WRONG)
def test_what_is_wrong_is_one_line(compose: Compose, overrides: list[str], message: str) -> None:
    assert refusal(lambda: compose(overrides)).startswith(message)
