"""Never trust an update: what a reply must satisfy before it touches a sum."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from common.clients import ClientKey
from common.messages import Uplink
from common.model.evidence import evidence_size
from common.model.ha_fedformer import Parts
from common.posterior import Form, Gaussian
from common.task import Task


class RejectedUpdateError(Exception):
    """An update that must not be merged; says which array of which client, and why."""


def check_uplink(
    uplink: Uplink, expected: ClientKey, server_round: int, trained: Parts, task: Task
) -> None:
    """Check a reply against the model and against whom it was asked of.

    Parameters
    ----------
    uplink
        The reply.
    expected
        The client that was asked.
    server_round
        The round that it was asked in.
    trained
        The global model's trained tensors.
    task
        Kind of label.

    Raises
    ------
    RejectedUpdateError
        At the first fault.
    """
    if uplink.key != expected:
        raise RejectedUpdateError(f"{expected} answers as {uplink.key}")
    if uplink.round != server_round:
        raise RejectedUpdateError(
            f"{expected} answers for round {uplink.round}, not {server_round}"
        )
    if uplink.examples < 1:
        raise RejectedUpdateError(
            f"{expected} reports {uplink.examples} examples, expected 1 or more"
        )
    if not math.isfinite(uplink.train_loss):
        raise RejectedUpdateError(f"{expected} reports a train loss of {uplink.train_loss}")
    if len(uplink.evidence) != evidence_size(task) or not uplink.evidence.isfinite().all():
        raise RejectedUpdateError(f"{expected} reports evidence {uplink.evidence.tolist()}")
    means = {name: gaussian.mean for name, gaussian in uplink.encoder.items()}
    _check_arrays(f"{expected} encoder", means, trained.encoders[expected.modality])
    _check_arrays(f"{expected} decoder", uplink.decoder, trained.decoder)
    for name, gaussian in uplink.encoder.items():
        _check_precision(f"{expected} encoder array {name!r}", gaussian)


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
    if not gaussian.precision.isfinite().all():
        raise RejectedUpdateError(f"{where}: its precision holds a value that is not finite")
    if gaussian.form is Form.row:
        _, failed = torch.linalg.cholesky_ex(gaussian.precision.double())
        positive = not failed
    else:
        positive = bool((gaussian.precision > 0).all())
    if not positive:
        raise RejectedUpdateError(f"{where}: its precision is not positive")
