"""Evaluation on multimodal items: all modalities together, each alone, any rule, any subset.

Every batch is encoded once, whatever is asked of it; on a CPU several batches at a time.

Notation: N items, M modalities, K classes or labels.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.batching import pad_all
from common.data.dataset import LabelArray, MultimodalDataset
from common.diagnostics import diagnostics
from common.metrics import ConstantPredictions, compute_metrics
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Encoded, Prediction, encode, predict_encoded

#: Items of a batch, about: few enough that those of a small dataset are several.
BATCH = 128

#: Batches at a time, at most: each has its place in memory.
AT_ONCE = 8

#: The most modalities of which every subset is scored.
EVERY_SUBSET = 4

#: Metric to value, for all modalities together and for each.
Scores = dict[str, dict[str, float]]

#: A fitted rule, and the modalities that it may use.
Question = tuple[Fusion, Sequence[str]]

T = TypeVar("T")

#: Labels, and what was predicted: values and, of numbers, deviations.
Answer = tuple[LabelArray, NDArray[np.float32], NDArray[np.float32] | None]


def evaluate(model: HAFedformer, fusion: Fusion, items: MultimodalDataset) -> Scores:
    """Score a model on labelled items.

    Parameters
    ----------
    model
        On any device; left in evaluation mode.
    fusion
        A fitted rule.
    items
        At least one; those that lack a modality count for the others and for all together.

    Returns
    -------
    dict
        ``multimodal`` and each modality to its metrics.
    """
    return _score(model, _together_and_alone(fusion, items), items)


def evaluate_rules(
    model: HAFedformer, fusions: Mapping[str, Fusion], items: MultimodalDataset
) -> Scores:
    """Score all modalities together under each of several rules.

    Parameters
    ----------
    model, items
        As for `evaluate`.
    fusions
        Title to a fitted rule.

    Returns
    -------
    dict
        Title to metrics.
    """
    names = list(items.sequences)
    return _score(model, {title: (fusion, names) for title, fusion in fusions.items()}, items)


def evaluate_subsets(model: HAFedformer, fusion: Fusion, items: MultimodalDataset) -> Scores:
    """Score subsets of the modalities, on the same items so that their figures compare.

    Parameters
    ----------
    model, fusion
        As for `evaluate`.
    items
        Those that have every modality count. If none has, every subset is scored on the items that
        have any of it.

    Returns
    -------
    dict
        Names joined by ``+``, in the dataset's order and smaller subsets first, to metrics: every
        non-empty subset of up to `EVERY_SUBSET` modalities; of more, each modality alone, all but
        one, and all.
    """
    names = list(items.sequences)
    complete = _present(items, names).all(axis=0)
    if complete.any():
        items = items.select(np.flatnonzero(complete))
    questions = {"+".join(subset): (fusion, subset) for subset in _subsets(names)}
    return _score(model, questions, items)


def diagnose(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset
) -> dict[str, dict[str, Any]]:
    """Tell what a model takes for what, and whether its certainty can be believed.

    Parameters
    ----------
    model, fusion, items
        As for `evaluate`.

    Returns
    -------
    dict
        ``multimodal`` and each modality to their `common.diagnostics.diagnostics`.
    """
    questions = _together_and_alone(fusion, items)
    return {
        title: diagnostics(fusion.task, *answer)
        for title, answer in _answered(model, questions, items)
    }


def predictions(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset, modalities: list[str]
) -> NDArray[np.float32]:
    """Predict from some modalities: (N,) numbers or (N, K) probabilities."""

    def predict(batch: Encoded) -> Prediction:
        return predict_encoded(model, fusion, batch, modalities)

    return _join(_of_each_batch(model, items.in_modalities(modalities), predict))[0]


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    count = len(names)
    sizes = range(1, count + 1) if count <= EVERY_SUBSET else (1, count - 1, count)
    return [subset for size in sizes for subset in itertools.combinations(names, size)]


def _together_and_alone(fusion: Fusion, items: MultimodalDataset) -> dict[str, Question]:
    names = list(items.sequences)
    subsets = {"multimodal": names} | {name: [name] for name in names}
    return {title: (fusion, subset) for title, subset in subsets.items()}


def _score(
    model: HAFedformer, questions: Mapping[str, Question], items: MultimodalDataset
) -> Scores:
    scores = {}
    with warnings.catch_warnings():
        # An untrained or a failed modality predicts a constant; corr=0 says so in the table.
        warnings.simplefilter("ignore", ConstantPredictions)
        for title, answer in _answered(model, questions, items):
            scores[title] = compute_metrics(questions[title][0].task, *answer)
    return scores


def _answered(
    model: HAFedformer, questions: Mapping[str, Question], items: MultimodalDataset
) -> Iterator[tuple[str, Answer]]:
    """Answer each question on the items that have any of its modalities."""
    items = items.select(np.flatnonzero(_present(items, list(items.sequences)).any(axis=0)))
    rows = {}
    for title, (_, names) in questions.items():
        rows[title] = np.flatnonzero(_present(items, names).any(axis=0))
        if len(rows[title]) == 0:
            raise ValueError(f"no item has any of {', '.join(names)}")
    for title, (values, std) in _answer(model, questions, items).items():
        yield title, (items.labels[rows[title]], values, std)


def _answer(
    model: HAFedformer, questions: Mapping[str, Question], items: MultimodalDataset
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Predict the items that each question is about, in order: values and deviations."""

    def ask(batch: Encoded) -> dict[str, Prediction]:
        answers = {}
        for title, (fusion, names) in questions.items():
            having = batch.present(names).any(dim=0)
            if having.any():
                answers[title] = predict_encoded(model, fusion, batch.select(having), names)
        return answers

    answers = _of_each_batch(model, items, ask)
    return {title: _join([each[title] for each in answers if title in each]) for title in questions}


def _of_each_batch(
    model: HAFedformer, items: MultimodalDataset, ask: Callable[[Encoded], T]
) -> list[T]:
    """Encode batch by batch, and return what is asked of each, in order."""
    model.eval()
    device = next(model.parameters()).device

    def answer(index: NDArray[np.int64]) -> T:
        inputs = {
            name: pad_all(sequences.select(index)).to(device)
            for name, sequences in items.sequences.items()
        }
        return ask(encode(model, inputs))

    # As many as there are processors for the threads of each operation; one keeps a GPU busy.
    idle = (os.cpu_count() or 1) // torch.get_num_threads() if device.type == "cpu" else 1
    with ThreadPoolExecutor(min(max(idle, 1), AT_ONCE)) as pool:
        parts = np.array_split(np.arange(len(items)), max(round(len(items) / BATCH), 1))
        return list(pool.map(answer, parts))


def _join(
    batches: Sequence[Prediction],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    values: NDArray[np.float32] = torch.cat([batch.values for batch in batches]).cpu().numpy()
    deviations = [batch.std for batch in batches if batch.std is not None]
    return values, torch.cat(deviations).cpu().numpy() if deviations else None


def _present(items: MultimodalDataset, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return (M, N) bool: which items have each named modality."""
    return np.stack([items.sequences[name].lengths > 0 for name in names])
