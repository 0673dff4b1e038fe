"""Updates of clients, with what a test does not care for filled in."""

from typing import Any

import torch
from torch import Tensor

from common.clients import ClientKey
from common.messages import Uplink, no_numbers
from common.posterior import Gaussian, Posterior


def key_of(name: str) -> ClientKey:
    modality, _, part = name.rpartition("-")
    return ClientKey(modality, int(part))


def points(**arrays: Tensor) -> Posterior:
    """Make a posterior without precisions."""
    return Posterior.of({name: Gaussian(array) for name, array in arrays.items()})


def uplink(client: str, **fields: Any) -> Uplink:
    """Make what a client answers; either part may be a mapping of tensors or Gaussians."""
    given = {
        **{"round": 1, "examples": 12, "train_loss": 0.5, "steps": 1},
        **{"calibration_sums": no_numbers(), "label_agreement": no_numbers()},
        **{"encoder": {"w": torch.zeros(1)}, "decoder": {"head": torch.zeros(1)}, **fields},
    }
    for part in ("encoder", "decoder"):
        if not isinstance(given[part], Posterior):
            made = {k: Gaussian(v) if isinstance(v, Tensor) else v for k, v in given[part].items()}
            given[part] = Posterior.of(made)
    return Uplink(key_of(client), **given)
