"""From samples to Gaussians: the client's half of PbEA.

For a tensor read as (out, in), with S samples X_s of mean M:

- ``row``: C = sum_s (X_s - M)^T (X_s - M) / ((S-1) out), one covariance for all rows;
- ``diagonal``: C = the variance of each entry over the samples.

Shrunk towards its own mean variance t: P = t (rho t I + (1-rho) C)^-1. The factor t removes the
client's overall scale, so that a client with small steps is not taken for a sure one; ``scale:
absolute`` leaves it in. One sample, no spread or, without the scale, rho = 1 tells nothing of
directions: then P = I.

Source: arXiv 2303.15486, section 4; shrinkage after Ledoit and Wolf 2004, with rho given.
"""

import torch
from torch import Tensor

from common.config import EncoderConfig, Scale
from common.posterior import Form, Gaussian, posterior_form


def fit_gaussian(samples: Tensor, config: EncoderConfig) -> Gaussian:
    """Fit a Gaussian to samples of one tensor.

    Parameters
    ----------
    samples
        (S, *shape), S at least 1.
    config
        Structure, shrinkage rho in (0, 1], scale.

    Returns
    -------
    Gaussian
        Its mean has the samples' shape and dtype. Tensors of one dimension are always diagonal.
    """
    mean = samples.mean(dim=0)
    form = posterior_form(mean, config)
    if form is Form.identity or len(samples) == 1:
        return Gaussian(mean)
    row = form is Form.row
    deviations = (samples - mean).double()
    covariance = _row_covariance(deviations) if row else _variance(deviations)
    # Less than the rounding of float32 is no spread.
    floor = (4 * torch.finfo(torch.float32).eps) ** 2 * mean.double().square().mean()
    precision = _shrunk_inverse(covariance, config, floor, matrix=row)
    if precision is None:
        return Gaussian(mean)
    return Gaussian(mean, precision.to(mean.dtype), form)


def _row_covariance(deviations: Tensor) -> Tensor:
    """Return (in, in) from deviations (S, out, ...)."""
    samples, rows = deviations.shape[:2]
    matrix = deviations.reshape(samples * rows, -1)
    return matrix.T @ matrix / ((samples - 1) * rows)


def _variance(deviations: Tensor) -> Tensor:
    return (deviations**2).sum(dim=0) / (len(deviations) - 1)


def _shrunk_inverse(
    covariance: Tensor, config: EncoderConfig, floor: Tensor, *, matrix: bool
) -> Tensor | None:
    """Return t (rho t I + (1-rho) C)^-1, or without the factor t; None means the identity."""
    variances = covariance.diagonal() if matrix else covariance
    t = variances.mean()
    tiny = torch.finfo(torch.float32).tiny
    relative = config.scale is Scale.relative
    if not t > floor.clamp(min=tiny) or (relative and config.shrinkage == 1.0):
        return None
    factor = t if relative else torch.ones_like(t)
    if not matrix:
        diagonal: Tensor = factor / (config.shrinkage * t + (1 - config.shrinkage) * covariance)
        return diagonal
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = config.shrinkage * t * eye + (1 - config.shrinkage) * covariance
    inverse: Tensor = factor * torch.linalg.inv(shrunk)
    return inverse
