"""What each modality adds to a prediction: contributions that sum to it, under every fusion rule.

With v(S) what is predicted from a subset S of the modalities that an item has, and v of none the
base, what the train labels alone predict, the contribution of m is the mean of
``v(S and m) - v(S)`` over orders in which the modalities may come: the rotations of the model's
order and of its reverse. For up to three modalities these are all orders, and the mean is the
Shapley value (1953); for more it is taken over 2 M of them, so that M (M - 1) + 1 subsets are
predicted and not 2^M. In any case the contributions sum to the prediction less the base.

Notation: B items, M modalities, K classes or labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Encoded, Prediction, predict_subsets
from common.task import Task


def base_of(fusion: Fusion) -> Tensor:
    """Return what is predicted of an item without any modality: (), the mean, or (K,) shares."""
    prior = torch.tensor(fusion.prior, dtype=torch.float64)
    match fusion.task:
        case Task.regression:
            return prior[0]
        case Task.classification:
            return prior.softmax(dim=0)
        case Task.multilabel:
            return prior.sigmoid()


@dataclass(frozen=True)
class Explained:
    """A prediction and what it is made of; by modality of the batch float64, (B,) or (B, K)."""

    together: Prediction
    #: What each modality adds; 0 where an item lacks it.
    contributions: Mapping[str, Tensor]
    #: What each predicts by itself; it means nothing where an item lacks it.
    alone: Mapping[str, Tensor]


@torch.inference_mode()
def explain(model: HAFedformer, fusion: Fusion, encoded: Encoded) -> Explained:
    """Predict each item from all that it has, at least one modality, and explain it."""
    names = [name for name in model.spec.features if name in encoded.lengths]
    subsets, shares = _shares(tuple(names), tuple(model.spec.features))
    predicted = predict_subsets(model, fusion, encoded, subsets)
    values = torch.stack([each.values.double() for each in predicted])
    base = base_of(fusion).to(values)
    present = encoded.present(names)
    there = torch.stack([present[[name in subset for name in names]].any(0) for subset in subsets])
    more = (1,) * (values.dim() - 2)
    gains = torch.where(there.view(there.shape + more), values - base, 0.0)
    added = torch.tensordot(shares.to(gains), gains, dims=1)
    added = torch.where(present.view(present.shape + more), added, 0.0)
    alone = {name: values[subsets.index((name,))] for name in names}
    return Explained(predicted[-1], dict(zip(names, added, strict=True)), alone)


@lru_cache(maxsize=64)
def _shares(
    names: tuple[str, ...], all_names: tuple[str, ...]
) -> tuple[list[tuple[str, ...]], Tensor]:
    """Return the subsets, the last of which is all names, and their shares (M, S), float64.

    What a modality adds is the sum of its shares of what each subset adds to the base.
    """
    rotated = [all_names[start:] + all_names[:start] for start in range(len(all_names))]
    orders = [*rotated, *(order[::-1] for order in rotated)]
    shares: dict[frozenset[str], Tensor] = {}
    for order in orders:
        so_far: frozenset[str] = frozenset()
        for name in filter(names.__contains__, order):
            for subset, share in ((so_far, -1.0), (so_far | {name}, 1.0)):
                none = torch.zeros(len(names), dtype=torch.float64)
                own = shares.setdefault(subset, none)
                own[names.index(name)] += share / len(orders)
            so_far |= {name}
    shares.pop(frozenset(), None)
    found = sorted(shares, key=len)
    subsets = [tuple(name for name in names if name in subset) for subset in found]
    return subsets, torch.stack([shares[subset] for subset in found], dim=1)
