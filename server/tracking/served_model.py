"""The model that MLflow loads: any subset of the modalities in, predictions out.

    model = mlflow.pyfunc.load_model("models:/m-…")
    model.predict({"language": words, "language_lengths": lengths, "audio": …})

Notation: N items, T steps, D feature width, K classes or labels.
"""

import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from common.data.dataset import Sequences
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor
from server.run.folder import CONFIG, MODEL

#: Features (N, T, D) or lengths (N,).
Numbers = NDArray[np.float32] | NDArray[np.int64]
Arrays = dict[str, Numbers]


class ServedModel:
    """The object that MLflow calls.

    Parameters
    ----------
    predictor
        The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, inputs: Mapping[str, Any]) -> Arrays:
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
        items = {name: _sequences(inputs[name], inputs[f"{name}_lengths"]) for name in names}
        predictions = self._predictor.predict_sequences(items)
        outputs: Arrays = {"prediction": predictions.values}
        return outputs if predictions.std is None else {**outputs, "std": predictions.std}


def _load_pyfunc(path: str) -> ServedModel:
    """Load the model; MLflow calls the loader module's function of this name."""
    return ServedModel(Predictor.load(path))


def log_served(folder: Path, run_id: str) -> None:
    """Log the model of a run folder to an MLflow run, with a signature and an example.

    Parameters
    ----------
    folder
        The run folder.
    run_id
        The MLflow run.
    """
    with TemporaryDirectory() as temporary:
        data = Path(temporary) / "run"
        data.mkdir()
        for name in (MODEL, CONFIG):
            shutil.copy(folder / name, data / name)
        predictor = Predictor.load(data)
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="model",
            run_id=run_id,
            loader_module=__name__,
            data_path=str(data),
            signature=signature(predictor),
            input_example=_example(predictor),
            pip_requirements=[_requirement()],
        )


def signature(predictor: Predictor) -> ModelSignature:
    """Return the names, types and shapes of inputs and outputs."""
    outputs = [TensorSpec(np.dtype(np.float32), _shape(predictor), "prediction")]
    if predictor.task is Task.regression:
        outputs.append(TensorSpec(np.dtype(np.float32), (-1,), "std"))
    return ModelSignature(Schema([*_inputs(predictor)]), Schema([*outputs]))


def _inputs(predictor: Predictor) -> Iterator[TensorSpec]:
    for name, shape in predictor.features.items():
        yield TensorSpec(np.dtype(np.float32), (-1, -1, shape[-1]), name)
        yield TensorSpec(np.dtype(np.int64), (-1,), f"{name}_lengths")


def _example(predictor: Predictor) -> Arrays:
    """Return one item that has every modality."""
    example: Arrays = {}
    for name, shape in predictor.features.items():
        steps = shape[0] if len(shape) > 1 else 2
        example[name] = np.zeros((1, steps, shape[-1]), dtype=np.float32)
        example[f"{name}_lengths"] = np.array([steps], dtype=np.int64)
    return example


def _shape(predictor: Predictor) -> tuple[int, ...]:
    return (-1,) if predictor.task is Task.regression else (-1, predictor.outputs)


def _sequences(values: NDArray[np.float32], lengths: NDArray[np.int64]) -> Sequences:
    items, steps, width = values.shape
    if (lengths < 0).any() or (lengths > steps).any():
        raise UserError(f"lengths from {lengths.min()} to {lengths.max()}: there are {steps} steps")
    starts = np.arange(items, dtype=np.int64) * steps
    return Sequences(values.reshape(-1, width), starts, lengths.astype(np.int64))


def _requirement() -> str:
    try:
        return f"ha-fedformer=={version('ha-fedformer')}"
    except PackageNotFoundError:
        return "ha-fedformer"
