"""Covariances of the samples, entry by entry or shared by all rows of a matrix.

- ``row``: C = sum_s (X_s - M)^T (X_s - M) / ((S-1) out), one covariance for all rows; tensors of
  one dimension are diagonal;
- ``diagonal``: C = the variance of each entry over the samples.
"""

import torch
from torch import Tensor

from common.posterior import Form, Gaussian
from common.structures import STRUCTURES, Structure, has_spread


class Diagonal(Structure):
    """A variance for each entry."""

    def form(self, mean: Tensor) -> Form:
        """Return the diagonal."""
        return Form.diagonal

    def fit(
        self,
        samples: Tensor,
        shrinkage: float,
        scale: str,
        received: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> Gaussian:
        """Fit the mean and the shrunk inverse of the covariance."""
        mean = samples.mean(dim=0)
        if len(samples) == 1:
            return Gaussian(mean)
        form = self.form(mean)
        covariance = _covariance((samples - mean).double(), form)
        variances = covariance.diagonal() if form is Form.row else covariance
        t, relative = variances.mean(), scale == "relative"
        if not has_spread(t, mean) or (relative and shrinkage == 1.0):
            return Gaussian(mean)
        factor = t if relative else torch.ones_like(t)
        precision = _shrunk_inverse(covariance, shrinkage, t, factor, form)
        return Gaussian(mean, precision.to(mean.dtype), form)


class Row(Diagonal):
    """One covariance for all rows of a matrix."""

    def form(self, mean: Tensor) -> Form:
        """Return the form of a matrix, or of a tensor of one dimension."""
        return Form.row if mean.ndim >= 2 else Form.diagonal


def _covariance(deviations: Tensor, form: Form) -> Tensor:
    """Return (in, in), or the tensor's shape, from deviations (S, *shape)."""
    samples, rows = deviations.shape[0], deviations.shape[1:2].numel()
    if form is Form.diagonal:
        return (deviations**2).sum(dim=0) / (samples - 1)
    matrix = deviations.reshape(samples * rows, -1)
    return matrix.T @ matrix / ((samples - 1) * rows)


def _shrunk_inverse(
    covariance: Tensor, shrinkage: float, t: Tensor, factor: Tensor, form: Form
) -> Tensor:
    """Return factor (rho t I + (1-rho) C)^-1."""
    if form is Form.diagonal:
        diagonal: Tensor = factor / (shrinkage * t + (1 - shrinkage) * covariance)
        return diagonal
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    inverse: Tensor = factor * torch.linalg.inv(shrinkage * t * eye + (1 - shrinkage) * covariance)
    return inverse


STRUCTURES["diagonal"] = Diagonal()
STRUCTURES["row"] = Row()
