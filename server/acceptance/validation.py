"""Never trust an update: what a reply must satisfy by itself before it touches a sum.

How large it may be is checked by `payload`, how it compares with others by `screening`; types are
checked where it is decoded. A precision is bounded by the shrinkage that it was made with, see
`common.structures.Structure`: the smallest eigenvalue is at least a known share of the mean one,
and without a scale of its own the mean has a known bound too.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from common.config import Config, Scale
from common.messages import ClientDescription, Uplink
from common.model.calibration import agreement_size, calibration_size
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Layout, Posterior
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from server.acceptance.plausibility import agreement_fault, calibration_fault, most_validated

#: How far below what shrinkage allows an eigenvalue may be, for rounding in float32.
_SLACK = 10.0


class RejectedUpdateError(Exception):
    """An update that must not be merged; says which array of which client, and why."""


class UpdateRules:
    """What every update of a run must satisfy, by its trained tensors and its configuration.

    `prior` is the pooled one that clients are sent.
    """

    def __init__(self, trained: ModelArrays, task: Task, config: Config, prior: Tensor) -> None:
        self._task, self._client, self._prior = task, config.client, prior
        strategy = config.strategy
        encoder, decoder = strategy.encoder, strategy.decoder
        factor = strategy.screening.precision_factor if encoder.scale == Scale.relative else None
        structure = encoder_structure(encoder)
        self._encoders = {
            name: _Expected(Layout.of(arrays), structure, encoder.shrinkage, factor)
            for name, arrays in trained.encoders.items()
        }
        layout, structure = Layout.of(trained.decoder), decoder_structure(decoder)
        self._decoder = _Expected(layout, structure, decoder.shrinkage, None)

    def check(self, uplink: Uplink, client: ClientDescription, server_round: int) -> None:
        """Raise RejectedUpdateError at the first fault of a client's reply for a round."""
        key = client.key
        if uplink.key != key:
            raise RejectedUpdateError(f"{key} answers as {uplink.key}")
        if uplink.round != server_round:
            raise RejectedUpdateError(
                f"{key} answers for round {uplink.round}, expected {server_round}"
            )
        if fault := self._figures_fault(uplink, client.examples) or self._sums_fault(
            uplink, client
        ):
            raise RejectedUpdateError(f"{key} reports {fault}")
        _check_posterior(f"{key} encoder", uplink.encoder, self._encoders[key.modality])
        _check_posterior(f"{key} decoder", uplink.decoder, self._decoder)

    def _figures_fault(self, uplink: Uplink, examples: int) -> str | None:
        if uplink.examples != examples:
            return f"{uplink.examples} examples, and said before that it has {examples}"
        if not math.isfinite(uplink.train_loss):
            return f"a train loss of {uplink.train_loss}"
        steps = self._client.local_epochs * -(-examples // self._client.batch_size)
        if uplink.steps != steps:
            return f"{uplink.steps} local steps, expected {steps}"
        for name, sums, size in (
            ("evidence", uplink.calibration_sums, calibration_size(self._task)),
            ("agreement", uplink.label_agreement, agreement_size(self._task)),
        ):
            figures = sums.tolist()
            # Their squares are to be finite too.
            if len(figures) != size or not all(abs(figure) < 1e100 for figure in figures):
                return f"{name} {figures}"
        return None

    def _sums_fault(self, uplink: Uplink, client: ClientDescription) -> str | None:
        sums, task, prior = uplink.calibration_sums, self._task, self._prior
        most = most_validated(client.examples, self._client.validation_fraction)
        return calibration_fault(sums, task, prior, most) or agreement_fault(
            uplink.label_agreement, sums[0].item(), client.label_sums, task, prior
        )


class _Expected(NamedTuple):
    """What the posterior over a part of the model is like."""

    layout: Layout
    structure: Structure | None
    shrinkage: float
    #: How many times the largest mean eigenvalue is allowed; None: any number.
    factor: float | None


def _check_posterior(where: str, posterior: Posterior, expected: _Expected) -> None:
    if fault := posterior.layout.difference(expected.layout):
        raise RejectedUpdateError(f"{where}: {fault}")
    if not _is_finite(posterior.mean):
        views = expected.layout.split(posterior.mean)
        name = next(name for name, array in views.items() if not _is_finite(array))
        raise RejectedUpdateError(f"{where}: array {name!r} holds a value that is not finite")
    for name, gaussian in posterior.precise.items():
        if fault := _precision_fault(gaussian, expected):
            raise RejectedUpdateError(f"{where} array {name!r}: {fault}")


def _precision_fault(gaussian: Gaussian, expected: _Expected) -> str | None:
    structure, form, precision = expected.structure, gaussian.form, gaussian.precision
    if structure is None or form is not posterior_form(gaussian.mean, structure):
        return f"its precision is {form}"
    assert precision is not None
    if precision.dtype != gaussian.mean.dtype:
        return f"its precision is {precision.dtype}, expected {gaussian.mean.dtype}"
    if not _is_finite(precision):
        return "its precision holds a value that is not finite"
    size = len(precision) if form is Form.row else precision.numel()
    mean = gaussian.mean_precision()
    share = structure.smallest_share(expected.shrinkage, size) / _SLACK
    # Below that it would be lost in the rounding of the largest.
    share = share if share > 1e-6 else 0.0
    if not _above(precision, form, share * mean):
        if not _above(precision, form, 0.0):
            return "its precision is not positive"
        return f"an eigenvalue of its precision is below {share:.1e} times their mean of {mean:.1e}"
    most = (expected.factor or math.inf) * structure.largest_mean(expected.shrinkage)
    if mean > most:
        return f"the mean eigenvalue of its precision is {mean:.1e}, expected at most {most:.1e}"
    return None


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
