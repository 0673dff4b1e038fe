"""How much each client counts.

- ``examples``: n_i, as FedAvg;
- ``uniform``: 1;
- ``agreement``: n_i times the trust that the labels of client i belong to its features. A client
  reports how much better the model that it received explains its validation labels than its own
  shares of labels do, a log-likelihood ratio L_i (its label agreement); with `PRIOR_ODDS` that a
  client is sound, the trust is sigmoid(L_i + log odds). A client with labels of one kind has L_i
  near 0 and keeps its weight; one with permuted labels loses it. It finds faults, not lies.

For numbers the ratio is that of two stories of the predictions p given the labels y, p = a + b y
with noise of variance s^2, or p whatever y is, with b and s^2 of all clients of the modality:

    L_i = (2 b S_py - b^2 S_yy) / (2 s^2),   S sums of products of deviations at client i

Any of them can be taken per local step (FedNova, Wang et al. 2020), so that a client that makes
more steps does not count more for it: with tau_i steps, shares p_i = w_i / sum w and the effective
tau = sum p_i tau_i,

    W <- W + tau sum_i p_i (W_i - W) / tau_i

which is the average with weights w_i / tau_i, whose change is scaled by tau (sum_i p_i / tau_i).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.clients import ClientKey
from common.messages import Uplink
from common.model.calibration import INVERSE_TEMPERATURES
from common.model.fusion import tempered_expert
from common.task import Task

#: How much likelier a client is taken to be sound than faulty, before it is seen.
PRIOR_ODDS = 20.0
_LOG_ODDS = math.log(PRIOR_ODDS)


def trust_round(uplinks: Sequence[Uplink], prior: Tensor, task: Task) -> dict[ClientKey, float]:
    """Return the trust in the labels of each client of a round, see `trust_clients`."""
    trusts: dict[ClientKey, float] = {}
    for modality in {uplink.key.modality for uplink in uplinks}:
        clients = [uplink for uplink in uplinks if uplink.key.modality == modality]
        keys = [uplink.key for uplink in clients]
        trusts |= zip(keys, trust_clients(clients, prior, task), strict=True)
    return trusts


def trust_clients(uplinks: Sequence[Uplink], prior: Tensor, task: Task) -> list[float]:
    """Return the trust, in (0, 1), in the labels of each client of one modality in one round.

    `prior` is that of the pooled labels, see `common.model.calibration.prior_of`.
    """
    trusts = [1.0] * len(uplinks)
    # What all together think decides first; then what those think who are trusted by it.
    for _ in range(2):
        pooled = torch.stack(
            [trust * uplink.calibration_sums for trust, uplink in zip(trusts, uplinks, strict=True)]
        ).sum(dim=0)
        odds = [_ratio(uplink, pooled, prior, task) + _LOG_ODDS for uplink in uplinks]
        trusts = [1 / (1 + math.exp(-min(max(each, -500.0), 500.0))) for each in odds]
    return trusts


def _ratio(uplink: Uplink, pooled: Tensor, prior: Tensor, task: Task) -> float:
    """Return L_i."""
    if task is not Task.regression:
        slope = tempered_expert(pooled).slope
        return uplink.label_agreement[INVERSE_TEMPERATURES.index(slope)].item()
    yy, pp, py = _deviations(pooled)
    own_yy, _, own_py = _deviations(uplink.calibration_sums)
    if min(yy, pp, py) < 1e-100:
        return 0.0
    slope = py / yy
    # Not below a thousandth: a perfect model would tell infinitely much.
    noise = max(pp - slope * py, 1e-3 * pp) / pooled[0].item()
    ratio = (2 * slope * own_py - slope * slope * own_yy) / (2 * noise)
    return ratio if math.isfinite(ratio) else 0.0


def _deviations(sums: Tensor) -> tuple[float, float, float]:
    """Return the sums of products of deviations yy, pp, py, from `calibration_sums`."""
    n, y, yy, p, pp, py = sums.tolist()
    return (yy - y * y / n, pp - p * p / n, py - p * y / n) if n > 0 else (0.0, 0.0, 0.0)


def client_weight(uplink: Uplink, rule: str, trusted: float) -> float:
    """Return w_i, above 0, by the name of the rule."""
    if rule == "uniform":
        return 1.0
    if rule == "agreement":
        return uplink.examples * max(trusted, 1e-6)
    return float(uplink.examples)


class StepSums(NamedTuple):
    """What the scale of a change per step is made of: sums of w, w tau and w / tau over clients."""

    weight: float = 0.0
    steps: float = 0.0
    inverse_steps: float = 0.0

    def add(self, weight: float, steps: int) -> "StepSums":
        """Add one client."""
        return self.merge(StepSums(weight, weight * steps, weight / steps))

    def merge(self, other: "StepSums") -> "StepSums":
        """Return the sums of both."""
        return StepSums(*(own + others for own, others in zip(self, other, strict=True)))

    def scale(self) -> float:
        """Return tau (sum_i p_i / tau_i): 1 where all clients make the same number of steps."""
        return self.steps * self.inverse_steps / self.weight**2
