"""Never trust an update: what a reply must satisfy before it touches a sum."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config import Config, Structure
from common.errors import UserError
from common.messages import ClientDescription, Uplink
from common.model.evidence import agreement_size, evidence_size
from common.model.ha_fedformer import Parts
from common.posterior import (
    Form,
    Gaussian,
    Posterior,
    decoder_structure,
    encoder_structure,
    posterior_form,
)
from common.task import Task


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
    """

    trained: Parts
    task: Task
    config: Config

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
        _check_posterior(
            f"{expected} encoder",
            uplink.encoder,
            self.trained.encoders[expected.modality],
            encoder_structure(self.config.strategy.encoder),
        )
        _check_posterior(
            f"{expected} decoder",
            uplink.decoder,
            self.trained.decoder,
            decoder_structure(self.config.strategy.decoder),
        )

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
            if len(sums) != size or not (sums.abs() < 1e100).all():
                raise RejectedUpdateError(f"{key} reports {name} {sums.tolist()}")


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
    sums = client.label_sums
    if not sums.isfinite().all() or sums[0] < 0:
        raise UserError(f"client {key} reports label sums {sums.tolist()}")
    arrays = (moments.count, moments.mean, moments.squares)
    if (
        not all(np.isfinite(array).all() for array in arrays)
        or ((moments.count < 0) | (moments.squares < 0)).any()
    ):
        raise UserError(f"client {key} reports moments of its features that cannot be")


def _check_posterior(
    where: str, found: Posterior, expected: Mapping[str, Tensor], structure: Structure | None
) -> None:
    _check_arrays(where, {name: gaussian.mean for name, gaussian in found.items()}, expected)
    for name, gaussian in found.items():
        array = f"{where} array {name!r}"
        if gaussian.form not in (Form.identity, posterior_form(gaussian.mean, structure)):
            raise RejectedUpdateError(f"{array}: its precision is {gaussian.form}")
        _check_precision(array, gaussian)


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
        if not array.isfinite().all():
            raise RejectedUpdateError(f"{where}: array {name!r} holds a value that is not finite")


def _check_precision(where: str, gaussian: Gaussian) -> None:
    if gaussian.precision is None:
        return
    if gaussian.precision.dtype != gaussian.mean.dtype:
        raise RejectedUpdateError(
            f"{where}: its precision is {gaussian.precision.dtype}, expected {gaussian.mean.dtype}"
        )
    if not gaussian.precision.isfinite().all():
        raise RejectedUpdateError(f"{where}: its precision holds a value that is not finite")
    if gaussian.form is Form.row:
        _, failed = torch.linalg.cholesky_ex(gaussian.precision.double())
        positive = not failed
    else:
        positive = bool((gaussian.precision > 0).all())
    if not positive:
        raise RejectedUpdateError(f"{where}: its precision is not positive")
