"""How much each client counts.

- ``examples``: n_i, as FedAvg;
- ``uniform``: 1;
- ``agreement``: n_i times the odds-based trust that the labels of client i belong to its features.
  A client reports how much better the model that it received explains its validation labels than
  its own shares of labels do (`common.model.evidence.agreement`), a log-likelihood ratio L_i; with
  `PRIOR_ODDS` that a client is sound, the trust is sigmoid(L_i + log odds). A client of one class
  has L_i = 0 and keeps its weight; one with permuted labels loses it. It finds faults, not lies.

Any of them can be taken per local step (FedNova, Wang et al. 2020), so that a client that makes
more steps does not count more for it: with tau_i steps, shares p_i = w_i / sum w and the effective
tau = sum p_i tau_i,

    W <- W + tau sum_i p_i (W_i - W) / tau_i

which is the average with weights w_i / tau_i, whose change is scaled by tau (sum_i p_i / tau_i).
"""

import math
from dataclasses import dataclass

from common.config import ClientWeights
from common.messages import Uplink
from common.model.evidence import INVERSE_TEMPERATURES
from common.model.fusion import Expert
from common.task import Task

#: How much likelier a client is taken to be sound than faulty, before it is seen.
PRIOR_ODDS = 20.0


def trust(uplink: Uplink, expert: Expert, label_variance: float, task: Task) -> float:
    """Return the trust in a client's labels, in (0, 1).

    Parameters
    ----------
    uplink
        What the client reported.
    expert
        The calibration of its modality, from the evidence of all its clients so far.
    label_variance
        Of the pooled labels; used for numbers.
    task
        Kind of label.
    """
    if task is Task.regression:
        squares, product = uplink.agreement.tolist()
        noise = expert.unexplained * label_variance
        ratio = (2 * expert.slope * product - expert.slope**2 * squares) / (2 * noise)
    else:
        ratio = uplink.agreement[INVERSE_TEMPERATURES.index(expert.slope)].item()
    return 1 / (1 + math.exp(-min(max(ratio + math.log(PRIOR_ODDS), -500.0), 500.0)))


def client_weight(uplink: Uplink, rule: ClientWeights, trusted: float) -> float:
    """Return w_i, above 0."""
    match rule:
        case ClientWeights.uniform:
            return 1.0
        case ClientWeights.examples:
            return float(uplink.examples)
        case ClientWeights.agreement:
            return uplink.examples * max(trusted, 1e-6)


@dataclass(frozen=True)
class StepSums:
    """What the scale of a change per step is made of: sums of w, w tau and w / tau over clients."""

    weight: float = 0.0
    steps: float = 0.0
    inverse_steps: float = 0.0

    def add(self, weight: float, steps: int) -> "StepSums":
        """Add one client."""
        return self.merge(StepSums(weight, weight * steps, weight / steps))

    def merge(self, other: "StepSums") -> "StepSums":
        """Return the sums of both."""
        return StepSums(
            self.weight + other.weight,
            self.steps + other.steps,
            self.inverse_steps + other.inverse_steps,
        )

    def scale(self) -> float:
        """Return tau (sum_i p_i / tau_i): 1 where all clients make the same number of steps."""
        return self.steps * self.inverse_steps / self.weight**2
