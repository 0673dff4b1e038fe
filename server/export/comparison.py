"""An ONNX file beside the model that it was made from: the same numbers, whatever the batch.

Notation: B items, T steps, D feature width.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.batching import Padded
from common.errors import UserError
from common.model.encoder import Encoder
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import predict
from common.seeding import derive_seed
from server.export.graph import lengths_of, output_names, steps_of

#: How far ONNX may be from torch; times the largest number predicted, if that is above 1.
TOLERANCE = 1e-4

#: Items, and the most steps, of the batches that are tried; none is the one that torch followed.
BATCHES = ((1, 1), (1, 7), (2, 1), (5, 3), (16, 12), (3, 40))

Inputs = Mapping[str, Padded]
Outputs = dict[str, NDArray[np.float32]]


def largest_difference(
    content: bytes, model: HAFedformer, fusion: Fusion, names: Sequence[str]
) -> float:
    """Run an ONNX file and the model on random batches.

    Parameters
    ----------
    content
        The file's.
    model, fusion
        In evaluation mode, on the CPU; and its fitted rule.
    names
        The modalities that the file takes.

    Returns
    -------
    float
        The largest difference of any two numbers.

    Raises
    ------
    UserError
        If one is not as near as `TOLERANCE`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for number, inputs in enumerate(batches(model, names)):
        found, wanted = run_onnx(session, inputs), run_torch(model, fusion, inputs)
        for name, expected in wanted.items():
            difference = _difference(found[name], expected)
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

    Each has an item with a modality at least; the last item of the larger ones may have none.
    """
    for number, (items, most) in enumerate(BATCHES):
        random = torch.Generator().manual_seed(derive_seed("export", number))
        inputs = {
            name: _draw(model, name, items, max(most - place, 1), random)
            for place, name in enumerate(names)
        }
        # Of the first item everything is there, and of the last one nothing.
        for padded in inputs.values():
            padded.lengths[0] = padded.values.shape[1]
            if items > 2:
                padded.lengths[-1] = 0
        yield inputs


def run_torch(model: HAFedformer, fusion: Fusion, inputs: Inputs) -> Outputs:
    """Predict with the model; NaN for items without any modality."""
    having = torch.stack([padded.lengths > 0 for padded in inputs.values()]).any(dim=0)
    chosen = {
        name: Padded(padded.values[having], padded.lengths[having])
        for name, padded in inputs.items()
    }
    found = predict(model, fusion, chosen)
    parts = [found.values, *([] if found.std is None else [found.std])]
    return {
        name: _spread(part, having)
        for name, part in zip(output_names(fusion.task), parts, strict=True)
    }


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
    width = model.spec.features[name][-1]
    noise = torch.randn(items, steps, width, generator=random)
    # A feature that is constant has the scale 0.
    scale = torch.where(encoder.standardise.scale > 0, 1 / encoder.standardise.scale, 0.0)
    values = encoder.standardise.mean + noise * scale
    values[torch.rand(values.shape, generator=random) < 0.02] = torch.nan
    lengths = torch.randint(0, steps + 1, (items,), generator=random)
    if steps_of(model.spec, name):
        lengths = torch.where(lengths > steps // 2, steps, 0)
    return Padded(values, lengths)


def _spread(part: Tensor, having: Tensor) -> NDArray[np.float32]:
    whole = torch.full((len(having), *part.shape[1:]), torch.nan)
    whole[having] = part
    array: NDArray[np.float32] = whole.numpy()
    return array


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference; infinity where only one is NaN, or shapes differ."""
    if found.shape != expected.shape or (np.isnan(found) != np.isnan(expected)).any():
        return float("inf")
    return float(np.nanmax(np.abs(found - expected)))
