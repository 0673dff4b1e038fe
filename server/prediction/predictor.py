"""A trained model that predicts: three lines of Python.

    from server.prediction.predictor import Predictor

    predictor = Predictor.load("runs/2026-11-24/10-00-00")
    predictor.predict({"language": words, "audio": sounds}).values

Notation: N items, T steps, D feature width, K classes or labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import FederatedDataset, count_outputs, load_federation
from common.errors import UserError
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import encode, predict_encoded
from common.task import Task
from server.model_file import load_model
from server.prediction.features import Features, sequences_of
from server.run.folder import CONFIG, MODEL, read_config, read_group

#: Items that go through the model together.
BATCH = 256

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Predictions of N items."""

    task: Task
    #: Regression: (N,) numbers in units of the label. Otherwise (N, K) probabilities. NaN for an
    #: item without any modality.
    values: Floats
    #: Regression: (N,) predictive standard deviation, in units of the label. Otherwise None.
    std: Floats | None
    #: Modality to what it predicts by itself, as `values`; NaN where an item lacks it.
    alone: Mapping[str, Floats]
    #: Modality to (N,) its share of the information about the label among those that the item has;
    #: 0 where it lacks it. They sum to 1 for an item with any.
    weights: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Predictor:
    """A model that predicts from any subset of its modalities; threads may share one."""

    #: In evaluation mode.
    model: HAFedformer
    fusion: Fusion
    #: At most so many last steps of a sequence are used, as in training; None for all.
    max_seq_len: int | None = None

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", max_seq_len: int | None = None
    ) -> "Predictor":
        """Load the model of a run folder, or a ``model.safetensors``, onto a device.

        By default as many last steps are used as in the run, if its ``config.yaml`` is beside the
        model. Raises `UserError` if there is no model, or it is damaged.
        """
        file = model_path(path)
        model, fusion = load_model(file)
        trained = dataset_settings(file.parent).get("max_seq_len")
        return cls(model.to(device), fusion, max_seq_len or trained)

    @property
    def task(self) -> Task:
        """Kind of label."""
        return self.fusion.task

    @property
    def outputs(self) -> int:
        """Numbers that are predicted: 1, or the number of classes or labels."""
        return self.model.spec.outputs

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Modality, in order, to (D,), or to (steps, D) where each step is another quantity."""
        return {name: tuple(shape) for name, shape in self.model.spec.features.items()}

    def predict(self, inputs: Mapping[str, Features]) -> Predictions:
        """Predict N items from any subset of the modalities; one item is N = 1.

        Features are in the units that the model was trained on; a value that is not finite counts
        as that feature's mean. Raises `UserError` if there is no modality, one is unknown, or the
        features do not fit the model.
        """
        self.check_names(inputs)
        return self.predict_sequences(
            {name: sequences_of(name, inputs[name], self.features[name][-1]) for name in inputs}
        )

    def predict_sequences(
        self, items: Mapping[str, Sequences], batch_size: int = BATCH
    ) -> Predictions:
        """Predict items that were read from a file, like `predict`, so many at a time.

        Sequences have length 0 where an item lacks the modality.
        """
        if not items:
            raise UserError(f"no modality is given; the model takes {', '.join(self.features)}")
        for name, sequences in items.items():
            self.check(name, sequences)
        count, *others = {len(sequences) for sequences in items.values()}
        if others:
            listed = ", ".join(f"{len(given)} of {name}" for name, given in items.items())
            raise UserError(
                f"items differ in number: {listed}; put None where one lacks a modality"
            )
        names = [name for name in self.features if name in items]
        cut = {name: items[name].last_steps(self.max_seq_len) for name in names}
        result = self._unknown(count, names)
        for start in range(0, len(result), batch_size):
            self._fill(result, cut, np.arange(start, min(start + batch_size, len(result))))
        return result

    def names(self, given: Sequence[str] = (), of_data: Sequence[str] = ()) -> tuple[str, ...]:
        """Return what classes or labels are called: as given, by the model, or else by the data.

        Nothing if none of them names each output. Raises `UserError` if those given do not.
        """
        if given and self.task is Task.regression:
            raise UserError(f"labels={given}: the model predicts numbers, which have no names")
        if given and not self.outputs == len(given) == len(set(given)):
            raise UserError(
                f"labels={given}: expected {self.outputs} different names, one for each output"
            )
        for names in (given, self.model.spec.label_names, of_data):
            if len(names) == len(set(names)) == self.outputs:
                return tuple(names)
        return ()

    def check(self, name: str, sequences: Sequences, where: str = "") -> None:
        """Raise `UserError` for a modality that is unknown, or does not fit the model."""
        self.check_names([name], where)
        *steps, width = self.features[name]
        if sequences.width != width:
            raise UserError(f"{where}{name} is {sequences.width} wide; the model takes {width}")
        longest = int(sequences.lengths.max(initial=0))
        if steps and min(longest, self.max_seq_len or longest) > steps[0]:
            raise UserError(
                f"{where}{name} has {longest} steps; the model takes {steps[0]} at most"
            )

    def check_items(self, what: str, task: Task, items: MultimodalDataset) -> None:
        """Raise `UserError` for labelled items, called `what`, that do not fit the model."""
        if task is not self.task:
            raise UserError(f"{what} has labels for {task}, and the model is for {self.task}")
        outputs = count_outputs(task, items.labels)
        if outputs > self.outputs or (task is Task.multilabel and outputs != self.outputs):
            raise UserError(f"{what} has {outputs} classes or labels, and the model {self.outputs}")
        for name, sequences in items.sequences.items():
            self.check(name, sequences, f"{what}: ")

    def check_names(self, names: Iterable[str], where: str = "") -> None:
        """Raise `UserError` for a modality that the model does not have."""
        for name in names:
            if name not in self.features:
                known = ", ".join(self.features)
                raise UserError(f"{where}there is no modality {name!r}; the model takes {known}")

    def _unknown(self, count: int, names: list[str]) -> Predictions:
        """Return the predictions of items that have no modality, to be filled in."""
        numbers = self.task is Task.regression

        def unknown() -> Floats:
            return np.full((count,) if numbers else (count, self.outputs), np.nan, np.float32)

        return Predictions(
            self.task,
            unknown(),
            unknown() if numbers else None,
            {name: unknown() for name in names},
            {name: np.zeros(count, dtype=np.float32) for name in names},
        )

    @torch.inference_mode()
    def _fill(
        self, result: Predictions, items: Mapping[str, Sequences], index: NDArray[np.int64]
    ) -> None:
        """Predict the items of an index, from the modalities that any of them has."""
        present = {name: sequences.present[index] for name, sequences in items.items()}
        names = [name for name, there in present.items() if there.any()]
        if not names:
            return
        rows = index[np.stack([present[name] for name in names]).any(axis=0)]
        device = next(self.model.parameters()).device
        inputs = {name: pad_all(items[name].select(rows)).to(device) for name in names}
        encoded = encode(self.model, inputs)
        together = predict_encoded(self.model, self.fusion, encoded, names)
        result.values[rows] = together.values.float().cpu().numpy()
        if result.std is not None and together.std is not None:
            result.std[rows] = together.std.float().cpu().numpy()
        having = encoded.present(names)
        shares = torch.tensor([self.fusion.weights[name] for name in names])[:, None]
        shares = shares * having.cpu()
        for name, there, weights in zip(names, having, shares / shares.sum(dim=0), strict=True):
            own = predict_encoded(self.model, self.fusion, encoded.select(there), [name])
            result.alone[name][rows[there.cpu().numpy()]] = own.values.float().cpu().numpy()
            result.weights[name][rows] = weights.numpy()


def model_path(path: str | Path) -> Path:
    """Return a model file: the path, or that of a run folder; raise `UserError` if it has none."""
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / MODEL).is_file():
        raise UserError(
            f"{path} has no {MODEL}: expected the folder of a finished run; to finish an "
            f"interrupted one: utmp-train resume={path}"
        )
    return path / MODEL


def run_data(model: str, otherwise: str = "") -> FederatedDataset:
    """Load the data of a model's run; a `UserError` for a model alone ends with `otherwise`."""
    file = model_path(model).parent / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing, so the run's data are unknown{otherwise}")
    return load_federation(read_config(file))


def dataset_settings(folder: Path) -> dict[str, Any]:
    """Return the ``dataset.*`` of the run in a folder; nothing where there is no run.

    Raises `UserError` if its ``config.yaml`` is damaged.
    """
    if not (folder / CONFIG).is_file():
        return {}
    settings = read_group(folder / CONFIG, "dataset")
    for name in ("max_seq_len", "context"):
        value = settings.get(name)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise UserError(
                f"dataset.{name}={value} in the run's {CONFIG}: expected a whole number"
            )
    return settings
