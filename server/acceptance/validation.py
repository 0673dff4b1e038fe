"""Never trust an update: what a reply must satisfy by itself before it touches a sum.

How large it may be is the matter of `payload`, how it compares to the others' that of `screening`.

A precision is bounded by the shrinkage rho that it was made with (`client.posterior`). With n the
size of the tensor's rows, or of a diagonal, and t the mean variance or second moment:

- ``inputs``: P = (1-rho) A + rho t I, whose mean eigenvalue is t, and the smallest at least rho t;
- ``row``, ``diagonal``: P = t (rho t I + (1-rho) C)^-1 with the eigenvalues of C in [0, n t], so
  those of P are in [1 / (rho + (1-rho) n), 1 / rho], or that over t where the scale is kept.

So the smallest eigenvalue is at least a known share of the mean one, and without a scale of its own
the mean is at most 1, or 1 / rho.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from common.config import Config, Scale, Structure
from common.errors import UserError
from common.messages import ClientDescription, Uplink
from common.model.evidence import agreement_size, evidence_size
from common.model.ha_fedformer import Parts
from common.posterior import (
    Form,
    Gaussian,
    Layout,
    Means,
    Posterior,
    decoder_structure,
    encoder_structure,
    posterior_form,
)
from common.task import Task
from server.acceptance.plausibility import (
    MAX_EXAMPLES,
    agreement_fault,
    evidence_fault,
    label_sums_fault,
    most_validated,
)

#: How far below what shrinkage allows an eigenvalue may be, for rounding in float32.
_SLACK = 10.0


class RejectedUpdateError(Exception):
    """An update that must not be merged; says which array of which client, and why."""


@dataclass(frozen=True)
class UpdateRules:
    """What every update of a run must satisfy.

    Attributes
    ----------
    trained
        The global model's trained tensors.
    task
        Kind of label.
    config
        The posteriors that clients fit, and how long they train.
    prior
        Of the pooled labels, as clients are sent it.
    """

    trained: Parts
    task: Task
    config: Config
    prior: Tensor

    def check(self, uplink: Uplink, client: ClientDescription, server_round: int) -> None:
        """Check a reply against the model and against whom it was asked of.

        Parameters
        ----------
        uplink
            The reply.
        client
            The client that was asked, as it described itself.
        server_round
            The round that it was asked in.

        Raises
        ------
        RejectedUpdateError
            At the first fault.
        """
        expected = client.key
        if uplink.key != expected:
            raise RejectedUpdateError(f"{expected} answers as {uplink.key}")
        if uplink.round != server_round:
            raise RejectedUpdateError(
                f"{expected} answers for round {uplink.round}, expected {server_round}"
            )
        self._check_figures(uplink, client.examples)
        self._check_sums(uplink, client)
        strategy, limit = self.config.strategy, self.config.strategy.screening.precision_factor
        _check_posterior(
            f"{expected} encoder",
            uplink.encoder,
            self.trained.encoders[expected.modality],
            self._layouts[expected.modality],
            _Bounds(
                encoder_structure(strategy.encoder),
                strategy.encoder.shrinkage,
                strategy.encoder.scale,
                limit,
            ),
        )
        _check_posterior(
            f"{expected} decoder",
            uplink.decoder,
            self.trained.decoder,
            self._decoder_layout,
            _Bounds(
                decoder_structure(strategy.decoder),
                strategy.decoder.shrinkage,
                Scale.absolute,
                limit,
            ),
        )

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {name: Layout.of(arrays) for name, arrays in self.trained.encoders.items()}

    @cached_property
    def _decoder_layout(self) -> Layout:
        return Layout.of(self.trained.decoder)

    def _check_figures(self, uplink: Uplink, examples: int) -> None:
        key = uplink.key
        if uplink.examples != examples:
            raise RejectedUpdateError(
                f"{key} reports {uplink.examples} examples, and said before that it has {examples}"
            )
        if not math.isfinite(uplink.train_loss):
            raise RejectedUpdateError(f"{key} reports a train loss of {uplink.train_loss}")
        client = self.config.client
        steps = client.local_epochs * -(-examples // client.batch_size)
        if uplink.steps != steps:
            raise RejectedUpdateError(f"{key} reports {uplink.steps} local steps, expected {steps}")
        for name, sums, size in (
            ("evidence", uplink.evidence, evidence_size(self.task)),
            ("agreement", uplink.agreement, agreement_size(self.task)),
        ):
            # Their squares are to be finite too.
            figures = sums.tolist()
            if len(figures) != size or not all(abs(each) < 1e100 for each in figures):
                raise RejectedUpdateError(f"{key} reports {name} {figures}")

    def _check_sums(self, uplink: Uplink, client: ClientDescription) -> None:
        evidence, task, prior = uplink.evidence, self.task, self.prior
        most = most_validated(client.examples, self.config.client.validation_fraction)
        fault = evidence_fault(evidence, task, prior, most) or agreement_fault(
            uplink.agreement, evidence[0].item(), client.label_sums, task, prior
        )
        if fault:
            raise RejectedUpdateError(f"{client.key} reports {fault}")


@dataclass(frozen=True)
class _Bounds:
    """What the precisions of a part can be.

    Attributes
    ----------
    structure, shrinkage, scale
        How clients make them.
    factor
        How many times as large as that they may be; None: any.
    """

    structure: Structure | None
    shrinkage: float
    scale: Scale
    factor: float | None

    def smallest(self, size: int) -> float:
        """Return the smallest eigenvalue that is allowed, as a share of their mean."""
        rho = self.shrinkage
        share = rho if self.structure is Structure.inputs else rho / (rho + (1 - rho) * size)
        # Below that it would be lost in the rounding of the largest.
        return share / _SLACK if share / _SLACK > 1e-6 else 0.0

    def largest_mean(self) -> float:
        """Return the largest mean eigenvalue that is allowed."""
        if self.factor is None or self.scale is Scale.absolute:
            return math.inf
        return self.factor * (1 if self.structure is Structure.inputs else 1 / self.shrinkage)


def check_description(client: ClientDescription, known: Collection[str]) -> None:
    """Check what a client says of itself.

    Parameters
    ----------
    client
        Its description.
    known
        The dataset's modalities.

    Raises
    ------
    UserError
        At the first fault.
    """
    key, moments = client.key, client.moments
    if key.modality not in known:
        raise UserError(
            f"it holds modality {key.modality!r}, but the dataset has {', '.join(known)}"
        )
    if client.examples < 1:
        raise UserError(f"client {key} has no examples")
    if client.examples > MAX_EXAMPLES:
        raise UserError(f"client {key} says that it has {client.examples} examples")
    if fault := label_sums_fault(client.label_sums, client.task, client.examples):
        raise UserError(f"client {key} reports {fault}")
    arrays = (moments.count, moments.mean, moments.squares)
    if (
        not all(np.isfinite(array).all() for array in arrays)
        or ((moments.count < 0) | (moments.squares < 0)).any()
    ):
        raise UserError(f"client {key} reports moments of its features that cannot be")


def _check_posterior(
    where: str,
    found: Posterior,
    expected: Mapping[str, Tensor],
    layout: Layout,
    bounds: _Bounds,
) -> None:
    if isinstance(found, Means) and _is_sound(found, layout):
        return
    _check_arrays(where, {name: gaussian.mean for name, gaussian in found.items()}, expected)
    for name, gaussian in found.items():
        array = f"{where} array {name!r}"
        if gaussian.form not in (Form.identity, posterior_form(gaussian.mean, bounds.structure)):
            raise RejectedUpdateError(f"{array}: its precision is {gaussian.form}")
        _check_precision(array, gaussian, bounds)


def _is_sound(found: Means, layout: Layout) -> bool:
    """Whether there is no fault; as most updates have none, looked for in one piece."""
    return found.layout == layout and _is_finite(found.vector)


def _check_arrays(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())[0]
        state = "unexpected" if odd in found else "missing"
        raise RejectedUpdateError(f"{where}: array {odd!r} is {state}")
    for name, array in found.items():
        like = expected[name]
        if array.shape != like.shape or array.dtype != like.dtype:
            raise RejectedUpdateError(
                f"{where}: array {name!r} is {array.dtype} {tuple(array.shape)}, "
                f"expected {like.dtype} {tuple(like.shape)}"
            )
    # All at once: most updates are sound.
    if not _is_finite(torch.cat([array.reshape(-1) for array in found.values()])):
        name = next(name for name, array in found.items() if not _is_finite(array))
        raise RejectedUpdateError(f"{where}: array {name!r} holds a value that is not finite")


def _check_precision(where: str, gaussian: Gaussian, bounds: _Bounds) -> None:
    precision = gaussian.precision
    if precision is None:
        return
    if precision.dtype != gaussian.mean.dtype:
        raise RejectedUpdateError(
            f"{where}: its precision is {precision.dtype}, expected {gaussian.mean.dtype}"
        )
    if not _is_finite(precision):
        raise RejectedUpdateError(f"{where}: its precision holds a value that is not finite")
    mean, share = mean_precision(gaussian), bounds.smallest(_size(gaussian))
    if not _above(gaussian, share * mean):
        if not _above(gaussian, 0.0):
            raise RejectedUpdateError(f"{where}: its precision is not positive")
        raise RejectedUpdateError(
            f"{where}: an eigenvalue of its precision is below {share:.1e} times their mean of "
            f"{mean:.1e}"
        )
    if mean > bounds.largest_mean():
        raise RejectedUpdateError(
            f"{where}: the mean eigenvalue of its precision is {mean:.1e}, expected at most "
            f"{bounds.largest_mean():.1e}"
        )


def _is_finite(values: Tensor) -> bool:
    # A sum is finite only if all that it is of is, and may still overflow if it is.
    return math.isfinite(values.sum()) or bool(values.isfinite().all())


def mean_precision(gaussian: Gaussian) -> float:
    """Return the mean eigenvalue of a precision; 1 of the identity."""
    if gaussian.precision is None:
        return 1.0
    row = gaussian.form is Form.row
    values = gaussian.precision.diagonal() if row else gaussian.precision
    return values.mean(dtype=torch.float64).item()


def _size(gaussian: Gaussian) -> int:
    assert gaussian.precision is not None
    row = gaussian.form is Form.row
    return len(gaussian.precision) if row else gaussian.precision.numel()


def _above(gaussian: Gaussian, least: float) -> bool:
    """Whether all eigenvalues of a precision are above a number."""
    assert gaussian.precision is not None
    exact = gaussian.precision.to(torch.float64, copy=True)
    if gaussian.form is not Form.row:
        return bool((exact > least).all())
    exact.diagonal().sub_(least)
    _, failed = torch.linalg.cholesky_ex(exact)
    return not failed
