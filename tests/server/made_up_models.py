"""Models that no run trained, in which every parameter shows, and items for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from common.config import FusionRule, ModelConfig
from common.data.dataset import MultimodalDataset, Sequences
from common.data.source import Reading
from common.model.calibrated import Joint, Opinion
from common.model.fusion import Expert, Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.task import Task
from server.model_file import model_bytes
from server.prediction.predictor import Predictions, Predictor
from server.run.folder import CONFIG, MODEL

WIDTHS = {"language": 4, "audio": 3, "vision": 2}
SIZES = ModelConfig(width=8, heads=2, layers=1, decoder_layers=1)
#: Steps of the tabular modality of a model that has one.
STEPS = 3
#: The modalities that have a linear expert.
LINEAR = ("language", "audio")
OUTPUTS = {Task.regression: 1, Task.classification: 3, Task.multilabel: 2}
PRIORS = {
    Task.regression: (0.4, 2.0),
    Task.classification: (math.log(0.2), math.log(0.5), math.log(0.3)),
    Task.multilabel: (-1.0, 0.5),
}
EXPERTS = {
    "language": Expert(slope=0.7, intercept=0.3, unexplained=0.5, information=1.0, count=40.0),
    "audio": Expert(slope=1.4, intercept=-0.2, unexplained=0.8, information=0.25, count=30.0),
    "vision": Expert(slope=0.5, intercept=0.1, unexplained=0.95, information=0.05, count=20.0),
}
#: Of numbers; of classes and labels the loadings are inverse temperatures.
JOINT = Joint(
    {
        "language": Opinion(0.25, 0.1, 0.8, 0.7, 1.3, 40.0),
        "audio": Opinion(0.5, -0.2, 0.5, 0.9, 0.3, 30.0),
        "vision": Opinion(0.0, 0.3, 0.3, 1.1, 0.1, 20.0),
    },
    ((1.0, 0.4, -0.2), (0.4, 1.0, 0.1), (-0.2, 0.1, 1.0)),
    0.3,
)
RULES = [rule for rule in FusionRule if rule is not FusionRule.auto]

Features = dict[str, list[NDArray[Any] | None]]


def model_for(
    task: Task = Task.regression,
    tabular: Sequence[str] = (),
    names: Sequence[str] = (),
    sizes: ModelConfig = SIZES,
    sentiment: bool = True,
) -> HAFedformer:
    """Make a model; of numbers, one of sentiment, unless said otherwise."""
    shapes = {
        name: (STEPS, width) if name in tabular else (width,) for name, width in WIDTHS.items()
    }
    sentiment = sentiment and task is Task.regression
    spec = ModelSpec(shapes, OUTPUTS[task], task, sizes, tuple(names), sentiment, LINEAR)
    model = build_model(spec, seed=0)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=source)
        for name in LINEAR:
            for buffer in model.encoder(name).linear.buffers():
                buffer.normal_(0.0, 0.4, generator=source)
    return model.eval()


def fusion_for(task: Task = Task.regression, rule: FusionRule = FusionRule.reliability) -> Fusion:
    return Fusion(rule, task, PRIORS[task], EXPERTS, JOINT)


def predictor_for(
    task: Task = Task.regression,
    rule: FusionRule = FusionRule.reliability,
    max_seq_len: int | None = None,
    **options: Any,
) -> Predictor:
    return Predictor(model_for(task, **options), fusion_for(task, rule), Reading(max_seq_len))


def write_model(
    folder: Path,
    task: Task = Task.regression,
    dataset: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Leave a model, and, with settings of its dataset, a ``config.yaml``; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model_bytes(model_for(task, **options), fusion_for(task)))
    if dataset is not None:
        (folder / CONFIG).write_text(OmegaConf.to_yaml({"dataset": dict(dataset)}))
    return folder


def features_for(
    lengths: Mapping[str, Sequence[int]], seed: int = 0, dtype: str = "f4"
) -> Features:
    """Draw items: modality to the steps of each; None where an item has 0 steps."""
    rng = np.random.default_rng(seed)
    return {
        name: [
            rng.normal(size=(steps, WIDTHS[name])).astype(dtype) if steps else None
            for steps in counts
        ]
        for name, counts in lengths.items()
    }


def part(found: Predictions, chosen: slice) -> Predictions:
    """Choose items of predictions."""
    alone, added = (
        {name: values[chosen] for name, values in table.items()}
        for table in (found.alone, found.contributions)
    )
    std = None if found.std is None else found.std[chosen]
    return replace(found, values=found.values[chosen], std=std, alone=alone, contributions=added)


def sequences_for(features: Features) -> dict[str, Sequences]:
    """Lay items out row after row."""
    found = {}
    for name, items in features.items():
        rows = [item for item in items if item is not None]
        lengths = np.array([0 if item is None else len(item) for item in items], dtype=np.int64)
        dtype = rows[0].dtype if rows else np.float32
        values = np.concatenate([np.empty((0, WIDTHS[name]), dtype), *rows])
        found[name] = Sequences.ragged(values, lengths)
    return found


def dataset_for(
    features: Features,
    task: Task = Task.regression,
    ids: Sequence[str] | None = None,
    names: Sequence[str] = (),
) -> MultimodalDataset:
    """Give items labels that are drawn; of classes, every one in turn."""
    count, rng = len(next(iter(features.values()))), np.random.default_rng(0)
    labels = {
        Task.regression: rng.normal(size=count).astype(np.float32),
        Task.classification: np.arange(count) % OUTPUTS[task],
        Task.multilabel: rng.integers(0, 2, (count, OUTPUTS[task])).astype(np.float32),
    }[task]
    own = np.array(list(map(str, range(count))) if ids is None else ids, dtype=np.str_)
    return MultimodalDataset(own, own, labels, sequences_for(features), label_names=tuple(names))
