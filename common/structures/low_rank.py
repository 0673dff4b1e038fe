"""``low_rank``: all entries of a tensor together, C = sum_s (X_s - M) (X_s - M)^T / (S-1).

C has rank S - 1. Instead of a precision as large as C, the client sends theta - P (theta - M), with
theta what it received: the server steps by the mean of P (theta - M), as FedPA does.

Source: arXiv 2010.05273.
"""

import torch
from torch import Tensor

from common.config import EncoderConfig
from common.posterior import Gaussian
from common.structures import STRUCTURES, Structure, has_spread


class LowRank(Structure):
    """FedPA's client delta, as the mean that is sent: theta - P (theta - M), without a precision.

    In O(S^2 d) for d entries: with D the (S, d) deviations over the root of S - 1, C = D^T D, and
    by Woodbury's identity

        (a I + b D^T D)^-1 x = (x - b D^T (a I + b D D^T)^-1 D x) / a,   a = rho t, b = 1 - rho

    which needs no more than the S x S matrix D D^T, and no order of the samples as FedPA's dynamic
    programme does.
    """

    sends_change = True

    def fit(
        self, samples: Tensor, config: EncoderConfig, start: Tensor | None, moments: Tensor | None
    ) -> Gaussian:
        """Return the mean that encodes the server's step."""
        assert start is not None, "low_rank needs the tensor that training began with"
        count, rho, relative = len(samples), config.shrinkage, config.scale == "relative"
        mean = samples.double().mean(dim=0)
        change = (start.double() - mean).flatten()
        deviations = (samples.double() - mean).reshape(count, -1) / max(count - 1, 1) ** 0.5
        gram = deviations @ deviations.T
        t = gram.trace() / deviations.shape[1]
        if has_spread(t, mean) and not (relative and rho == 1.0):
            a, b = rho * t, 1 - rho
            inner = a * torch.eye(count).to(gram) + b * gram
            solved = torch.linalg.solve(inner, deviations @ change)
            factor = t if relative else torch.ones_like(t)
            change = factor / a * (change - b * deviations.T @ solved)
        return Gaussian((start - change.view_as(start)).to(samples.dtype))


STRUCTURES["low_rank"] = LowRank()
