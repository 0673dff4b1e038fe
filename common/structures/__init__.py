"""Posterior structures: how a client's samples become a Gaussian, and what the server may expect.

For a tensor read as (out, in), with S samples X_s of mean M, a structure estimates a covariance C
or a precision. A covariance is shrunk towards its own mean variance t:

    P = t (rho t I + (1-rho) C)^-1

The factor t removes the client's overall scale, so that a client with small steps is not taken for
a sure one; ``scale: absolute`` leaves it in. One sample, no spread or, without the scale, rho = 1
carry no information about directions: then P = I.

A precision of rows is (in, in), where the map itself is (out, in): it is only for maps of at most
`MOST_INPUTS` inputs. Wider ones, as those that read wide features, have P = I, the plain average.

A structure is one class in a module of this package with an entry in `STRUCTURES`; its name is what
``strategy.encoder.structure`` takes.

Source: arXiv 2303.15486, section 4; shrinkage after Ledoit and Wolf 2004, with rho given.
"""

import pkgutil
from importlib import import_module

import torch
from torch import Tensor

from common.config import DecoderConfig, EncoderConfig
from common.errors import UserError
from common.posterior import Form, Gaussian

#: The most inputs of a map whose rows have a precision: as many as the widest map inside a shipped
#: model has. Of 6,373 inputs it would be a hundred times as large as a map to 30 outputs.
MOST_INPUTS = 256


class Structure:
    """One way to fit a Gaussian to the samples of a tensor."""

    map_form = Form.identity  # of the precisions of tensors of more than one dimension
    vector_form = Form.identity  # of those of one dimension
    reads_inputs = False  # whether clients measure the second moments of each linear map's inputs
    sends_change = False  # whether the mean that is sent encodes the step that the server takes

    def form(self, mean: Tensor) -> Form:
        """Return the form of the precision of a tensor, unless its samples have no spread."""
        if mean.ndim < 2:
            return self.vector_form
        return Form.identity if self.leaves_out(mean) else self.map_form

    def leaves_out(self, mean: Tensor) -> bool:
        """Whether a map has no precision because it has too many inputs."""
        return self.map_form is Form.row and is_wide(mean)

    def fit(
        self, samples: Tensor, config: EncoderConfig, start: Tensor | None, moments: Tensor | None
    ) -> Gaussian:
        """Fit a Gaussian to samples (S, *shape) of one tensor, S at least 1.

        `start` is what training began with, needed where `sends_change`; `moments` are (in, in)
        of the tensor's inputs, where `reads_inputs`, or None if it is no map.
        """
        raise NotImplementedError

    def smallest_share(self, shrinkage: float, size: int) -> float:
        """Return the least eigenvalue of a precision as a share of their mean.

        With eigenvalues of C in [0, n t], n rows or numbers of a diagonal, those of P are in
        [1 / (rho + (1-rho) n), 1 / rho], or that over t where the scale is kept.
        """
        return shrinkage / (shrinkage + (1 - shrinkage) * size)

    def largest_mean(self, shrinkage: float) -> float:
        """Return the largest mean eigenvalue of a precision without a scale of its own."""
        return 1 / shrinkage


def is_wide(mean: Tensor) -> bool:
    """Whether a tensor is a map of more than `MOST_INPUTS` inputs."""
    return mean.ndim >= 2 and mean[0].numel() > MOST_INPUTS


#: Name to structure, of the modules that have been imported.
STRUCTURES: dict[str, Structure] = {}


def find_structure(name: str) -> Structure:
    """Return a structure by its name; `UserError` lists those that there are."""
    if name not in STRUCTURES:
        for module in pkgutil.iter_modules(__path__):
            import_module(f"{__name__}.{module.name}")
    if name not in STRUCTURES:
        raise UserError(
            f"strategy.encoder.structure={name}: expected one of {', '.join(sorted(STRUCTURES))}"
        )
    return STRUCTURES[name]


def encoder_structure(config: EncoderConfig) -> Structure | None:
    """Return the structure of the encoders' posteriors; None where they are not merged by them."""
    return find_structure(config.structure) if config.merge == "pbea" else None


def decoder_structure(config: DecoderConfig) -> Structure | None:
    """Return the structure of the decoders' posteriors; None where they are not merged by them."""
    return find_structure("inputs") if config.merge == "posterior" else None


def posterior_form(mean: Tensor, structure: Structure | None) -> Form:
    """Return the form of a client's posterior over one tensor, where its samples have spread."""
    return Form.identity if structure is None else structure.form(mean)


def fit_gaussian(
    samples: Tensor,
    config: EncoderConfig,
    received: Tensor | None = None,
    moments: Tensor | None = None,
) -> Gaussian:
    """Fit a Gaussian to samples of one tensor of an encoder, see `Structure.fit`."""
    if structure := encoder_structure(config):
        return structure.fit(samples, config, received, moments)
    return Gaussian(samples.mean(dim=0))


def has_spread(variance: Tensor, mean: Tensor) -> bool:
    """Whether a mean variance is more than the rounding of float32."""
    floor = (4 * torch.finfo(torch.float32).eps) ** 2 * mean.double().square().mean()
    return bool(variance > floor.clamp(min=torch.finfo(torch.float32).tiny))
