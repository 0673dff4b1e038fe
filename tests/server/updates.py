"""Updates of clients, with what a test does not care for filled in."""

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from common.clients import ClientKey
from common.messages import Uplink, no_numbers
from common.posterior import Gaussian, Posterior


def key_of(name: str) -> ClientKey:
    modality, _, part = name.rpartition("-")
    return ClientKey(modality, int(part))


Part = Posterior | Mapping[str, Tensor | Gaussian]


def posterior_of(part: Part) -> Posterior:
    if isinstance(part, Posterior):
        return part
    return Posterior.of({k: Gaussian(v) if isinstance(v, Tensor) else v for k, v in part.items()})


def points(**arrays: Tensor) -> Posterior:
    """Make a posterior without precisions."""
    return posterior_of(arrays)


def uplink(
    client: str, encoder: Part | None = None, decoder: Part | None = None, **fields: Any
) -> Uplink:
    """Make what a client answers."""
    given = {"round": 1, "examples": 12, "train_loss": 0.5, "steps": 1}
    sums = {"calibration_sums": no_numbers(), "label_agreement": no_numbers()}
    one = torch.zeros(1)
    parts = {
        "encoder": posterior_of({"w": one} if encoder is None else encoder),
        "decoder": posterior_of({"head": one} if decoder is None else decoder),
    }
    return Uplink(key_of(client), **(given | sums | parts | fields))


def in_any_tree(data: st.DataObject, sums: list[Any]) -> Any:
    """Merge sums in any order and grouping: two neighbours, wherever they stand."""
    sums = list(data.draw(st.permutations(sums)))
    while len(sums) > 1:
        at = data.draw(st.integers(0, len(sums) - 2))
        sums[at : at + 2] = [sums[at].merge(sums[at + 1])]
    return sums[0]
