"""What each modality adds to a prediction: contributions that sum to it, under every fusion rule.

With v(S) what is predicted from a subset S of the modalities that an item has, and v of none the
base, what the train labels alone predict, the contribution of m is the mean of
``v(S and m) - v(S)`` over orders in which the modalities may come: the rotations of the model's
order and of its reverse. For up to three modalities these are all orders, and the mean is the
Shapley value (1953); for more it is taken over 2 M of them, so that M (M - 1) + 1 subsets are
predicted and not 2^M. In any case the contributions sum to the prediction less the base.

Notation: B items, M modalities, K classes or labels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Encoded, predict_present
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


@torch.inference_mode()
def contributions(
    model: HAFedformer, fusion: Fusion, encoded: Encoded
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return each modality's contribution, and what it predicts alone, float64 as of a prediction.

    By modality of the batch (B,) numbers or (B, K) shares. Where an item lacks it, the contribution
    is 0 and the other means nothing.
    """
    present = {name: lengths > 0 for name, lengths in encoded.lengths.items()}
    known: dict[frozenset[str], Tensor] = {frozenset(): base_of(fusion).to(_double(encoded))}

    def value(subset: Sequence[str]) -> Tensor:
        key = frozenset(subset)
        if key not in known:
            names = [name for name in present if name in key]
            predicted = predict_present(model, fusion, encoded, names).values.double()
            there = torch.stack([present[name] for name in names]).any(dim=0)
            shape = (-1,) + (1,) * (predicted.dim() - 1)
            known[key] = torch.where(there.view(shape), predicted, known[frozenset()])
        return known[key]

    orders = _orders([name for name in model.spec.features if name in present], model)
    added: dict[str, Tensor] = {}
    for order in orders:
        for size, name in enumerate(order):
            step = (value(order[: size + 1]) - value(order[:size])) / len(orders)
            added[name] = added[name] + step if name in added else step
    return added, {name: value([name]) for name in present}


def _orders(names: Sequence[str], model: HAFedformer) -> list[list[str]]:
    """Return the orders of some of a model's modalities, whichever others it has."""
    all_names = list(model.spec.features)
    rotated = [all_names[start:] + all_names[:start] for start in range(len(all_names))]
    both = [*rotated, *(order[::-1] for order in rotated)]
    return [[name for name in order if name in names] for order in both]


def _double(encoded: Encoded) -> Tensor:
    """Return a tensor of the batch's device, float64."""
    return next(iter(encoded.encodings.values())).new_empty(0, dtype=torch.float64)
