"""Never trust an update: what a reply must satisfy by itself before it touches a sum.

How large it may be is checked by `payload`, how it compares with others by `screening`; types are
checked where it is decoded. A precision is bounded by the shrinkage that it was made with, see
`common.structures.Structure`: the smallest eigenvalue is at least a known share of the mean one,
and without a scale of its own the mean has a known bound too.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config import Config, Scale
from common.errors import UserError
from common.messages import ClientDescription, Uplink
from common.model.calibration import agreement_size, calibration_size
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Layout, Posterior
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from server.acceptance.plausibility import (
    MAX_EXAMPLES,
    agreement_fault,
    calibration_fault,
    label_sums_fault,
    most_validated,
)

#: How far below what shrinkage allows an eigenvalue may be, for rounding in float32.
_SLACK = 10.0


class RejectedUpdateError(Exception):
    """An update that must not be merged; says which array of which client, and why."""


class UpdateRules:
    """What every update of a run must satisfy.

    Parameters
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

    def __init__(self, trained: ModelArrays, task: Task, config: Config, prior: Tensor) -> None:
        self._task, self._config, self._prior = task, config, prior
        self._encoders = {name: Layout.of(arrays) for name, arrays in trained.encoders.items()}
        self._decoder = Layout.of(trained.decoder)
        strategy = config.strategy
        limit, encoder = strategy.screening.precision_factor, strategy.encoder
        self._bounds = (
            _Bounds(encoder_structure(encoder), encoder.shrinkage, encoder.scale, limit),
            _Bounds(
                decoder_structure(strategy.decoder),
                strategy.decoder.shrinkage,
                Scale.absolute,
                limit,
            ),
        )

    def check(self, uplink: Uplink, client: ClientDescription, server_round: int) -> None:
        """Check a reply against the model and the client that it was asked of.

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
        key = client.key
        if uplink.key != key:
            raise RejectedUpdateError(f"{key} answers as {uplink.key}")
        if uplink.round != server_round:
            raise RejectedUpdateError(
                f"{key} answers for round {uplink.round}, expected {server_round}"
            )
        self._check_figures(uplink, client.examples)
        self._check_sums(uplink, client)
        encoder, decoder = self._bounds
        _check_posterior(f"{key} encoder", uplink.encoder, self._encoders[key.modality], encoder)
        _check_posterior(f"{key} decoder", uplink.decoder, self._decoder, decoder)

    def _check_figures(self, uplink: Uplink, examples: int) -> None:
        key = uplink.key
        if uplink.examples != examples:
            raise RejectedUpdateError(
                f"{key} reports {uplink.examples} examples, and said before that it has {examples}"
            )
        if not math.isfinite(uplink.train_loss):
            raise RejectedUpdateError(f"{key} reports a train loss of {uplink.train_loss}")
        client = self._config.client
        steps = client.local_epochs * -(-examples // client.batch_size)
        if uplink.steps != steps:
            raise RejectedUpdateError(f"{key} reports {uplink.steps} local steps, expected {steps}")
        for name, sums, size in (
            ("evidence", uplink.calibration_sums, calibration_size(self._task)),
            ("agreement", uplink.label_agreement, agreement_size(self._task)),
        ):
            # Their squares are to be finite too.
            figures = sums.tolist()
            if len(figures) != size or not all(abs(figure) < 1e100 for figure in figures):
                raise RejectedUpdateError(f"{key} reports {name} {figures}")

    def _check_sums(self, uplink: Uplink, client: ClientDescription) -> None:
        calibration_sums, task, prior = uplink.calibration_sums, self._task, self._prior
        most = most_validated(client.examples, self._config.client.validation_fraction)
        fault = calibration_fault(calibration_sums, task, prior, most) or agreement_fault(
            uplink.label_agreement, calibration_sums[0].item(), client.label_sums, task, prior
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
    scale: str
    factor: float | None

    def smallest(self, size: int) -> float:
        """Return the smallest eigenvalue that is allowed, as a share of their mean."""
        assert self.structure is not None
        share = self.structure.smallest_share(self.shrinkage, size) / _SLACK
        # Below that it would be lost in the rounding of the largest.
        return share if share > 1e-6 else 0.0

    def largest_mean(self) -> float:
        """Return the largest mean eigenvalue that is allowed."""
        if self.factor is None or self.structure is None or self.scale == Scale.absolute:
            return math.inf
        return self.factor * self.structure.largest_mean(self.shrinkage)


def _check_posterior(where: str, posterior: Posterior, layout: Layout, bounds: _Bounds) -> None:
    if fault := posterior.layout.difference(layout):
        raise RejectedUpdateError(f"{where}: {fault}")
    if not _is_finite(posterior.mean):
        views = layout.split(posterior.mean)
        name = next(name for name, array in views.items() if not _is_finite(array))
        raise RejectedUpdateError(f"{where}: array {name!r} holds a value that is not finite")
    for name, gaussian in posterior.precise.items():
        array = f"{where} array {name!r}"
        if gaussian.form is not posterior_form(gaussian.mean, bounds.structure):
            raise RejectedUpdateError(f"{array}: its precision is {gaussian.form}")
        _check_precision(array, gaussian, bounds)


def _check_precision(where: str, gaussian: Gaussian, bounds: _Bounds) -> None:
    precision = gaussian.precision
    assert precision is not None
    if precision.dtype != gaussian.mean.dtype:
        raise RejectedUpdateError(
            f"{where}: its precision is {precision.dtype}, expected {gaussian.mean.dtype}"
        )
    if not _is_finite(precision):
        raise RejectedUpdateError(f"{where}: its precision holds a value that is not finite")
    size = len(precision) if gaussian.form is Form.row else precision.numel()
    mean, share = gaussian.mean_precision(), bounds.smallest(size)
    if not _above(precision, gaussian.form, share * mean):
        if not _above(precision, gaussian.form, 0.0):
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


def _above(precision: Tensor, form: Form, least: float) -> bool:
    """Whether all eigenvalues of a precision are above a number."""
    exact = precision.to(torch.float64, copy=True)
    if form is not Form.row:
        return bool((exact > least).all())
    exact.diagonal().sub_(least)
    _, failed = torch.linalg.cholesky_ex(exact)
    return not failed


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
