"""Items that the page offers to pick, with what is known of them.

They come from a shard, or are test items of the model's own run, read as the run reads them.

Notation: T steps, D feature width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import ServeConfig, ShardsConfig, config_of_settings
from common.data.dataset import LabelArray, MultimodalDataset
from common.data.federation import count_outputs, load_joint
from common.data.shard_folder import load_shard_folder
from common.data.shards import read_shard
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor, model_path
from server.run.folder import CONFIG, read_settings

#: How many are offered at most.
COUNT = 20

#: A number, the name of a class, or the names of labels.
Label = float | str | list[str]


@dataclass(frozen=True)
class Example:
    """One item.

    Attributes
    ----------
    name
        Of the item.
    label
        What is true of it.
    features
        Modality to (T, D) plain numbers, of those that it has.
    """

    name: str
    label: Label
    features: Mapping[str, list[list[float]]]


@dataclass(frozen=True)
class Examples:
    """What can be picked, and what classes or labels are called, where the data say it."""

    items: tuple[Example, ...] = ()
    label_names: tuple[str, ...] = ()


def load_examples(config: ServeConfig, predictor: Predictor) -> Examples:
    """Read the examples that ``examples=…`` names.

    Parameters
    ----------
    config
        ``examples`` is "none", "auto" for those of the model's run, or the path of a shard.
    predictor
        Which they must fit.

    Raises
    ------
    UserError
        If they cannot be read, or are not for this model.
    """
    if config.examples == "none":
        return Examples()
    of_run = config.examples == "auto"
    items, task = _of_run(str(config.model)) if of_run else _of_shard(Path(config.examples))
    _check(items, task, predictor, "the data of the run" if of_run else config.examples)
    names = items.label_names if len(items.label_names) == predictor.outputs else ()
    known = known_labels(config, predictor, names) or tuple(map(str, range(predictor.outputs)))
    found = (
        Example(str(items.ids[number]), _label(items.labels, number, task, known), features)
        for number in range(len(items))
        if (features := _features(items, number, predictor, config.max_steps))
    )
    return Examples(tuple(islice(found, COUNT)), names)


def known_labels(
    config: ServeConfig, predictor: Predictor, of_examples: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return what classes or labels are called, by whoever says it first; perhaps nothing."""
    return tuple(config.labels) or predictor.label_names or tuple(of_examples)


def _of_run(model: str) -> tuple[MultimodalDataset, Task]:
    file = model_path(model).parent / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is not there, which says where the run's data are")
    config = config_of_settings(read_settings(file))
    if isinstance(config.dataset, ShardsConfig):
        folder = load_shard_folder(config.dataset, config.clients)
        return folder.test, folder.task
    joint = load_joint(config)
    return joint.test, joint.task


def _of_shard(path: Path) -> tuple[MultimodalDataset, Task]:
    shard = read_shard(path)
    return shard.items, shard.info.task


def _check(items: MultimodalDataset, task: Task, predictor: Predictor, where: str) -> None:
    if task is not predictor.task:
        raise UserError(f"{where}: labels are of {task}, and the model predicts {predictor.task}")
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
    found = {}
    for name, sequences in items.sequences.items():
        rows = sequences.last_steps(predictor.max_seq_len)[number]
        if name in predictor.features and 0 < len(rows) <= max_steps and np.isfinite(rows).all():
            found[name] = _plain(rows)
    return found


def _plain(rows: NDArray[Any]) -> list[list[float]]:
    """Return numbers with as many digits as tell them apart: 0.1, not 0.10000000149011612."""
    shortest: list[list[float]] = rows.astype(np.float32).astype(str).astype(np.float64).tolist()
    return shortest


def _label(labels: LabelArray, number: int, task: Task, names: Sequence[str]) -> Label:
    match task:
        case Task.regression:
            return float(labels[number])
        case Task.classification:
            return names[int(labels[number])]
        case Task.multilabel:
            return [name for name, there in zip(names, labels[number], strict=True) if there]
