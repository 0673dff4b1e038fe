"""Posterior samples from the iterates of local training.

``iasg``, iterate-averaged stochastic gradient (Mandt, Hoffman and Blei 2017; FedPA, arXiv
2010.05273): after burn-in, each sample is the mean of one segment of optimiser iterates.

A sampler is `init` / `step` / `collect`. Notation: S samples, P parameters, all in one vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Sampler, SamplerConfig


@dataclass(frozen=True)
class SamplingPlan:
    """Which local steps make which sample.

    Attributes
    ----------
    num_samples
        S.
    segment
        Steps that are averaged into one sample.
    burn_in
        Steps before the first segment.
    """

    num_samples: int
    segment: int
    burn_in: int


def plan(config: SamplerConfig, steps: int) -> SamplingPlan:
    """Fit samples into the local steps that there are.

    The last segment always ends at the last step. ``last`` is the one sample of the last iterate.
    A client with fewer steps than samples first gives up burn-in, then samples: it never makes a
    sample of no step.

    Parameters
    ----------
    config
        Number of samples, and the share of the steps to burn in.
    steps
        Local steps, at least 1.
    """
    if config.name is Sampler.last:
        return SamplingPlan(1, 1, steps - 1)
    num_samples = min(config.num_samples, steps)
    after_burn_in = max(steps - int(config.burn_in * steps), num_samples)
    segment = after_burn_in // num_samples
    return SamplingPlan(num_samples, segment, steps - num_samples * segment)


@dataclass
class SamplerState:
    """Samples in the making.

    Attributes
    ----------
    plan
        What to take.
    sums
        (S, P) sums of the iterates of each segment.
    taken
        Local steps so far.
    """

    plan: SamplingPlan
    sums: Tensor
    taken: int = 0


def init(sampling_plan: SamplingPlan, parameters: Tensor) -> SamplerState:
    """Start before the first local step; `parameters` (P,) gives size, dtype and device."""
    return SamplerState(
        sampling_plan, parameters.new_zeros(sampling_plan.num_samples, len(parameters))
    )


def wanted(state: SamplerState) -> bool:
    """Whether the next iterate belongs to a sample, so that burn-in costs nothing."""
    return state.taken >= state.plan.burn_in


def step(state: SamplerState, parameters: Tensor | None) -> SamplerState:
    """Account for one local step; `parameters` (P,) may be None while not `wanted`."""
    if wanted(state):
        assert parameters is not None
        state.sums[(state.taken - state.plan.burn_in) // state.plan.segment] += parameters
    state.taken += 1
    return state


def collect(state: SamplerState) -> Tensor:
    """Return the samples (S, P).

    Raises
    ------
    RuntimeError
        If local steps are still missing.
    """
    expected = state.plan.burn_in + state.plan.num_samples * state.plan.segment
    if state.taken != expected:
        raise RuntimeError(f"the sampler saw {state.taken} of {expected} steps")
    return torch.div(state.sums, state.plan.segment)
