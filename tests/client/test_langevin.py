"""Langevin and Hamiltonian dynamics: single steps by hand, the Gaussian they recover, a peer.

The loss is a quadratic, 1/2 (w - m)' A (w - m), so that its posterior is N(m, T/n A^-1); and for a
rate that is not small even the discretised chain has a stationary covariance in closed form.

Notation: C chains, D dimensions, S samples. All chains run at once, as C * D parameters.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from client.sampling import SamplingPlan, WeightSampler
from common.config import Sampler, SamplerConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of tensordict, about the classes of posteriors
    from posteriors.sgmcmc import sghmc, sgld

CHAINS = 4000
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.2, 1.0]], dtype=torch.float64)
CURVATURE = ROOT @ ROOT.T  # A

SGLD = SamplerConfig(Sampler.sgld, lr=0.03)
SGHMC = SamplerConfig(Sampler.sghmc, lr=0.002, friction=0.1)
both = pytest.mark.parametrize("config", [SGLD, SGHMC], ids=["sgld", "sghmc"])


def gradient_at(parameters: Tensor) -> Tensor:
    """Return the gradient of the mean loss, (C * D,), at every chain's place."""
    return ((parameters.reshape(-1, 3) - MEAN) @ CURVATURE).flatten()


def walk(
    config: SamplerConfig,
    plan: SamplingPlan,
    start: Tensor,
    examples: int,
    seed: int = 0,
    gradient: Callable[[Tensor], Tensor] = gradient_at,
) -> tuple[WeightSampler, list[Tensor]]:
    """Return the state at the end, and every iterate (C * D,)."""
    state, iterates = WeightSampler(config, plan, start, examples, seed), [start]
    for _ in range(plan.num_samples * plan.segment):
        assert state.moves
        moved = state.step(iterates[-1], gradient(iterates[-1]))
        assert moved is not None
        iterates.append(moved)
    return state, iterates[1:]


def draws(config: SamplerConfig, examples: int, segment: int = 600) -> Tensor:
    """Return samples (S * C, D) of chains that begin at 0; those of a chain are far apart."""
    start = torch.zeros(CHAINS * 3, dtype=torch.float64)
    state, _ = walk(config, SamplingPlan(2, segment, 0), start, examples)
    return state.collect().reshape(-1, 3)


@both
@pytest.mark.parametrize(("examples", "temperature"), [(50, 1.0), (7, 4.0)])
def test_a_small_rate_recovers_the_posterior(
    config: SamplerConfig, examples: int, temperature: float
) -> None:
    found = draws(replace(config, temperature=temperature), examples)
    expected = temperature / examples * CURVATURE.inverse()
    error_of_the_mean = (expected.diagonal() / len(found)) ** 0.5
    assert ((found.mean(dim=0) - MEAN).abs() < 5 * error_of_the_mean).all()
    # In coordinates in which the posterior is the standard normal one.
    whitened = (found - MEAN) @ ROOT * (examples / temperature) ** 0.5
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(3).double(), rtol=0, atol=0.07)


@pytest.mark.parametrize(
    ("config", "bias"),
    [
        # w is an AR(1) of coefficient 1 - lr h and innovations 2 lr.
        (SamplerConfig(Sampler.sgld, lr=0.5), 0.5 / 2),
        # w is an AR(2) of coefficients 2 - a - lr h and a - 1, and innovations 2 a lr.
        (SamplerConfig(Sampler.sghmc, lr=0.8, friction=0.4), 0.8 / (2 * (2 - 0.4))),
    ],
    ids=["sgld", "sghmc"],
)
def test_a_large_rate_errs_as_theory_says(config: SamplerConfig, bias: float) -> None:
    bends, axes = torch.linalg.eigh(CURVATURE)
    found = draws(config, examples=3, segment=40)
    variances = 3 * bends * ((found - MEAN) @ axes).var(dim=0)
    expected = 1 / (1 - bias * bends)
    assert expected.max() > 1.4
    torch.testing.assert_close(variances, expected, rtol=0.06, atol=0)


# Both set log p = -n loss. A step eps of sgld there is lr / n. For sghmc, where momenta m have unit
# variance, v = eps m, a = eps alpha and lr = eps^2 n.
EXAMPLES = 20


def log_posterior(parameters: Tensor, _: object) -> tuple[Tensor, Tensor]:
    away = parameters.reshape(-1, 3) - MEAN
    return -EXAMPLES * ((away @ CURVATURE) * away).sum() / 2, torch.tensor([])


def peer_walk(config: SamplerConfig, start: Tensor, steps: int) -> Tensor:
    """Return the iterates (steps, C * D) of chains that begin at rest."""
    torch.manual_seed(3)
    eps, temperature = (config.lr / EXAMPLES) ** 0.5, config.temperature
    if config.name is Sampler.sgld:
        transform = sgld.build(log_posterior, lr=eps**2, temperature=temperature)
        state = transform.init(start.clone())
    else:
        alpha = config.friction / eps
        transform = sghmc.build(log_posterior, lr=eps, alpha=alpha, temperature=temperature)
        state = transform.init(start.clone(), momenta=0.0)
    iterates = []
    for _ in range(steps):
        state, _ = transform.update(state, None)
        iterates.append(state.params)
    return torch.stack(iterates)


def test_with_the_same_noise_sgld_is_that_of_posteriors() -> None:
    config, start = SamplerConfig(Sampler.sgld, lr=0.1, temperature=0.5), torch.zeros(6).double()
    _, iterates = walk(config, SamplingPlan(1, 50, 0), start, EXAMPLES, seed=3)
    torch.testing.assert_close(peer_walk(config, start, 50), torch.stack(iterates))


def test_with_the_same_noise_sghmc_is_that_of_posteriors_a_gradient_behind() -> None:
    # There weights move before momenta, here after: what is here w at a step is there w at the
    # next, and so the gradient there is one of the place before.
    config = SamplerConfig(Sampler.sghmc, lr=0.1, temperature=0.5, friction=0.3)
    start = torch.zeros(6, dtype=torch.float64)
    places = [start]

    def gradient_behind(place: Tensor) -> Tensor:
        places.append(place)
        return gradient_at(places[-2])

    plan = SamplingPlan(1, 50, 0)
    _, iterates = walk(config, plan, start, EXAMPLES, seed=3, gradient=gradient_behind)
    theirs = peer_walk(config, start, 51)
    torch.testing.assert_close(theirs[0], start)
    torch.testing.assert_close(theirs[1:], torch.stack(iterates))
