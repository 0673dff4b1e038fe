"""``inputs``: no covariance of samples but, for a linear map, what it reads.

The precision is A, the second moments of the map's inputs (`client.input_moments`), shrunk as
(1-rho) A + rho t I with t their mean: a mean eigenvalue of t, and a least one of rho t. Tensors
that are no map, and maps of more than `MOST_INPUTS` inputs, have none. Merging by it is RegMean
(Jin et al. 2023, arXiv 2212.09849).
"""

import torch
from torch import Tensor

from common.config import EncoderConfig
from common.posterior import Form, Gaussian
from common.structures import STRUCTURES, Structure


class Inputs(Structure):
    """Second moments of the inputs as the precision of a map's rows."""

    map_form = Form.row
    reads_inputs = True

    def fit(
        self, samples: Tensor, config: EncoderConfig, start: Tensor | None, moments: Tensor | None
    ) -> Gaussian:
        """Take the mean of the samples, and the precision from the moments."""
        return mapped_gaussian(samples.mean(dim=0), moments, config.shrinkage, config.scale)

    def smallest_share(self, shrinkage: float, size: int) -> float:
        """Return rho."""
        return shrinkage

    def largest_mean(self, shrinkage: float) -> float:
        """Return 1: the mean eigenvalue is t, over t."""
        return 1.0


def mapped_gaussian(
    mean: Tensor, moments: Tensor | None, shrinkage: float, scale: str = "absolute"
) -> Gaussian:
    """Return a Gaussian over the rows of a linear map with a mean (out, ...).

    Its precision comes from the (in, in) second moments of the inputs; where they are None or zero,
    P = I. A shrinkage of 1 leaves a multiple of the identity; "absolute" keeps the moments' size.
    """
    if moments is None or not (t := moments.diagonal().mean()) > torch.finfo(torch.float32).tiny:
        return Gaussian(mean)
    precision = (1 - shrinkage) * moments + shrinkage * t * torch.eye(len(moments)).to(moments)
    if scale == "relative":
        precision = precision / t
    return Gaussian(mean, precision.to(mean.dtype), Form.row)


STRUCTURES["inputs"] = Inputs()
