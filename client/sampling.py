"""Posterior samples of a client's weights, taken along its local training.

Until burn-in ends the local optimiser moves. After it, by sampler:

- ``iasg``, iterate-averaged stochastic gradient (Mandt, Hoffman and Blei 2017; FedPA, arXiv
  2010.05273): the optimiser goes on, and each sample is the mean of one segment of its iterates;
- ``sgld``, Langevin dynamics (Welling and Teh 2011): w <- w - lr g + N(0, 2 lr T / n);
- ``sghmc``, Hamiltonian dynamics with friction (Chen, Fox and Guestrin 2014):
  v <- (1 - a) v - lr g + N(0, 2 a lr T / n), w <- w + v;

where g is the gradient of the mean loss, so that n times the loss over the temperature T is the
potential, n examples, and a the friction. A sample of the last two is the last iterate of its
segment. All of them are `init` / `step` / `collect`.

Notation: S samples, P parameters, all in one vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Sampler, SamplerConfig

_LANGEVIN = (Sampler.sgld, Sampler.sghmc)


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
    sample of no step. So does one whose segments of a given length do not fit: it shortens them.

    Parameters
    ----------
    config
        Number of samples; the share of the steps to burn in, or the steps in a segment, which
        then decide the burn-in.
    steps
        Local steps, at least 1.
    """
    if config.name is Sampler.last:
        return SamplingPlan(1, 1, steps - 1)
    num_samples = min(config.num_samples, steps)
    after_burn_in = max(steps - int(config.burn_in * steps), num_samples)
    segment = after_burn_in // num_samples
    if config.segment is not None:
        segment = min(config.segment, steps // num_samples)
    return SamplingPlan(num_samples, segment, steps - num_samples * segment)


@dataclass
class SamplerState:
    """Samples in the making.

    Attributes
    ----------
    config, plan
        How, and what to take.
    samples
        (S, P) sums of the iterates of each segment, or the last of each.
    velocity
        (P,) of `sghmc`.
    noise
        (P,) deviation of the noise divided by the root of twice the rate: (T / n)^(1/2).
    generator
        Draws the noise.
    taken
        Local steps so far.
    """

    config: SamplerConfig
    plan: SamplingPlan
    samples: Tensor
    velocity: Tensor
    noise: float
    generator: torch.Generator
    taken: int = 0


def init(
    config: SamplerConfig,
    sampling_plan: SamplingPlan,
    parameters: Tensor,
    examples: int,
    seed: int,
) -> SamplerState:
    """Start before the first local step.

    Parameters
    ----------
    config, sampling_plan
        Which sampler, and which steps make which sample.
    parameters
        (P,) for size, dtype and device.
    examples
        n, above 0.
    seed
        Of the noise.
    """
    return SamplerState(
        config,
        sampling_plan,
        parameters.new_zeros(sampling_plan.num_samples, len(parameters)),
        torch.zeros_like(parameters),
        (config.temperature / examples) ** 0.5,
        torch.Generator(parameters.device).manual_seed(seed),
    )


def wanted(state: SamplerState) -> bool:
    """Whether the next iterate belongs to a sample, so that burn-in costs nothing."""
    return state.taken >= state.plan.burn_in


def moves(state: SamplerState) -> bool:
    """Whether the sampler makes the next local step itself, instead of the optimiser."""
    return wanted(state) and state.config.name in _LANGEVIN


def step(
    state: SamplerState, parameters: Tensor | None, gradient: Tensor | None = None
) -> Tensor | None:
    """Account for one local step.

    Parameters
    ----------
    state
        Changed in place.
    parameters
        (P,). Where the sampler `moves`, before the step; else after the optimiser's. May be None
        while not `wanted`.
    gradient
        (P,) of the mean loss at `parameters`, where the sampler `moves`.

    Returns
    -------
    Tensor
        (P,) the parameters after the step.
    """
    if wanted(state):
        assert parameters is not None
        segment, position = divmod(state.taken - state.plan.burn_in, state.plan.segment)
        if moves(state):
            assert gradient is not None
            parameters = _move(state, parameters, gradient)
            if position == state.plan.segment - 1:
                state.samples[segment] = parameters
        else:
            state.samples[segment] += parameters / state.plan.segment
    state.taken += 1
    return parameters


def _move(state: SamplerState, parameters: Tensor, gradient: Tensor) -> Tensor:
    config, lr = state.config, state.config.lr
    noise = torch.randn(
        parameters.shape,
        generator=state.generator,
        dtype=parameters.dtype,
        device=parameters.device,
    )
    if config.name is Sampler.sgld:
        moved: Tensor = parameters - lr * gradient + (2 * lr) ** 0.5 * state.noise * noise
        return moved
    velocity: Tensor = (
        (1 - config.friction) * state.velocity
        - lr * gradient
        + (2 * config.friction * lr) ** 0.5 * state.noise * noise
    )
    state.velocity = velocity
    return parameters + velocity


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
    return state.samples
