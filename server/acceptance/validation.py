"""Never trust an update: what a reply must satisfy by itself before it touches a sum.

Its size is checked before any of it is made into a tensor: a client of modality m sends, for each
trained tensor of its encoder and of the decoder, the mean, and a precision where the configuration
asks for one (`common.structures`), so the most bytes of its tensors are known before it answers.
Types are checked where it is decoded. A precision is bounded by the shrinkage that it was made
with, see `common.structures.Structure`: the smallest eigenvalue is at least a known share of the
mean one, and without a scale of its own the mean has a known bound too.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from common.config import ClientConfig, Config, Scale
from common.messages import ClientDescription, Uplink
from common.model.calibration import agreement_size, calibration_size
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Layout, Posterior, Stack, precision_shape
from common.protocol import payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from common.wire import DECODER, ENCODER, posterior_groups, write_tensors
from server.acceptance.plausibility import agreement_fault, calibration_fault, most_validated

#: Up to so many times the limit is still read, so that the refusal can name the faulty tensor.
SLACK = 2

#: Records of an update: about, tensors, metrics.
MAX_RECORDS = 3

#: Of everything that is no tensor, written out.
MAX_LETTERS = 65_536

#: How far below what shrinkage allows an eigenvalue may be, for rounding in float32.
_ROUNDING = 10.0


class RejectedUpdateError(Exception):
    """An update that must not be merged; says which array of which client, and why."""


@dataclass(frozen=True)
class _Part:
    """What the posterior over an encoder, or the decoder, is like."""

    tensors: Mapping[str, Tensor]
    structure: Structure | None
    shrinkage: float
    #: How many times the largest mean eigenvalue is allowed; None: any number.
    factor: float | None = None

    @cached_property
    def layout(self) -> Layout:
        """How its tensors follow one another."""
        return Layout.of(self.tensors)

    def largest(self) -> dict[str, Gaussian]:
        """Return a posterior with every precision that is asked for."""
        posterior = {}
        for name, mean in self.tensors.items():
            form = posterior_form(mean, self.structure)
            shape = precision_shape(mean, form)
            posterior[name] = Gaussian(mean, None if shape is None else torch.ones(shape), form)
        return posterior

    def fault(self, posterior: Posterior) -> str | None:
        """Name the first array that is wrong, and say what is; None if none is."""
        if fault := posterior.layout.difference(self.layout):
            return fault
        if not _is_finite(posterior.mean):
            views = posterior.layout.split(posterior.mean)
            name = next(name for name, array in views.items() if not _is_finite(array))
            return f"array {name!r} holds a value that is not finite"
        if all(self._is_sound(stack, posterior) for stack in posterior.stacks):
            return None
        faults = (
            (name, self._precision_fault(name, gaussian))
            for name, gaussian in posterior.items()
            if gaussian.precision is not None
        )
        return next((f"array {name!r}: {fault}" for name, fault in faults if fault), None)

    @cached_property
    def forms(self) -> dict[str, Form]:
        """Tensor to the form of its precision."""
        return {name: posterior_form(mean, self.structure) for name, mean in self.tensors.items()}

    def _is_sound(self, stack: Stack, posterior: Posterior) -> bool:
        """Whether `_precision_fault` finds nothing in any of some precisions, all at once."""
        values, form = stack.values, stack.form
        if values.dtype != posterior.mean.dtype or not _is_finite(values):
            return False
        if any(self.forms[name] is not form for name in stack.names):
            return False
        share = self._share(values[0], form)
        least = torch.tensor([share * mean for mean in stack.means], dtype=torch.float64)
        return max(stack.means) <= self._most and _above(values, form, least)

    def _share(self, precision: Tensor, form: Form) -> float:
        """Return the share of the mean eigenvalue that the smallest has at least."""
        assert self.structure is not None
        size = len(precision) if form is Form.row else precision.numel()
        share = self.structure.smallest_share(self.shrinkage, size) / _ROUNDING
        # Below that it would be lost in the rounding of the largest.
        return share if share > 1e-6 else 0.0

    @property
    def _most(self) -> float:
        assert self.structure is not None
        return (self.factor or math.inf) * self.structure.largest_mean(self.shrinkage)

    def _precision_fault(self, name: str, gaussian: Gaussian) -> str | None:
        form, precision = gaussian.form, gaussian.precision
        if form is not self.forms[name]:
            return f"its precision is {form}"
        assert precision is not None
        if precision.dtype != gaussian.mean.dtype:
            return f"its precision is {precision.dtype}, expected {gaussian.mean.dtype}"
        if not _is_finite(precision):
            return "its precision holds a value that is not finite"
        share, stacked = self._share(precision, form), precision[None]
        mean = Stack((name,), form, stacked).means[0]
        if not _above(stacked, form, torch.tensor([share * mean], dtype=torch.float64)):
            low = f"an eigenvalue of its precision is below {share:.1e} times their mean of"
            low = f"{low} {mean:.1e}"
            above_0 = _above(stacked, form, torch.zeros(1, dtype=torch.float64))
            return low if above_0 else "its precision is not positive"
        if mean > self._most:
            fault = f"the mean eigenvalue of its precision is {mean:.1e}, expected at most"
            return f"{fault} {self._most:.1e}"
        return None


def local_steps(examples: int, client: ClientConfig) -> int:
    """Return how many steps a client of so many train items makes in a round."""
    return client.local_epochs * -(-examples // client.batch_size)


class UpdateRules:
    """What every update of a run must satisfy, by its trained tensors and its configuration.

    `prior` is the pooled one that clients are sent.
    """

    def __init__(self, trained: ModelArrays, task: Task, config: Config, prior: Tensor) -> None:
        self._task, self._client, self._prior = task, config.client, prior
        encoder, decoder = config.strategy.encoder, config.strategy.decoder
        relative, structure = encoder.scale == Scale.relative, encoder_structure(encoder)
        factor = config.strategy.screening.precision_factor if relative else None
        self._encoders = {
            name: _Part(tensors, structure, encoder.shrinkage, factor)
            for name, tensors in trained.encoders.items()
        }
        self._decoder = _Part(trained.decoder, decoder_structure(decoder), decoder.shrinkage)
        shared = posterior_groups(DECODER, self._decoder.largest())
        #: Modality to the most bytes that the tensors of a client's update may have.
        self.limits = {
            name: len(write_tensors({**posterior_groups(ENCODER, part.largest()), **shared}))
            for name, part in self._encoders.items()
        }

    def check_size(self, content: RecordDict, modalities: Collection[str]) -> None:
        """Raise RejectedUpdateError for a reply larger than any client of its node needs.

        `modalities` are those that the node was asked for; if none, any will do.
        """
        most = self._most(modalities)
        if (sent := payload_bytes(content)) > SLACK * most:
            raise RejectedUpdateError(f"sends {sent:,} bytes of tensors, expected at most {most:,}")
        records = [record for record in content.values() if isinstance(record, ArrayRecord)]
        for count, limit, what in (
            (len(content), MAX_RECORDS, "records"),
            (sum(map(len, records)), 1, "arrays"),
            (_letters(content), MAX_LETTERS, "letters besides tensors"),
        ):
            if count > limit:
                raise RejectedUpdateError(f"sends {count:,} {what}, expected at most {limit:,}")

    def most_bytes(self, modalities: Collection[str]) -> int:
        """Return the most bytes of a reply that `check_size` passes, as it travels."""
        # Beside tensors and letters, the names and headers of its parts.
        return SLACK * self._most(modalities) + 2 * MAX_LETTERS

    def _most(self, modalities: Collection[str]) -> int:
        return max(self.limits[name] for name in modalities or self.limits)

    def check(self, uplink: Uplink, client: ClientDescription, server_round: int) -> None:
        """Raise RejectedUpdateError at the first fault of an update of a client for a round."""
        key = uplink.key
        if uplink.round != server_round:
            raise RejectedUpdateError(
                f"{key} answers for round {uplink.round}, expected {server_round}"
            )
        if fault := self._figures_fault(uplink, client):
            raise RejectedUpdateError(f"{key} reports {fault}")
        for part, posterior, expected in (
            ("encoder", uplink.encoder, self._encoders[key.modality]),
            ("decoder", uplink.decoder, self._decoder),
        ):
            if fault := expected.fault(posterior):
                raise RejectedUpdateError(f"{key} {part} {fault}")

    def _figures_fault(self, uplink: Uplink, client: ClientDescription) -> str | None:
        examples, task, settings = client.examples, self._task, self._client
        if uplink.examples != examples:
            return f"{uplink.examples} examples, and said before that it has {examples}"
        # Losses are computed in float32; their sum over examples is to be finite too.
        if not abs(uplink.train_loss) <= torch.finfo(torch.float32).max:
            return f"a train loss of {uplink.train_loss}"
        steps = local_steps(examples, settings)
        if uplink.steps != steps:
            return f"{uplink.steps} local steps, expected {steps}"
        sums, agrees = uplink.calibration_sums, uplink.label_agreement
        for name, numbers, size in (
            ("evidence", sums, calibration_size(task)),
            ("agreement", agrees, agreement_size(task)),
        ):
            figures = numbers.tolist()
            # Their squares are to be finite too.
            if len(figures) != size or not all(abs(figure) < 1e100 for figure in figures):
                return f"{name} {figures}"
        most = most_validated(examples, settings.validation_fraction)
        return calibration_fault(sums, task, self._prior, most) or agreement_fault(
            agrees, sums[0].item(), client.label_sums, task, self._prior
        )


def _letters(value: object) -> int:
    """Return about how many letters a value has besides tensors; writes nothing out."""
    if isinstance(value, str | bytes):
        return len(value) + 4
    if isinstance(value, Array):
        return len(value.dtype) + len(value.stype)
    if isinstance(value, Mapping):
        return sum(len(name) + _letters(each) for name, each in value.items())
    return sum(map(_letters, value)) if isinstance(value, list) else 20


def _is_finite(values: Tensor) -> bool:
    # A sum is finite only if all that it is of is, and may still overflow if it is.
    return math.isfinite(values.sum()) or bool(values.isfinite().all())


def _above(precisions: Tensor, form: Form, least: Tensor) -> bool:
    """Whether all eigenvalues of some precisions (k, ...) are above a number for each, (k,)."""
    exact = precisions.to(torch.float64, copy=True)
    if form is not Form.row:
        return bool((exact.flatten(1) > least[:, None]).all())
    exact.diagonal(dim1=1, dim2=2).sub_(least[:, None])
    try:
        np.linalg.cholesky(exact.numpy())  # half the time of torch's
    except np.linalg.LinAlgError:
        return False
    return True
