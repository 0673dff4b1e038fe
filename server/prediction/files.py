"""From a file of items to a file of predictions, however large both are."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config import PredictConfig, ReadingSettings
from common.data.dataset import ItemPart, Sequences, describe_shape
from common.data.item_stream import ItemStream, open_items
from common.data.source import ReadSettings, paths_named
from common.training import choose_device
from server.prediction.predictor import Predictor
from server.prediction.writers import Part, check_place, write_predictions
from server.terminal import Terminal, counted

#: Items that are read together, at least.
PART = 512


def predict_file(config: PredictConfig, terminal: Terminal) -> None:
    """Predict all items; raise `UserError` if model, input or output cannot be used."""
    torch.set_num_threads(config.threads)
    out = Path(config.out)
    check_place(out, config.overwrite)
    paths = paths_named("input", config.input)
    device = choose_device(config.device, "device")
    predictor = load_predictor(config, device)
    settings = input_settings(config, predictor, predicting=True)
    stream = open_items(paths, config.format, settings)
    labels = predictor.names(config.labels, stream.label_names)
    _show_input(terminal, predictor, str(config.model), stream)
    modalities, not_finite = Counter[str](), Counter[str]()

    with terminal.progress("items") as bar:
        task = bar.add_task("predicting", total=stream.count)

        def parts() -> Iterator[Part]:
            for part in stream.parts(max(PART, config.batch_size)):
                items = _complete(part, settings.modalities, predictor)
                predictions = predictor.predict_sequences(items, config.batch_size)
                yield part.ids, predictions
                used = zip(*map(predictions.has, predictions.alone), strict=True)
                modalities.update("+".join(compress(predictions.alone, row)) for row in used)
                for name, sequences in part.sequences.items():
                    not_finite[name] += sequences.not_finite()
                bar.advance(task, len(part.ids))

        write_predictions(out, parts(), labels)
    terminal.data(stream.cleaning)  # of a stream, known at its end
    _show_predicted(terminal, modalities, not_finite)
    terminal.tell(f"predictions: {config.out}")


def load_predictor(config: ReadingSettings, device: str | torch.device) -> Predictor:
    """Load the model that a command names; raise `UserError` as `Predictor.load`."""
    given = {"max_seq_len": config.max_seq_len, "context": config.context}
    return Predictor.load(str(config.model), device, **given)


def input_settings(config: ReadingSettings, predictor: Predictor, **others: Any) -> ReadSettings:
    """Return how an input is read for a predictor: as the model's data were.

    `others` are further settings of `ReadSettings`. Raises `UserError` if a modality is not one of
    the model's.
    """
    names = tuple(dict.fromkeys(config.modalities or predictor.features))
    predictor.check_names(names, "modalities: ")
    predictor.check_names(config.arrays, "arrays: ")
    reading = predictor.reading
    # Groups matter only where an item takes context from its neighbours.
    group = (config.group or reading.group) if reading.context else None
    return ReadSettings(
        **{**vars(reading), "group": group, **others},
        modalities=names,
        tabular=tuple(name for name in names if len(predictor.features[name]) == 2),
        arrays=config.arrays,
    )


def _complete(part: ItemPart, names: Iterable[str], predictor: Predictor) -> dict[str, Sequences]:
    """Return the sequences of all modalities: one that no item has still gets its columns."""
    lengths = np.zeros(len(part.ids), dtype=np.int64)
    nothing = {
        name: Sequences.ragged(np.empty((0, predictor.features[name][-1]), np.float32), lengths)
        for name in names
    }
    return {name: part.sequences.get(name, nothing[name]) for name in names}


def _show_input(terminal: Terminal, predictor: Predictor, path: str, stream: ItemStream) -> None:
    features = predictor.features.items()
    takes = ", ".join(f"{name} ({describe_shape(shape)})" for name, shape in features)
    about = f"model {path}: {predictor.task}; {takes}; fusion {predictor.fusion.rule}"
    terminal.tell(about, wrap=True)
    terminal.tell(f"input: {stream.format}, {stream.why}; {counted(stream.count, 'item')}")


def _show_predicted(terminal: Terminal, modalities: Counter[str], not_finite: Counter[str]) -> None:
    for names, count in sorted(modalities.items(), key=lambda item: (-item[1], item[0])):
        if names:
            terminal.tell(f"{counted(count, 'item')} from {names}")
    if without := modalities[""]:
        what = counted(without, "item")
        terminal.warn(f"{what} without any modality: no prediction")
    for name, count in not_finite.items():
        if count:
            terminal.warn(f"{count} values of {name} are not finite and count as the mean")
