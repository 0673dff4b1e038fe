"""Covariances of the samples, entry by entry or shared by all rows of a matrix.

- ``row``: C = sum_s (X_s - M)^T (X_s - M) / ((S-1) out), one covariance for all rows of a map of at
  most `MOST_INPUTS` inputs; tensors of one dimension are diagonal;
- ``diagonal``: C = the variance of each entry over the samples.
"""

import torch
from torch import Tensor

from common.config import EncoderConfig
from common.posterior import Form, Gaussian
from common.structures import STRUCTURES, Structure, has_spread


class Row(Structure):
    """One covariance for all rows of a matrix."""

    map_form, vector_form = Form.row, Form.diagonal

    def fit(
        self, samples: Tensor, config: EncoderConfig, start: Tensor | None, moments: Tensor | None
    ) -> Gaussian:
        """Fit the mean and the shrunk inverse of the covariance."""
        mean, rho, relative = samples.mean(dim=0), config.shrinkage, config.scale == "relative"
        form = self.form(mean)
        if len(samples) == 1 or form is Form.identity:
            return Gaussian(mean)
        if form is Form.row:
            rows = (samples - mean).double().flatten(0, 1).flatten(1)
            covariance = rows.T @ rows / (len(rows) - len(mean))
            t = covariance.diagonal().mean()
        else:
            covariance = samples.var(dim=0).double()
            t = covariance.mean()
        if not has_spread(t, mean) or (relative and rho == 1.0):
            return Gaussian(mean)
        factor = t if relative else torch.ones_like(t)
        if form is Form.row:
            shrunk = rho * t * torch.eye(len(covariance)).to(covariance) + (1 - rho) * covariance
            precision = factor * torch.linalg.inv(shrunk)
        else:
            precision = factor / (rho * t + (1 - rho) * covariance)
        return Gaussian(mean, precision.to(mean.dtype), form)


class Diagonal(Row):
    """A variance for each entry."""

    map_form = Form.diagonal


STRUCTURES["diagonal"] = Diagonal()
STRUCTURES["row"] = Row()
