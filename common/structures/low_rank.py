"""``low_rank``: all entries of a tensor together, C = sum_s (X_s - M) (X_s - M)^T / (S-1).

C has rank S - 1. Instead of a precision as large as C, the client sends theta - P (theta - M), with
theta what it received: the server steps by the mean of P (theta - M), as FedPA does.

Source: arXiv 2010.05273.
"""

import torch
from torch import Tensor

from common.posterior import Gaussian
from common.structures import STRUCTURES, Structure, has_spread


class LowRank(Structure):
    """FedPA's client delta, as the mean that is sent."""

    sends_change = True

    def fit(
        self,
        samples: Tensor,
        shrinkage: float,
        scale: str,
        received: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> Gaussian:
        """Return theta - P (theta - M), without a precision."""
        assert received is not None, "low_rank needs the tensor that training began with"
        change = low_rank_change(samples, received, shrinkage, scale)
        return Gaussian((received - change).to(samples.dtype))


def low_rank_change(samples: Tensor, received: Tensor, shrinkage: float, scale: str) -> Tensor:
    """Return P (theta - M), shaped like the tensor, float64, in O(S^2 d) for d entries.

    With D the (S, d) deviations over the root of S - 1, C = D^T D, and by Woodbury's identity

        (a I + b D^T D)^-1 x = (x - b D^T (a I + b D D^T)^-1 D x) / a,   a = rho t, b = 1 - rho

    which needs no more than the S x S matrix D D^T, and no order of the samples as FedPA's dynamic
    programme does.
    """
    mean = samples.double().mean(dim=0)
    change = (received.double() - mean).flatten()
    count = len(samples)
    deviations = (samples.double() - mean).reshape(count, -1) / max(count - 1, 1) ** 0.5
    gram = deviations @ deviations.T
    t = gram.trace() / deviations.shape[1]
    relative = scale == "relative"
    if not has_spread(t, mean) or (relative and shrinkage == 1.0):
        return change.reshape(mean.shape)
    a, b = shrinkage * t, 1 - shrinkage
    inner = a * torch.eye(count, dtype=gram.dtype, device=gram.device) + b * gram
    solved = torch.linalg.solve(inner, deviations @ change)
    factor = t if relative else torch.ones_like(t)
    changed: Tensor = factor / a * (change - b * deviations.T @ solved)
    return changed.reshape(mean.shape)


STRUCTURES["low_rank"] = LowRank()
