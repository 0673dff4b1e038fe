"""Items that the page offers to pick, with their true labels.

They come from a shard, or from the test items of the model's own run.

Notation: T steps, D feature width.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.config import ServeConfig, ShardsConfig, config_of_settings
from common.data.dataset import LabelArray, MultimodalDataset
from common.data.federation import count_outputs, load_joint, load_shard_folder
from common.data.shards import read_shard
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor, model_path
from server.run.folder import CONFIG, read_settings
from server.service.answers import Label

#: The largest number of examples.
COUNT = 20


class Example(NamedTuple):
    """One item: its name, its true label, and the modalities that it has, (T, D) plain numbers."""

    name: str
    label: Label
    features: Mapping[str, list[list[float]]]


class Examples(NamedTuple):
    """Examples, and the names of classes or labels if the data hold them."""

    items: tuple[Example, ...] = ()
    label_names: tuple[str, ...] = ()


def load_examples(config: ServeConfig, predictor: Predictor) -> Examples:
    """Read the examples that ``examples=…`` selects: "none", "auto" or the path of a shard.

    Raises
    ------
    UserError
        If they cannot be read, or do not fit this model.
    """
    if config.examples == "none":
        return Examples()
    if config.examples == "auto":
        where = "the data of the run"
        items, task = _of_run(str(config.model))
    else:
        where = config.examples
        shard = read_shard(Path(config.examples))
        items, task = shard.items, shard.info.task
    _check(items, task, predictor, where)
    names = items.label_names if len(items.label_names) == predictor.outputs else ()
    known = known_labels(config, predictor, names) or tuple(map(str, range(predictor.outputs)))
    examples = (
        Example(str(items.ids[number]), _label(items.labels, number, task, known), features)
        for number in range(len(items))
        if (features := _features(items, number, predictor, config.max_steps))
    )
    return Examples(tuple(islice(examples, COUNT)), names)


def known_labels(
    config: ServeConfig, predictor: Predictor, of_examples: Sequence[str]
) -> tuple[str, ...]:
    """Return names of classes or labels: from the settings, the model, or the examples."""
    return tuple(config.labels) or predictor.label_names or tuple(of_examples)


def _of_run(model: str) -> tuple[MultimodalDataset, Task]:
    file = model_path(model).parent / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing; it says where the run's data are")
    config = config_of_settings(read_settings(file))
    if isinstance(config.dataset, ShardsConfig):
        folder = load_shard_folder(config.dataset, config.clients)
        return folder.test, folder.task
    joint = load_joint(config)
    return joint.test, joint.task


def _check(items: MultimodalDataset, task: Task, predictor: Predictor, where: str) -> None:
    if task is not predictor.task:
        raise UserError(f"{where}: labels are for {task}, and the model predicts {predictor.task}")
    shared = [name for name in predictor.features if name in items.sequences]
    if not shared:
        raise UserError(f"{where}: holds none of {', '.join(predictor.features)}")
    for name in shared:
        width, takes = items.sequences[name].width, predictor.features[name][-1]
        if width != takes:
            raise UserError(f"{where}: {name} is {width} wide, and the model takes {takes}")
    if count_outputs(task, items.labels) > predictor.outputs:
        raise UserError(f"{where}: has more classes or labels than {predictor.outputs}")


def _features(
    items: MultimodalDataset, number: int, predictor: Predictor, max_steps: int
) -> dict[str, list[list[float]]]:
    """Return the modalities of one item that a request can carry."""
    features = {}
    for name, sequences in items.sequences.items():
        rows = sequences.last_steps(predictor.max_seq_len)[number]
        if name in predictor.features and 0 < len(rows) <= max_steps and np.isfinite(rows).all():
            features[name] = _plain(rows)
    return features


def _plain(rows: NDArray[Any]) -> list[list[float]]:
    """Return numbers with the fewest digits that identify them: 0.1, not 0.10000000149011612."""
    shortest: list[list[float]] = rows.astype(np.float32).astype(str).astype(np.float64).tolist()
    return shortest


def _label(labels: LabelArray, number: int, task: Task, names: Sequence[str]) -> Label:
    match task:
        case Task.regression:
            return float(labels[number])
        case Task.classification:
            return names[int(labels[number])]
        case Task.multilabel:
            return [name for name, is_set in zip(names, labels[number], strict=True) if is_set]
