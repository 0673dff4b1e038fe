"""Covariances of the samples, entry by entry or shared by all rows of a matrix.

- ``row``: C = sum_s (X_s - M)^T (X_s - M) / ((S-1) out), one covariance for all rows; tensors of
  one dimension are diagonal;
- ``diagonal``: C = the variance of each entry over the samples.
"""

import torch
from torch import Tensor

from common.config import EncoderConfig
from common.posterior import Form, Gaussian
from common.structures import STRUCTURES, Structure, has_spread


class Row(Structure):
    """One covariance for all rows of a matrix."""

    def form(self, mean: Tensor) -> Form:
        """Return the form of a matrix, or of a tensor of one dimension."""
        return Form.row if mean.ndim >= 2 else Form.diagonal

    def fit(
        self, samples: Tensor, config: EncoderConfig, start: Tensor | None, moments: Tensor | None
    ) -> Gaussian:
        """Fit the mean and the shrunk inverse of the covariance."""
        mean, rho, relative = samples.mean(dim=0), config.shrinkage, config.scale == "relative"
        if len(samples) == 1:
            return Gaussian(mean)
        deviations, form = (samples - mean).double(), self.form(mean)
        if form is Form.row:
            rows = deviations.flatten(0, 1).flatten(1)
            covariance = rows.T @ rows / (len(rows) - len(mean))
            t = covariance.diagonal().mean()
        else:
            covariance = (deviations**2).sum(dim=0) / (len(samples) - 1)
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

    def form(self, mean: Tensor) -> Form:
        """Return the diagonal."""
        return Form.diagonal


STRUCTURES["diagonal"] = Diagonal()
STRUCTURES["row"] = Row()
