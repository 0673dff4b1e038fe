"""Evaluation on multimodal items: all modalities together, and each alone."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset
from common.metrics import ConstantPredictions, compute_metrics
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import predict

BATCH = 256

#: Metric to value, for all modalities together and for each.
Scores = dict[str, dict[str, float]]


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
    names = list(items.sequences)
    subsets = {"multimodal": names} | {name: [name] for name in names}
    return {title: _score(model, fusion, items, subset) for title, subset in subsets.items()}


def predictions(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset, modalities: list[str]
) -> NDArray[np.float32]:
    """Predict from some modalities: (N,) numbers or (N, K) probabilities."""
    model.eval()
    device = next(model.parameters()).device
    values = []
    for start in range(0, len(items), BATCH):
        index = np.arange(start, min(start + BATCH, len(items)))
        inputs = {
            name: pad_all(items.sequences[name].select(index)).to(device) for name in modalities
        }
        values.append(predict(model, fusion, inputs).values.cpu())
    joined: NDArray[np.float32] = torch.cat(values).numpy()
    return joined


def _score(
    model: HAFedformer, fusion: Fusion, items: MultimodalDataset, modalities: list[str]
) -> dict[str, float]:
    lengths = np.stack([items.sequences[name].lengths for name in modalities])
    usable = items.select(np.flatnonzero((lengths > 0).any(axis=0)))
    with warnings.catch_warnings():
        # An untrained or a failed modality predicts a constant; corr=0 says so in the table.
        warnings.simplefilter("ignore", ConstantPredictions)
        values = predictions(model, fusion, usable, modalities)
        return compute_metrics(fusion.task, usable.labels, values)
