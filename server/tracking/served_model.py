"""The model that MLflow loads: any subset of the modalities in, predictions out.

    model = mlflow.pyfunc.load_model("models:/m-…")
    model.predict({"language": words, "language_lengths": lengths, "audio": …})

Notation: N items, T steps, D feature width, K classes or labels.
"""

import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor
from server.run.folder import CONFIG, MODEL

Floats = NDArray[np.float32]
Lengths = NDArray[np.int64]


class ServedModel:
    """The object that MLflow calls."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Floats]:
        """Predict N items.

        Parameters
        ----------
        inputs
            For each modality its features (N, T, D), right-padded, and its lengths (N,), 0 if an
            item lacks it.

        Returns
        -------
        dict
            ``prediction``, (N,) or (N, K), NaN for an item without any modality; for numbers
            ``std``, (N,), too.
        """
        names = [name for name in self._predictor.features if name in inputs]
        items = {name: _unpadded(inputs[name], inputs[f"{name}_lengths"]) for name in names}
        predictions = self._predictor.predict(items)
        outputs = {"prediction": predictions.values}
        return outputs if predictions.std is None else {**outputs, "std": predictions.std}


def _unpadded(values: Floats, lengths: Lengths) -> list[Floats]:
    steps = values.shape[1]
    if (lengths < 0).any() or (lengths > steps).any():
        raise UserError(f"lengths from {lengths.min()} to {lengths.max()}: there are {steps} steps")
    return [item[:length] for item, length in zip(values, lengths, strict=True)]


def _load_pyfunc(path: str) -> ServedModel:
    """Load the model; MLflow calls the loader module's function of this name."""
    return ServedModel(Predictor.load(path))


def log_served(folder: Path, run_id: str) -> None:
    """Log the model of a run folder to an MLflow run, with a signature and an example."""
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "run"
        data.mkdir()
        for name in (MODEL, CONFIG):
            shutil.copy(folder / name, data / name)
        predictor = Predictor.load(data)
        example = _example(predictor)
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=run_id,
            loader_module=__name__,
            data_path=str(data),
            signature=_signature(predictor, example),
            input_example=example,
            pip_requirements=[_requirement()],
        )


def _requirement() -> str:
    try:
        return f"ha-fedformer=={version('ha-fedformer')}"
    except PackageNotFoundError:
        return "ha-fedformer"


def _example(predictor: Predictor) -> dict[str, Floats | Lengths]:
    """Return one item that has every modality."""
    example: dict[str, Floats | Lengths] = {}
    for name, shape in predictor.features.items():
        steps = shape[0] if len(shape) > 1 else 2
        example[name] = np.zeros((1, steps, shape[-1]), dtype=np.float32)
        example[f"{name}_lengths"] = np.array([steps], dtype=np.int64)
    return example


def _signature(predictor: Predictor, example: dict[str, Floats | Lengths]) -> ModelSignature:
    """Return the names, types and shapes of inputs and outputs; numbers of items and steps vary."""
    inputs = [
        TensorSpec(given.dtype, (-1, -1, *given.shape[2:])[: given.ndim], name)
        for name, given in example.items()
    ]
    shapes: dict[str, tuple[int, ...]] = {"prediction": (-1, predictor.outputs)}
    if predictor.task is Task.regression:
        shapes = {"prediction": (-1,), "std": (-1,)}
    outputs = [TensorSpec(np.dtype(np.float32), shape, name) for name, shape in shapes.items()]
    return ModelSignature(Schema([*inputs]), Schema([*outputs]))
