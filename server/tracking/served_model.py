"""The model as MLflow loads it: any subset of the modalities in, predictions out.

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
from mlflow.entities import LoggedModel
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
    """What MLflow calls.

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
            For each modality its features (N, T, D), right-padded, and its lengths (N,); 0 where an
            item lacks it.

        Returns
        -------
        dict
            ``prediction``, (N,) or (N, K), NaN for an item without any modality; for numbers
            ``std``, (N,), too.
        """
        names = [name for name in self._predictor.features if name in inputs]
        items = {name: _sequences(inputs[name], inputs[f"{name}_lengths"]) for name in names}
        found = self._predictor.predict_sequences(items)
        outputs: Arrays = {"prediction": found.values}
        return outputs if found.std is None else {**outputs, "std": found.std}


def _load_pyfunc(path: str) -> ServedModel:
    """Load the model; MLflow looks for this name."""
    return ServedModel(Predictor.load(path))


def save_served(path: Path, run: Path, run_id: str, logged: LoggedModel) -> None:
    """Save the model of a run folder as MLflow wants it.

    Parameters
    ----------
    path
        The folder that is made.
    run
        The run folder.
    run_id, logged
        The MLflow run, and the model that MLflow has an entry of.
    """
    with TemporaryDirectory() as folder:
        data = Path(folder) / "run"
        data.mkdir()
        for name in (MODEL, CONFIG):
            shutil.copy(run / name, data / name)
        predictor = Predictor.load(data)
        mlflow.pyfunc.save_model(
            path,
            loader_module=__name__,
            data_path=str(data),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
            signature=signature(predictor),
            input_example=_example(predictor),
            pip_requirements=[_requirement()],
        )


def signature(predictor: Predictor) -> ModelSignature:
    """Return the names, types and shapes of what goes in and what comes out."""
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
