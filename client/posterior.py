"""From samples to Gaussians: the client's half of PbEA.

For a tensor read as (out, in), with S samples X_s of mean M:

- ``row``: C = sum_s (X_s - M)^T (X_s - M) / ((S-1) out), one covariance for all rows;
- ``diagonal``: C = the variance of each entry over the samples;
- ``low_rank``: C = sum_s (X_s - M) (X_s - M)^T / (S-1) over all entries, of rank S - 1. Instead of
  a precision as large as C, the client sends theta - P (theta - M), with theta what it received:
  the server steps by the mean of P (theta - M), as FedPA does (arXiv 2010.05273).

- ``inputs``: no covariance of samples but, for a linear map, the second moments A of what it reads
  (`client.input_moments`), shrunk as (1-rho) A + rho t I, which is the precision itself. Tensors
  that are no map have none.

Shrunk towards its own mean variance t: P = t (rho t I + (1-rho) C)^-1. The factor t removes the
client's overall scale, so that a client with small steps is not taken for a sure one; ``scale:
absolute`` leaves it in. One sample, no spread or, without the scale, rho = 1 tells nothing of
directions: then P = I.

Source: arXiv 2303.15486, section 4; shrinkage after Ledoit and Wolf 2004, with rho given.
"""

import torch
from torch import Tensor

from common.config import EncoderConfig, Scale, Structure
from common.posterior import Form, Gaussian, encoder_structure, posterior_form


def fit_gaussian(
    samples: Tensor,
    config: EncoderConfig,
    received: Tensor | None = None,
    moments: Tensor | None = None,
) -> Gaussian:
    """Fit a Gaussian to samples of one tensor.

    Parameters
    ----------
    samples
        (S, *shape), S at least 1.
    config
        Structure, shrinkage rho in (0, 1], scale.
    received
        The tensor that training began with; needed for ``low_rank``.
    moments
        (in, in) of what the tensor reads, for ``inputs``; None: it is no map.

    Returns
    -------
    Gaussian
        Its mean has the samples' shape and dtype. Tensors of one dimension are diagonal under
        ``row``.
    """
    mean = samples.mean(dim=0)
    structure = encoder_structure(config)
    if structure is Structure.low_rank:
        assert received is not None, "low_rank needs the tensor that training began with"
        return Gaussian((received - low_rank_change(samples, received, config)).to(mean.dtype))
    if structure is Structure.inputs:
        return mapped_gaussian(mean, moments, config.shrinkage, config.scale)
    form = posterior_form(mean, structure)
    if form is Form.identity or len(samples) == 1:
        return Gaussian(mean)
    row = form is Form.row
    deviations = (samples - mean).double()
    covariance = _row_covariance(deviations) if row else _variance(deviations)
    precision = _shrunk_inverse(covariance, config, mean, matrix=row)
    if precision is None:
        return Gaussian(mean)
    return Gaussian(mean, precision.to(mean.dtype), form)


def mapped_gaussian(
    mean: Tensor, moments: Tensor | None, shrinkage: float, scale: Scale = Scale.absolute
) -> Gaussian:
    """Return a Gaussian over the rows of a linear map, by what it reads.

    Parameters
    ----------
    mean
        (out, ...).
    moments
        (in, in) second moments; None, or all zero: nothing is known, P = I.
    shrinkage
        rho in (0, 1]; 1 leaves a multiple of the identity.
    scale
        Whether P keeps the size of the moments.
    """
    t = None if moments is None else moments.diagonal().mean()
    if moments is None or t is None or not t > torch.finfo(torch.float32).tiny:
        return Gaussian(mean)
    eye = torch.eye(len(moments), dtype=moments.dtype)
    precision = (1 - shrinkage) * moments + shrinkage * t * eye
    if scale is Scale.relative:
        precision = precision / t
    return Gaussian(mean, precision.to(mean.dtype), Form.row)


def low_rank_change(samples: Tensor, received: Tensor, config: EncoderConfig) -> Tensor:
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
    if not _spread(t, mean) or (config.scale is Scale.relative and config.shrinkage == 1.0):
        return change.reshape(mean.shape)
    a, b = config.shrinkage * t, 1 - config.shrinkage
    inner = a * torch.eye(count, dtype=gram.dtype, device=gram.device) + b * gram
    solved = torch.linalg.solve(inner, deviations @ change)
    factor = t if config.scale is Scale.relative else torch.ones_like(t)
    changed: Tensor = factor / a * (change - b * deviations.T @ solved)
    return changed.reshape(mean.shape)


def _spread(variance: Tensor, mean: Tensor) -> bool:
    """Whether a mean variance is more than the rounding of float32."""
    floor = (4 * torch.finfo(torch.float32).eps) ** 2 * mean.double().square().mean()
    return bool(variance > floor.clamp(min=torch.finfo(torch.float32).tiny))


def _row_covariance(deviations: Tensor) -> Tensor:
    """Return (in, in) from deviations (S, out, ...)."""
    samples, rows = deviations.shape[:2]
    matrix = deviations.reshape(samples * rows, -1)
    return matrix.T @ matrix / ((samples - 1) * rows)


def _variance(deviations: Tensor) -> Tensor:
    return (deviations**2).sum(dim=0) / (len(deviations) - 1)


def _shrunk_inverse(
    covariance: Tensor, config: EncoderConfig, mean: Tensor, *, matrix: bool
) -> Tensor | None:
    """Return t (rho t I + (1-rho) C)^-1, or without the factor t; None means the identity."""
    variances = covariance.diagonal() if matrix else covariance
    t = variances.mean()
    relative = config.scale is Scale.relative
    if not _spread(t, mean) or (relative and config.shrinkage == 1.0):
        return None
    factor = t if relative else torch.ones_like(t)
    if not matrix:
        diagonal: Tensor = factor / (config.shrinkage * t + (1 - config.shrinkage) * covariance)
        return diagonal
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = config.shrinkage * t * eye + (1 - config.shrinkage) * covariance
    inverse: Tensor = factor * torch.linalg.inv(shrunk)
    return inverse
