"""A trained model that predicts: three lines of Python.

    from server.prediction.predictor import Predictor

    predictor = Predictor.load("runs/2026-11-24/10-00-00")
    predictor.predict({"language": words, "audio": sounds}).values

Notation: N items, T steps, D feature width, K classes or labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import setting
from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset, Sequences
from common.data.federation import FederatedDataset, count_outputs, load_federation
from common.data.labels import class_names, names_fault
from common.data.source import Reading
from common.errors import UserError, parsed_as
from common.model.contributions import base_of, explain
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import encode
from common.task import Task
from server.model_file import load_model
from server.prediction.features import Features, sequences_of
from server.run.folder import CHECKPOINTS, CONFIG, MODEL, read_config, read_group

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
    #: Modality to what it adds to the prediction, as `values`; 0 where an item lacks it.
    contributions: Mapping[str, Floats]
    #: What the train labels alone predict: (), or (K,). With the contributions it sums to `values`.
    base: Floats
    #: Whether the numbers are sentiment in [-3, 3].
    sentiment: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) which items have any modality."""
        return _given(self.values)

    def has(self, name: str) -> NDArray[np.bool_]:
        """Return (N,) which items have a modality."""
        return _given(self.alone[name])


def _given(values: Floats) -> NDArray[np.bool_]:
    """Return (N,) which of (N,) or (N, K) values are not NaN."""
    there: NDArray[np.bool_] = ~np.isnan(values)
    return there if there.ndim == 1 else np.asarray(there.all(axis=1))


@dataclass(frozen=True)
class Predictor:
    """A model that predicts from any subset of its modalities; threads may share one."""

    #: In evaluation mode.
    model: HAFedformer
    fusion: Fusion
    #: How input is read, as in training.
    reading: Reading = field(default_factory=Reading)

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", **reading: int | None
    ) -> "Predictor":
        """Load the model of a run folder, a model file or a checkpoint, onto a device.

        Input is read as its data were. A model of before does not say how: then the settings of its
        run do, if its folder is known, see `run_of`, and `max_seq_len` and `context` where they are
        given. Raises `UserError` if there is no model, it is damaged, or these contradict it.
        """
        model, fusion = load_model(model_path(path))
        known = model.spec.reading
        given: dict[str, Any] = {name: v for name, v in reading.items() if v is not None}
        for name, value in given.items() if known else ():
            if (own := getattr(known, name)) != value:
                raise UserError(
                    f"{name}={value}: the model's data were read with {name}="
                    f"{'null' if own is None else own}; leave {name} out"
                )
        return cls(
            model.to(device), fusion, replace(known or reading_of_run(run_of(path)), **given)
        )

    @property
    def max_seq_len(self) -> int | None:
        """At most so many last steps of a sequence are used; None for all."""
        return self.reading.max_seq_len

    @property
    def task(self) -> Task:
        """Kind of label."""
        return self.fusion.task

    @property
    def outputs(self) -> int:
        """Numbers that are predicted: 1, or the number of classes or labels."""
        return self.model.spec.outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classes are called in data, in order; nothing for other tasks."""
        names = self.model.spec.label_names
        classes = self.task is Task.classification
        return class_names(names, self.outputs) if classes else ()

    @property
    def features(self) -> dict[str, tuple[int, ...]]:
        """Modality, in order, to (D,), or to (steps, D) where each step is another quantity."""
        return {name: tuple(shape) for name, shape in self.model.spec.features.items()}

    def predict(self, inputs: Mapping[str, Features]) -> Predictions:
        """Predict N items from any subset of the modalities; one item is N = 1.

        Features are in the units that the model was trained on; a value that is not finite counts
        as that feature's mean. Where `reading` has context, what came before an item in its group
        is in front of it. Raises `UserError` if there is no modality, one is unknown, or the
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
        outputs = count_outputs(task, items.label_names, items.labels)
        if outputs > self.outputs or (task is Task.multilabel and outputs != self.outputs):
            raise UserError(f"{what} has {outputs} classes or labels, and the model {self.outputs}")
        if fault := names_fault(task, items.label_names, outputs, self.model.spec.label_names):
            raise UserError(f"{what} has {fault} in the model")
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
            {name: np.zeros_like(unknown()) for name in names},
            base_of(self.fusion).numpy().astype(np.float32),
            self.model.spec.sentiment,
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
        explained = explain(self.model, self.fusion, encoded)
        together = explained.together
        result.values[rows] = together.values.float().cpu().numpy()
        if result.std is not None and together.std is not None:
            result.std[rows] = together.std.float().cpu().numpy()
        for name in names:
            result.contributions[name][rows] = explained.contributions[name].cpu().numpy()
            there = (encoded.lengths[name] > 0).cpu().numpy()
            result.alone[name][rows[there]] = explained.alone[name].cpu().numpy()[there]


def model_path(path: str | Path) -> Path:
    """Return a model file: the path, or that of a run folder; raise `UserError` if it has none."""
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / MODEL).is_file():
        raise UserError(
            f"{path} has no {MODEL}: expected the folder of a finished run, or a model or "
            f"checkpoint; to finish an interrupted run: utmp-train {setting('resume', path)}"
        )
    return path / MODEL


def run_of(path: str | Path) -> Path:
    """Return the folder that a model's run would have: around the file, and its checkpoints.

    Raises `UserError` as `model_path`.
    """
    folder = model_path(path).parent
    inside = folder.absolute()
    return inside.parent if inside.name == CHECKPOINTS else folder


def run_data(model: str, otherwise: str = "") -> FederatedDataset:
    """Load the data of a model's run; a `UserError` for a model alone ends with `otherwise`."""
    file = run_of(model) / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing, so the run's data are unknown{otherwise}")
    return load_federation(read_config(file))


def reading_of_run(folder: Path) -> Reading:
    """Return the ``dataset.*`` of the run in a folder that say how it read its data.

    Raises `UserError` if its ``config.yaml`` is damaged.
    """
    settings = read_group(folder / CONFIG, "dataset") if (folder / CONFIG).is_file() else {}
    try:
        return parsed_as(Reading, settings)
    except ValueError as error:
        raise UserError(f"dataset in the run's {CONFIG}: {error}") from error
