"""From a file of items to a file of predictions, however large both are."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from common.config import PredictConfig
from common.data.dataset import Sequences
from common.data.item_stream import Items, ItemStream, open_items
from common.data.source import ReadSettings
from common.errors import UserError
from common.task import Task
from server.prediction.console import PredictConsole
from server.prediction.input_settings import device_named, input_settings, paths_named
from server.prediction.predictor import Predictions, Predictor
from server.prediction.writers import check_place, prediction_file

#: Items that are read together.
PART = 512


def predict_file(config: PredictConfig, console: PredictConsole) -> None:
    """Predict all items of an input.

    Parameters
    ----------
    config
        With what, from where, to where.
    console
        Follows the progress.

    Raises
    ------
    UserError
        If the model, the input or the output cannot be used.
    """
    assert config.model is not None
    torch.set_num_threads(config.threads)
    out = Path(config.out)
    check_place(out, config.overwrite)
    paths = paths_named("input", config.input)
    predictor = Predictor.load(config.model, device_named(config.device), config.max_seq_len)
    settings = input_settings(config, predictor, predicting=True)
    stream = open_items(paths, config.format, settings)
    labels = label_names(config.labels, stream, predictor)
    console.model(predictor, config.model)
    console.source(stream)
    modalities, not_finite = Counter[str](), Counter[str]()
    with prediction_file(out, labels) as write, console:
        for part in stream.parts(max(PART, config.batch_size)):
            predictions = _predict(predictor, part, settings, config.batch_size)
            write(part.ids, predictions)
            modalities += _modalities(predictions)
            for name, sequences in part.sequences.items():
                not_finite[name] += sequences.not_finite()
            console.advance(len(part.ids))
    console.predicted(modalities, not_finite, config.out)


def label_names(given: list[str], stream: ItemStream, predictor: Predictor) -> tuple[str, ...]:
    """Return what classes or labels are called; nothing where nobody says.

    Raises
    ------
    UserError
        If the model predicts numbers, or there is not one name for each of its outputs.
    """
    outputs = predictor.outputs
    if given and predictor.task is Task.regression:
        raise UserError(f"labels={given}: the model predicts numbers, which have no names")
    if given and not outputs == len(given) == len(set(given)):
        raise UserError(f"labels={given}: expected {outputs} different names, one for each output")
    told = stream.label_names if len(set(stream.label_names)) == outputs else ()
    return tuple(given) or predictor.label_names or told


def _predict(
    predictor: Predictor, part: Items, settings: ReadSettings, batch_size: int
) -> Predictions:
    """Predict a part; every modality gets its columns, also where no item has it."""
    lacking = np.zeros(len(part.ids), dtype=np.int64)
    items: Mapping[str, Sequences] = {
        name: part.sequences[name]
        if name in part.sequences
        else Sequences(
            np.empty((0, predictor.features[name][-1]), dtype=np.float32), lacking, lacking
        )
        for name in settings.modalities
    }
    return predictor.predict_sequences(items, batch_size)


def _modalities(predictions: Predictions) -> Counter[str]:
    """Count items by the modalities that they were predicted from, joined by ``+``."""
    names = list(predictions.weights)
    used = np.stack([predictions.weights[name] > 0 for name in names])
    patterns, numbers = np.unique(used, axis=1, return_counts=True)
    return Counter(
        {
            "+".join(name for name, there in zip(names, pattern, strict=True) if there): number
            for pattern, number in zip(patterns.T, numbers.tolist(), strict=True)
        }
    )
