"""Items that the page offers to pick, with their true labels.

They come from a shard, or from the test items of the model's own run.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.config import ServeConfig
from common.data.dataset import LabelArray, MultimodalDataset
from common.data.shards import read_shard
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor, run_data
from server.service.answers import ExampleAnswer, Label

#: The largest number of examples.
COUNT = 20


class Examples(NamedTuple):
    """Examples, the names of classes or labels if the data hold them, and which is typical."""

    items: tuple[ExampleAnswer, ...] = ()
    label_names: tuple[str, ...] = ()
    #: The one that is predicted with the median error.
    typical: int = 0


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
        data = run_data(str(config.model))
        items, task = data.test, data.task
    else:
        where = config.examples
        shard = read_shard(Path(config.examples))
        predictor.reading.check_prepared(where, shard.info.reading, shard.items.longest)
        items, task = shard.items, shard.info.task
    shared = [name for name in items.sequences if name in predictor.features]
    if not shared:
        raise UserError(f"{where} has none of {', '.join(predictor.features)}")
    items = items.in_modalities(shared).last_steps(predictor.max_seq_len)
    predictor.check_items(where, task, items)
    names = predictor.names(config.labels, items.label_names)
    names = names or tuple(map(str, range(predictor.outputs)))
    found = dict(islice(_examples(items, task, names, config.max_steps), COUNT))
    if not found:
        return Examples(label_names=items.label_names)
    typical = _typical(items.select(np.array([*found], dtype=np.int64)), predictor)
    return Examples(tuple(found.values()), items.label_names, typical)


def _typical(items: MultimodalDataset, predictor: Predictor) -> int:
    """Return which of N items is predicted with the median error."""
    values, labels = predictor.predict_sequences(items.sequences).values, items.labels
    if predictor.task is Task.classification:
        labels = np.eye(predictor.outputs)[labels.astype(np.int64)]
    errors = np.abs(labels - values).reshape(len(items), -1).mean(axis=1)
    return int(np.argsort(errors, kind="stable")[(len(items) - 1) // 2])


def _examples(
    items: MultimodalDataset, task: Task, names: Sequence[str], max_steps: int
) -> Iterator[tuple[int, ExampleAnswer]]:
    """Yield the numbers of items with any modality that a request can carry, and the items."""
    for number, name in enumerate(items.ids.tolist()):
        item: dict[str, Any] = {"id": name}
        for modality, sequences in items.sequences.items():
            rows = sequences[number]
            if 0 < len(rows) <= max_steps and np.isfinite(rows).all():
                # The fewest digits that identify a number: 0.1, not 0.10000000149011612.
                item[modality] = rows.astype(np.float32).astype(str).astype(np.float64).tolist()
        if len(item) > 1:
            yield number, ExampleAnswer(label=_label(items.labels, number, task, names), item=item)


def _label(labels: LabelArray, number: int, task: Task, names: Sequence[str]) -> Label:
    match task:
        case Task.regression:
            return float(labels[number])
        case Task.classification:
            return names[int(labels[number])]
        case Task.multilabel:
            return [name for name, is_set in zip(names, labels[number], strict=True) if is_set]
