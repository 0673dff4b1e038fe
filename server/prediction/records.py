"""Predictions as records, for JSON, and as columns, for tables.

Numbers have a ``prediction`` and ``std``, sentiment also ``seven_class`` (clipped to [-3, 3] and
rounded half to even) and ``sign``. Classes have the most probable as ``prediction``, labels those
of a probability of at least one half; both have the probability of each. Unknown values are None.

Every prediction is ``base``, what the train labels alone predict, and the ``contribution`` of each
modality: numbers of the label's unit, or of each class or label a part of its probability.

Notation: N items, K classes or labels.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.task import Task
from server.prediction.predictor import Floats, Predictions

Record = dict[str, Any]
Column = list[Any]


def records(
    ids: Sequence[str], predictions: Predictions, labels: Sequence[str] = ()
) -> list[Record]:
    """Return an object for each of N items, ready for JSON; labels are K names, or else numbers."""
    names = labels or _numbers(predictions)
    together = _outcomes(predictions, predictions.values, names)
    if predictions.std is not None:
        together["std"] = _known(predictions.std)
    known, shape = predictions.known, predictions.values.shape
    together["base"] = _plain(np.broadcast_to(predictions.base, shape), names, known)
    alone = {
        modality: _outcomes(predictions, values, names)
        | {"contribution": _plain(predictions.contributions[modality], names, known)}
        for modality, values in predictions.alone.items()
    }
    having = {modality: predictions.has(modality) for modality in alone}
    return [
        {
            "id": name,
            **_row(together, item),
            "modalities": {
                modality: _row(outcomes, item)
                for modality, outcomes in alone.items()
                if having[modality][item]
            },
        }
        for item, name in enumerate(ids)
    ]


def columns(
    ids: Sequence[str], predictions: Predictions, labels: Sequence[str] = ()
) -> dict[str, Column]:
    """Return N items as columns; labels are K names, or else numbers.

    Labels that are predicted are joined by ``;``. Each class or label has a column
    ``probability_NAME``; each modality has what it predicts alone, and its contribution.
    """
    names = labels or _numbers(predictions)
    together = _outcomes(predictions, predictions.values, names)
    table: dict[str, Column] = {"id": list(ids)} | _flat(together, names, "")
    if predictions.std is not None:
        table["std"] = _known(predictions.std)
    if predictions.sentiment:
        table |= {name: together[name] for name in ("seven_class", "sign")}
    for modality, values in predictions.alone.items():
        table |= _flat(_outcomes(predictions, values, names), names, f"_{modality}")
    shape, known = predictions.values.shape, predictions.known
    added = {"base": np.broadcast_to(predictions.base, shape)}
    added |= {f"contribution_{name}": part for name, part in predictions.contributions.items()}
    for title, part in added.items():
        rows = _plain(part, names, known)
        table |= {title: rows} if part.ndim == 1 else _by_name(title, rows, names)
    return table


def _by_name(title: str, rows: Column, names: Iterable[str]) -> dict[str, Column]:
    """Return a column of each class or label."""
    return {f"{title}_{name}": [row and row[name] for row in rows] for name in names}


def _numbers(predictions: Predictions) -> list[str]:
    return [str(number) for number in range(predictions.values.shape[-1])]


def _outcomes(predictions: Predictions, values: Floats, names: Sequence[str]) -> dict[str, Column]:
    """Return the parts of N predicted values, of all modalities or of one."""
    if predictions.task is Task.regression:
        return _of_numbers(values, predictions.sentiment)
    known = np.all(np.isfinite(values), axis=1)
    probabilities = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    chosen: Column
    if predictions.task is Task.classification:
        chosen = [names[best] for best in np.nan_to_num(values).argmax(axis=1)]
    else:
        chosen = [list(itertools.compress(names, row)) for row in values >= 0.5]
    return {"prediction": _known(chosen, known), "probabilities": _known(probabilities, known)}


def _of_numbers(values: Floats, sentiment: bool) -> dict[str, Column]:
    known = np.isfinite(values)
    numbers = np.where(known, values, 0)
    parts = {"prediction": numbers}
    if sentiment:
        sevens = np.rint(np.clip(numbers, -3, 3)).astype(int)
        signs = np.where(numbers >= 0, "positive", "negative")  # 0 as in two-class accuracy
        parts |= {"seven_class": sevens, "sign": signs}
    return {name: _known(part, known) for name, part in parts.items()}


def _known(values: NDArray[Any] | Column, known: NDArray[np.bool_] | None = None) -> Column:
    """Return plain values, with None for those that are not known: by default, not finite."""
    finite = np.isfinite(values).tolist() if known is None else known.tolist()
    plain = values if isinstance(values, list) else values.tolist()
    return [value if there else None for value, there in zip(plain, finite, strict=True)]


def _row(outcomes: dict[str, Column], item: int) -> Record:
    return {name: column[item] for name, column in outcomes.items()}


def _flat(outcomes: dict[str, Column], names: Iterable[str], suffix: str) -> dict[str, Column]:
    """Return the columns of predictions and of the probability of each class or label."""
    said = outcomes["prediction"]
    table = {f"prediction{suffix}": [";".join(v) if isinstance(v, list) else v for v in said]}
    if "probabilities" in outcomes:
        table |= _by_name(f"probability{suffix}", outcomes["probabilities"], names)
    return table


def _plain(values: Floats, names: Sequence[str], known: NDArray[np.bool_]) -> Column:
    """Return N numbers, or N objects of K, with None for those of which nothing is known."""
    rows: Column = values.tolist()
    if values.ndim > 1:
        rows = [dict(zip(names, row, strict=True)) for row in rows]
    return _known(rows, known)
