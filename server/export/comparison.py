"""Compares an ONNX file with the model that it was exported from, on random batches."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from common.data.batching import Padded
from common.errors import UserError
from common.model.encoder import Encoder
from common.model.ha_fedformer import HAFedformer
from common.seeding import derive_seed
from server.export.graph import lengths_of, steps_of
from server.prediction.predictor import Predictor

#: The largest difference from torch, relative to the largest predicted number if that exceeds 1.
TOLERANCE = 1e-4

#: Items, and the most steps, of the random batches; none has the sizes of the exported example.
BATCHES = ((1, 1), (1, 7), (2, 1), (5, 3), (16, 12), (3, 70))

Inputs = Mapping[str, Padded]
Outputs = dict[str, NDArray[np.float32]]


def largest_difference(content: bytes, predictor: Predictor, names: Sequence[str]) -> float:
    """Return the largest difference between an ONNX file and its model on the CPU.

    Raises `UserError` if a difference exceeds `TOLERANCE`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for number, inputs in enumerate(batches(predictor.model, names)):
        outputs = run_onnx(session, inputs)
        for name, expected in run_torch(predictor, inputs).items():
            output = outputs[name]
            alike = (
                output.shape == expected.shape and (np.isnan(output) == np.isnan(expected)).all()
            )
            difference = float(np.nanmax(np.abs(output - expected))) if alike else math.inf
            if not difference <= TOLERANCE * max(1.0, float(np.nanmax(np.abs(expected)))):
                raise UserError(
                    f"{'+'.join(names)}: ONNX predicts another {name} than torch, by "
                    f"{difference:.2g} in batch {number}, and {TOLERANCE} is allowed; nothing is "
                    "written"
                )
            worst = max(worst, difference)
    return worst


def batches(model: HAFedformer, names: Sequence[str]) -> Iterator[dict[str, Padded]]:
    """Draw batches like the model's own features: short, long, with absent modalities, with NaN.

    The first item of a batch has every modality, the last one of a larger batch has none.
    """
    for number, (items, most) in enumerate(BATCHES):
        random = torch.Generator().manual_seed(derive_seed("export", number))
        inputs = {
            name: _draw(model, name, items, max(most - place, 1), random)
            for place, name in enumerate(names)
        }
        for padded in inputs.values():
            padded.lengths[0] = padded.values.shape[1]
            if items > 2:
                padded.lengths[-1] = 0
        yield inputs


def run_torch(predictor: Predictor, inputs: Inputs) -> Outputs:
    """Predict with the model; NaN for items without any modality."""
    items = {
        name: [values[:length] for values, length in zip(*padded, strict=True)]
        for name, padded in inputs.items()
    }
    predicted = predictor.predict(items)
    outputs = {"prediction": predicted.values}
    return outputs if predicted.std is None else {**outputs, "std": predicted.std}


def run_onnx(session: onnxruntime.InferenceSession, inputs: Inputs) -> Outputs:
    """Predict with an ONNX file."""
    given = {name: padded.values.numpy() for name, padded in inputs.items()}
    given |= {lengths_of(name): padded.lengths.numpy() for name, padded in inputs.items()}
    titles = [output.name for output in session.get_outputs()]
    return dict(zip(titles, session.run(None, given), strict=True))


def _draw(model: HAFedformer, name: str, items: int, most: int, random: torch.Generator) -> Padded:
    encoder = model.encoders[name]
    assert isinstance(encoder, Encoder)
    steps = steps_of(model.spec, name) or most
    noise = torch.randn(items, steps, model.spec.features[name][-1], generator=random)
    # A feature that is constant has the scale 0.
    scale = torch.where(encoder.standardise.scale > 0, 1 / encoder.standardise.scale, 0.0)
    values = encoder.standardise.mean + noise * scale
    values[torch.rand(values.shape, generator=random) < 0.02] = torch.nan
    lengths = torch.randint(0, steps + 1, (items,), generator=random)
    if steps_of(model.spec, name):
        lengths = torch.where(lengths > steps // 2, steps, 0)
    return Padded(values, lengths)
