"""Predictions as records: what a file of predictions and an answer of the service hold.

Numbers: ``prediction``, ``std``, ``seven_class`` (clipped to [-3, 3] and rounded half to even) and
``sign``. Classes: the most probable, its probability, and that of each. Labels: those of a
probability of one half and more, and the probability of each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.task import Task
from server.prediction.predictor import Predictions

Record = dict[str, Any]


def records(
    ids: Sequence[str], predictions: Predictions, labels: Sequence[str] = ()
) -> list[Record]:
    """Return a plain object for each of N items, ready for JSON; unknown values are None.

    The labels are the names of the K classes or labels, by default their numbers.
    """
    names = list(labels) or [str(number) for number in range(predictions.values[:1].size)]
    return [
        {
            "id": name,
            **_outcome(predictions.task, predictions.values[item], names),
            **({} if predictions.std is None else {"std": _plain(predictions.std[item])}),
            "modalities": {
                modality: {
                    **_outcome(predictions.task, alone[item], names),
                    "weight": _plain(predictions.weights[modality][item]),
                }
                for modality, alone in predictions.alone.items()
                if predictions.weights[modality][item] > 0
            },
        }
        for item, name in enumerate(ids)
    ]


def seven_class(value: float) -> int:
    """Return the class of seven, from -3 to 3, of a number."""
    return round(min(max(value, -3), 3))


def sign(value: float) -> str:
    """Return ``negative`` or ``positive``; 0 is positive, as in two-class accuracy."""
    return "positive" if value >= 0 else "negative"


def _outcome(task: Task, values: NDArray[np.float32], names: Sequence[str]) -> Record:
    missing = not np.isfinite(values).all()
    if task is Task.regression:
        number = float(values)
        return {
            "prediction": None if missing else number,
            "seven_class": None if missing else seven_class(number),
            "sign": None if missing else sign(number),
        }
    if missing:
        return {"prediction": None, "probabilities": None}
    probabilities = {name: float(value) for name, value in zip(names, values, strict=True)}
    if task is Task.classification:
        return {"prediction": names[int(values.argmax())], "probabilities": probabilities}
    chosen = [name for name, value in probabilities.items() if value >= 0.5]
    return {"prediction": chosen, "probabilities": probabilities}


def _plain(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None
