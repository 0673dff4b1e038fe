"""A trained model that predicts: three lines of Python.

    from server.prediction.predictor import Predictor

    predictor = Predictor.load("runs/2026-11-24/10-00-00")
    predictor.predict({"language": words, "audio": sounds}).values

Notation: N items, T steps, D feature width, K classes or labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.batching import pad_all
from common.data.dataset import Sequences
from common.errors import UserError
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Encoded, encode, predict_encoded
from common.task import Task
from server.model_file import load_model
from server.prediction.features import Features, sequences_of
from server.run.folder import CONFIG, MODEL, read_settings

#: Items that go through the model together.
BATCH = 256

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """What is predicted for N items, and what each modality had to do with it.

    Attributes
    ----------
    task
        Kind of label.
    values
        Regression: (N,) numbers in units of the label. Otherwise (N, K) probabilities. NaN for an
        item without any modality.
    std
        Regression: (N,) predictive standard deviation, in units of the label. Otherwise None.
    alone
        Modality to what it predicts by itself, as `values`; NaN where an item lacks it.
    weights
        Modality to (N,) its share of the information about the label among those that the item
        has; 0 where it lacks it. They sum to 1 for an item with any.
    """

    task: Task
    values: Floats
    std: Floats | None
    alone: Mapping[str, Floats]
    weights: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Predictor:
    """A model that predicts from any subset of its modalities.

    Nothing in it changes after `load`, so that threads may share one.

    Attributes
    ----------
    model, fusion
        The model, in evaluation mode, and its fitted rule.
    max_seq_len
        At most so many last steps of a sequence are used, as in training; None for all.
    """

    model: HAFedformer
    fusion: Fusion
    max_seq_len: int | None = None

    @classmethod
    def load(
        cls, path: str | Path, device: str = "cpu", max_seq_len: int | None = None
    ) -> "Predictor":
        """Load the model of a run.

        Parameters
        ----------
        path
            A run folder, or a ``model.safetensors``.
        device
            As torch names it, such as "cuda".
        max_seq_len
            At most so many last steps are used; None: as many as in the run, where its
            ``config.yaml`` lies beside the model, else all.

        Raises
        ------
        UserError
            If there is no model, or it is damaged.
        """
        file = model_path(path)
        model, fusion = load_model(file)
        trained = number_in(dataset_settings(file.parent), "max_seq_len")
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
    def label_names(self) -> tuple[str, ...]:
        """What classes or labels are called; nothing where the data did not say."""
        names = self.model.spec.label_names
        return names if len(set(names)) == self.outputs else ()

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Modality, in order, to (D,), or to (steps, D) where each step is another quantity."""
        return {name: tuple(shape) for name, shape in self.model.spec.features.items()}

    def predict(self, inputs: Mapping[str, Features]) -> Predictions:
        """Predict items from the modalities that they have.

        Parameters
        ----------
        inputs
            Modality to features in the units that the model was trained on; any subset of its
            modalities. A value that is not finite counts as that feature's mean.

        Returns
        -------
        Predictions
            Of N items, in order; one item is N = 1. They do not depend on what else is asked at the
            same time.

        Raises
        ------
        UserError
            If there is no modality, one is not known, or features are not what it takes.
        """
        items = {
            name: sequences_of(name, given, self._shape(name)[-1]) for name, given in inputs.items()
        }
        return self.predict_sequences(items)

    def predict_sequences(
        self, items: Mapping[str, Sequences], batch_size: int = BATCH
    ) -> Predictions:
        """Predict items that were read from a file.

        Parameters
        ----------
        items
            Modality to its sequences, N each; length 0 where an item lacks it.
        batch_size
            Items that go through the model together.

        Raises
        ------
        UserError
            If there is no modality, one is not known, or not as wide as the model takes it.
        """
        for name, sequences in items.items():
            self.check(name, sequences)
        self._check_counts({name: len(sequences) for name, sequences in items.items()})
        names = [name for name in self.features if name in items]
        cut = {name: items[name].last_steps(self.max_seq_len) for name in names}
        parts = [self._batch(batch) for batch in _batches(cut, batch_size)]
        return _joined(parts) if parts else self._nothing(0, names)

    def check(self, name: str, sequences: Sequences) -> None:
        """Raise `UserError` for a modality that is not known, or not as the model takes it."""
        *steps, width = self._shape(name)
        if sequences.width != width:
            raise UserError(f"{name} is {sequences.width} wide; the model takes {width}")
        longest = int(sequences.lengths.max(initial=0))
        if steps and min(longest, self.max_seq_len or longest) > steps[0]:
            raise UserError(f"{name} has {longest} steps; the model takes {steps[0]} at most")

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.features:
            raise UserError(
                f"there is no modality {name!r}; the model takes {', '.join(self.features)}"
            )
        return self.features[name]

    def _check_counts(self, counts: Mapping[str, int]) -> None:
        if not counts:
            raise UserError(f"no modality is given; the model takes {', '.join(self.features)}")
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"items differ in number: {told}; put None where one lacks a modality")

    @torch.inference_mode()
    def _batch(self, items: Mapping[str, Sequences]) -> Predictions:
        """Predict some items; what none of them has is not computed."""
        device = next(self.model.parameters()).device
        names = [name for name, each in items.items() if (each.lengths > 0).any()]
        count = len(next(iter(items.values())))
        nothing = self._nothing(count, list(items))
        if not names:
            return nothing
        present = np.stack([items[name].lengths > 0 for name in names]).any(axis=0)
        having = np.flatnonzero(present)
        inputs = {name: pad_all(items[name].select(having)).to(device) for name in names}
        return _placed(self._predict(encode(self.model, inputs), names), having, nothing)

    def _predict(self, encoded: Encoded, names: list[str]) -> Predictions:
        """Predict items of which each has one modality at least."""
        together = predict_encoded(self.model, self.fusion, encoded, names)
        present = encoded.present(names)
        alone = {}
        for name, there in zip(names, present, strict=True):
            own = torch.full_like(together.values, torch.nan)
            chosen = encoded.select(there)
            own[there] = predict_encoded(self.model, self.fusion, chosen, [name]).values
            alone[name] = _numbers(own)
        shares = torch.tensor([self.fusion.weights[name] for name in names])[:, None]
        shares = shares * present.cpu()
        weights = shares / shares.sum(dim=0)
        return Predictions(
            self.task,
            _numbers(together.values),
            None if together.std is None else _numbers(together.std),
            alone,
            {name: _numbers(row) for name, row in zip(names, weights, strict=True)},
        )

    def _nothing(self, count: int, names: list[str]) -> Predictions:
        """Return the predictions of items that have no modality."""
        numbers = self.task is Task.regression
        values = np.full((count,) if numbers else (count, self.outputs), np.nan, dtype=np.float32)
        std = np.full(count, np.nan, dtype=np.float32) if numbers else None
        nought = np.zeros(count, dtype=np.float32)
        return Predictions(
            self.task, values, std, dict.fromkeys(names, values), dict.fromkeys(names, nought)
        )


def model_path(path: str | Path) -> Path:
    """Return the model file that a path stands for: itself, or that of a run folder.

    Raises
    ------
    UserError
        If a run folder has none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / MODEL).is_file():
        raise UserError(
            f"{path} has no {MODEL}: expected the folder of a finished run; one that broke off "
            f"goes on with utmp-train resume={path}"
        )
    return path / MODEL


def dataset_settings(folder: Path) -> dict[str, Any]:
    """Return the ``dataset.*`` of the run in a folder; nothing where there is no run.

    Raises
    ------
    UserError
        If its ``config.yaml`` is damaged.
    """
    if not (folder / CONFIG).is_file():
        return {}
    settings = read_settings(folder / CONFIG).get("dataset") or {}
    if not isinstance(settings, dict):
        raise UserError(f"{folder / CONFIG} is damaged: expected settings of the dataset")
    return settings


def number_in(settings: Mapping[str, Any], name: str) -> int | None:
    """Return a setting of ``dataset.*`` that is a whole number; None where there is none.

    Raises
    ------
    UserError
        If it is anything else.
    """
    value = settings.get(name)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise UserError(f"dataset.{name}={value} in the run's {CONFIG}: expected a whole number")
    return value


def _batches(items: Mapping[str, Sequences], size: int) -> Iterator[dict[str, Sequences]]:
    count = len(next(iter(items.values())))
    for start in range(0, count, size):
        index = np.arange(start, min(start + size, count))
        yield {name: sequences.select(index) for name, sequences in items.items()}


def _numbers(values: Tensor) -> Floats:
    numbers: Floats = values.float().cpu().numpy()
    return numbers


def _joined(parts: Sequence[Predictions]) -> Predictions:
    names = list(parts[0].alone)
    deviations = [part.std for part in parts if part.std is not None]
    return Predictions(
        parts[0].task,
        np.concatenate([part.values for part in parts]),
        np.concatenate(deviations) if deviations else None,
        {name: np.concatenate([part.alone[name] for part in parts]) for name in names},
        {name: np.concatenate([part.weights[name] for part in parts]) for name in names},
    )


def _placed(found: Predictions, places: NDArray[np.int64], nothing: Predictions) -> Predictions:
    """Put predictions at their places among items of which nothing is known."""

    def at(values: Floats, others: Floats) -> Floats:
        whole = others.copy()
        whole[places] = values
        return whole

    def each(values: Mapping[str, Floats], others: Mapping[str, Floats]) -> dict[str, Floats]:
        return {
            name: at(values[name], other) if name in values else other
            for name, other in others.items()
        }

    return Predictions(
        found.task,
        at(found.values, nothing.values),
        None if found.std is None or nothing.std is None else at(found.std, nothing.std),
        each(found.alone, nothing.alone),
        each(found.weights, nothing.weights),
    )
