"""From a file of items to a file of predictions, however large both are."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from common.config import PredictConfig
from common.data.dataset import Sequences, describe_shape
from common.data.item_stream import Items, ItemStream, open_items
from common.data.source import ReadSettings, paths_named
from common.errors import UserError
from common.task import Task
from common.training import choose_device
from server.prediction.input_settings import input_settings
from server.prediction.predictor import Predictions, Predictor
from server.prediction.writers import Part, check_place, write_predictions
from server.terminal import Terminal

#: Items that are read together, at least.
PART = 512


def predict_file(config: PredictConfig, terminal: Terminal) -> None:
    """Predict all items; raise `UserError` if model, input or output cannot be used."""
    torch.set_num_threads(config.threads)
    out = Path(config.out)
    check_place(out, config.overwrite)
    paths = paths_named("input", config.input)
    device = choose_device(config.device, "device")
    predictor = Predictor.load(str(config.model), device, config.max_seq_len)
    settings = input_settings(config, predictor, predicting=True)
    stream = open_items(paths, config.format, settings)
    labels = label_names(config.labels, stream, predictor)
    _show_input(terminal, predictor, str(config.model), stream)
    modalities, not_finite = Counter[str](), Counter[str]()

    with terminal.progress("items") as bar:
        task = bar.add_task("predicting", total=stream.count)

        def parts() -> Iterator[Part]:
            for part in stream.parts(max(PART, config.batch_size)):
                predictions = _predict(predictor, part, settings, config.batch_size)
                yield part.ids, predictions
                modalities.update(_modalities(predictions))
                for name, sequences in part.sequences.items():
                    not_finite[name] += sequences.not_finite()
                bar.advance(task, len(part.ids))

        write_predictions(out, parts(), labels)
    _show_predicted(terminal, modalities, not_finite)
    terminal.tell(f"predictions: {config.out}")


def label_names(given: list[str], stream: ItemStream, predictor: Predictor) -> tuple[str, ...]:
    """Return the names of classes or labels; raise `UserError` if those given do not fit."""
    outputs = predictor.outputs
    if given and predictor.task is Task.regression:
        raise UserError(f"labels={given}: the model predicts numbers, which have no names")
    if given and not outputs == len(given) == len(set(given)):
        raise UserError(f"labels={given}: expected {outputs} different names, one for each output")
    names = stream.label_names if len(set(stream.label_names)) == outputs else ()
    return tuple(given) or predictor.label_names or names


def _predict(
    predictor: Predictor, part: Items, settings: ReadSettings, batch_size: int
) -> Predictions:
    """Predict a part; a modality that no item has still gets its columns."""
    lengths = np.zeros(len(part.ids), dtype=np.int64)
    nothing = {
        name: Sequences(np.empty((0, predictor.features[name][-1]), np.float32), lengths, lengths)
        for name in settings.modalities
    }
    items = {name: part.sequences.get(name, nothing[name]) for name in settings.modalities}
    return predictor.predict_sequences(items, batch_size)


def _modalities(predictions: Predictions) -> Counter[str]:
    """Count items by the modalities that they were predicted from, joined by ``+``."""
    used = np.stack([weights > 0 for weights in predictions.weights.values()])
    patterns, counts = np.unique(used, axis=1, return_counts=True)
    names = ("+".join(itertools.compress(predictions.weights, pattern)) for pattern in patterns.T)
    return Counter(dict(zip(names, counts.tolist(), strict=True)))


def _show_input(terminal: Terminal, predictor: Predictor, path: str, stream: ItemStream) -> None:
    features = predictor.features.items()
    takes = ", ".join(f"{name} ({describe_shape(shape)})" for name, shape in features)
    terminal.tell(f"model {path}: {predictor.task}; {takes}; fusion {predictor.fusion.rule}")
    terminal.tell(f"input: {stream.format}, {stream.why}; {stream.count} items")
    for what, count in stream.cleaning.items():
        terminal.tell(f"cleaned: {count} {what}")


def _show_predicted(terminal: Terminal, modalities: Counter[str], not_finite: Counter[str]) -> None:
    for names, count in sorted(modalities.items(), key=lambda item: (-item[1], item[0])):
        if names:
            terminal.tell(f"{count} items from {names}")
    if without := modalities[""]:
        terminal.warn(f"{without} items have no modality: they get no prediction")
    for name, count in not_finite.items():
        if count:
            terminal.warn(f"{count} values of {name} are not finite and count as the mean")
