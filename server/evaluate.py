"""Evaluation on multimodal items: all modalities together, each alone, any rule, any subset.

Every batch is encoded once, whatever is asked of it; on a CPU several batches at a time. Items that
lack a modality count for the others and for all together.

Notation: N items, K classes or labels.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import FusionRule
from common.data.batching import pad_all
from common.data.dataset import LabelArray, MultimodalDataset
from common.diagnostics import diagnostics
from common.metrics import Array, ConstantPredictions, Table, compute_metrics
from common.model.calibration import standardise
from common.model.fit_joint import Opinions
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec
from common.model.predict import Encoded, Prediction, encode, expert_outputs, predict_encoded

Part = TypeVar("Part")

#: Items of a batch, about: few enough that those of a small dataset are several.
BATCH = 128

#: Batches at a time, at most: each has its place in memory.
AT_ONCE = 8

#: Rules that need nothing of an item but what each expert says of it.
JOIN_OUTPUTS = (FusionRule.calibrated, FusionRule.product_of_experts)

#: The most modalities of which every subset is scored.
EVERY_SUBSET = 4

#: Metric to value, for all modalities together and for each.
Scores = dict[str, dict[str, float]]

#: Title to a fitted rule, and the modalities that it may use.
Questions = Mapping[str, tuple[Fusion, Sequence[str]]]

#: Labels, predicted values and, of numbers, their deviations.
Answer = tuple[LabelArray, NDArray[np.float32], NDArray[np.float32] | None]


def evaluate(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset, seen: Opinions | None = None
) -> Scores:
    """Score a model, which is left in evaluation mode; ``multimodal`` and each modality alone.

    `seen` is what `opinions` returned of the same state and items, which spares rules that join
    outputs the encoding.
    """
    questions = _together_and_alone(fusion, items)
    if seen is None or fusion.rule not in JOIN_OUTPUTS:
        return _score(model, questions, items)
    lengths = {name: there.long() for name, there in seen.present.items()}
    encoded = Encoded({}, lengths, seen.linear, dict(seen.outputs))
    predicted = [_predicted(model, questions, encoded)]
    found = _joined(questions, items.select(np.flatnonzero(items.present())), predicted)
    return {title: score(model.spec, *answer) for title, answer in found}


def evaluate_rules(
    model: HAFedformer, fusions: Mapping[str, Fusion], items: MultimodalDataset
) -> Scores:
    """Score all modalities together under each of several fitted rules, by their titles."""
    names = list(items.sequences)
    return _score(model, {title: (fusion, names) for title, fusion in fusions.items()}, items)


def evaluate_subsets(model: HAFedformer, fusion: Fusion, items: MultimodalDataset) -> Scores:
    """Score subsets of the modalities, on the same items so that their figures compare.

    These are the items that have every modality. If none has, every subset is scored on the items
    that have any of it. Titles are names joined by ``+``, in the dataset's order and smaller
    subsets first: every non-empty subset of up to `EVERY_SUBSET` modalities; of more, each modality
    alone, all but one, and all.
    """
    names = list(items.sequences)
    complete = np.all([sequences.present for sequences in items.sequences.values()], axis=0)
    if complete.any():
        items = items.select(np.flatnonzero(complete))
    count = len(names)
    sizes = range(1, count + 1) if count <= EVERY_SUBSET else (1, count - 1, count)
    subsets = itertools.chain.from_iterable(itertools.combinations(names, size) for size in sizes)
    return _score(model, {"+".join(subset): (fusion, subset) for subset in subsets}, items)


def diagnose(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset
) -> dict[str, dict[str, Any]]:
    """Return the `diagnostics` of ``multimodal`` and each modality."""
    found = answers(model, fusion, items)
    return {title: tabulate(model.spec, *answer) for title, answer in found.items()}


def answers(model: HAFedformer, fusion: Fusion, items: MultimodalDataset) -> dict[str, Answer]:
    """Return what is predicted of ``multimodal`` and each modality, on the items that have any."""
    return dict(_answer(model, _together_and_alone(fusion, items), items))


def opinions(model: HAFedformer, prior: Tensor, items: MultimodalDataset) -> Opinions:
    """Return what each modality's experts say of labelled items, to fit a fusion rule to.

    `prior` is that of the run, see `common.model.calibration.prior_of`.
    """
    items = items.select(np.flatnonzero(items.present()))
    parts = _by_batch(model, items, partial(_experts, model))
    names = list(items.sequences)
    joined = [
        {name: torch.cat([part[which][name] for part in parts]).cpu() for name in parts[0][which]}
        for which in range(2)
    ]
    present = {name: torch.from_numpy(items.sequences[name].present) for name in names}
    labels = torch.from_numpy(standardise(items.labels, prior, model.spec.task))
    groups = torch.from_numpy(np.unique(items.groups, return_inverse=True)[1])
    return Opinions(labels, joined[0], joined[1], present, groups)


def _experts(
    model: HAFedformer, encoded: Encoded
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    linear = {name: encoded.linear[name] for name in model.spec.linear if name in encoded.linear}
    return expert_outputs(model, encoded, list(encoded.lengths)), linear


def _together_and_alone(fusion: Fusion, items: MultimodalDataset) -> Questions:
    names = list(items.sequences)
    return {"multimodal": (fusion, names)} | {name: (fusion, [name]) for name in names}


def _score(model: HAFedformer, questions: Questions, items: MultimodalDataset) -> Scores:
    return {title: score(model.spec, *answer) for title, answer in _answer(model, questions, items)}


def score(
    spec: ModelSpec, truth: Array, predicted: Array, std: Array | None = None
) -> dict[str, float]:
    """Compute every metric of a model's labels; other arguments as of `compute_metrics`."""
    with warnings.catch_warnings():
        # An untrained or a failed modality predicts a constant; corr=0 says so in the table.
        warnings.simplefilter("ignore", ConstantPredictions)
        return compute_metrics(spec.task, truth, predicted, std, sentiment=spec.sentiment)


def tabulate(
    spec: ModelSpec, truth: Array, predicted: Array, std: Array | None = None
) -> dict[str, Table]:
    """Return the `diagnostics` of a model's labels; other arguments as of `diagnostics`."""
    return diagnostics(spec.task, truth, predicted, std, sentiment=spec.sentiment)


def _answer(
    model: HAFedformer, questions: Questions, items: MultimodalDataset
) -> Iterator[tuple[str, Answer]]:
    """Answer each question on the items that have any of its modalities, in order."""
    items = items.select(np.flatnonzero(items.present()))
    for _, names in questions.values():
        if not items.present(names).any():
            raise ValueError(f"no item has any of {', '.join(names)}")
    yield from _joined(
        questions, items, _by_batch(model, items, partial(_predicted, model, questions))
    )


def _joined(
    questions: Questions, items: MultimodalDataset, batches: Sequence[Mapping[str, Prediction]]
) -> Iterator[tuple[str, Answer]]:
    """Put the answers of batches together."""
    for title, (_, names) in questions.items():
        found = [batch[title] for batch in batches if title in batch]
        values = torch.cat([prediction.values for prediction in found]).cpu().numpy()
        deviations = [prediction.std for prediction in found if prediction.std is not None]
        std = torch.cat(deviations).cpu().numpy() if deviations else None
        yield title, (items.labels[items.present(names)], values, std)


def _predicted(model: HAFedformer, questions: Questions, encoded: Encoded) -> dict[str, Prediction]:
    """Answer for a batch; a question about none of its items has no answer there."""
    answers = {}
    for title, (fusion, names) in questions.items():
        present = encoded.present(names).any(dim=0)
        if present.any():
            answers[title] = predict_encoded(model, fusion, encoded.select(present), names)
    return answers


def _by_batch(
    model: HAFedformer, items: MultimodalDataset, use: Callable[[Encoded], Part]
) -> list[Part]:
    """Encode items batch by batch, and return what becomes of each."""
    model.eval()
    device = next(model.parameters()).device

    @torch.inference_mode()
    def encoded(index: NDArray[np.int64]) -> Part:
        inputs = {
            name: pad_all(sequences.select(index)).to(device)
            for name, sequences in items.sequences.items()
        }
        return use(encode(model, inputs))

    # As many as there are processors for the threads of each operation; one keeps a GPU busy.
    idle = (os.cpu_count() or 1) // torch.get_num_threads() if device.type == "cpu" else 1
    with ThreadPoolExecutor(min(max(idle, 1), AT_ONCE)) as pool:
        parts = np.array_split(np.arange(len(items)), max(round(len(items) / BATCH), 1))
        return list(pool.map(encoded, parts))
