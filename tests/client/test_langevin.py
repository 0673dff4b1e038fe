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
from scipy.stats import ks_2samp
from torch import Tensor

from client.sampling import SamplingPlan, WeightSampler
from common.config import Sampler, SamplerConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of tensordict, about the classes of posteriors
    from posteriors.sgmcmc import sghmc, sgld
    from posteriors.types import Transform

CHAINS = 4000
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.2, 1.0]], dtype=torch.float64)
CURVATURE = ROOT @ ROOT.T  # A

SGLD = SamplerConfig(Sampler.sgld, lr=0.03)
SGHMC = SamplerConfig(Sampler.sghmc, lr=0.002, friction=0.1)
both = pytest.mark.parametrize("config", [SGLD, SGHMC], ids=["sgld", "sghmc"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gradient_at(parameters: Tensor) -> Tensor:
    """Return the gradient of the mean loss, (C * D,), at every chain's place."""
    return ((parameters.reshape(-1, 3) - MEAN) @ CURVATURE).flatten()


def walk(
    config: SamplerConfig,
    plan: SamplingPlan,
    start: Tensor,
    examples: int = 1,
    seed: int = 0,
    gradient: Callable[[Tensor], Tensor] = gradient_at,
) -> tuple[WeightSampler, Tensor]:
    """Return the state at the end, and every iterate (steps, C * D)."""
    state = WeightSampler(config, plan, start, examples, seed)
    iterates = []
    for _ in range(plan.num_samples * plan.segment):
        assert state.moves
        moved = state.step(start, gradient(start))
        assert moved is not None
        start = moved
        iterates.append(start)
    return state, torch.stack(iterates)


def draws(config: SamplerConfig, examples: int, segment: int = 600, seed: int = 0) -> Tensor:
    """Return samples (S * C, D) of chains that begin at 0; those of a chain are far apart."""
    plan = SamplingPlan(2, segment, 0)
    state = WeightSampler(config, plan, torch.zeros(CHAINS * 3).double(), examples, seed)
    place = torch.zeros(CHAINS * 3, dtype=torch.float64)
    for _ in range(2 * segment):
        moved = state.step(place, gradient_at(place))
        assert moved is not None
        place = moved
    return state.collect().reshape(-1, 3)


# --- Steps by hand ----------------------------------------------------------------------------


def noise_of(seed: int, *shape: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape[1:], generator=source) for _ in range(shape[0])])


def test_a_step_of_sgld_is_the_formula() -> None:
    config = SamplerConfig(Sampler.sgld, lr=0.1, temperature=3.0)
    start, gradient = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-4.0, 0.0, 5.0])
    state = WeightSampler(config, SamplingPlan(1, 1, 0), start, 50, seed=9)
    moved = state.step(start, gradient)
    # The deviation is (2 lr T / n)^(1/2) = (0.6 / 50)^(1/2).
    expected = torch.tensor([1.4, 2.0, 2.5]) + 0.012**0.5 * noise_of(9, 1, 3)[0]
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(state.collect(), expected[None])


def test_two_steps_of_sghmc_are_the_formula() -> None:
    config = SamplerConfig(Sampler.sghmc, lr=0.1, temperature=3.0, friction=0.25)
    start, gradient = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-4.0, 0.0, 5.0])
    state, iterates = walk(config, SamplingPlan(2, 1, 0), start, 50, 9, lambda _: gradient)
    # The deviation is (2 a lr T / n)^(1/2) = (0.15 / 50)^(1/2).
    first, second = 0.003**0.5 * noise_of(9, 2, 3)
    velocity = -0.1 * gradient + first
    torch.testing.assert_close(iterates[0], start + velocity)
    velocity = 0.75 * velocity - 0.1 * gradient + second
    torch.testing.assert_close(iterates[1], iterates[0] + velocity)
    torch.testing.assert_close(state.collect(), iterates)


@pytest.mark.parametrize(("name", "momentum"), [(Sampler.sgld, 0.0), (Sampler.sghmc, 0.7)])
def test_without_temperature_it_is_gradient_descent(name: Sampler, momentum: float) -> None:
    config = SamplerConfig(name, lr=0.2, temperature=0.0, friction=0.3)
    parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    _, iterates = walk(config, SamplingPlan(1, 20, 0), parameter.detach().clone())
    descent = torch.optim.SGD([parameter], lr=0.2, momentum=momentum)
    for iterate in iterates:
        parameter.grad = gradient_at(parameter.detach())
        descent.step()
        torch.testing.assert_close(iterate, parameter.detach())


@both
def test_the_seed_decides_the_samples(config: SamplerConfig) -> None:
    def samples(seed: int) -> Tensor:
        return walk(config, SamplingPlan(3, 4, 0), torch.zeros(6), 7, seed)[0].collect()

    first = samples(1)
    torch.manual_seed(99)
    assert torch.equal(samples(1), first)
    assert not torch.isclose(samples(2), first).any()


# --- The Gaussian -----------------------------------------------------------------------------


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


# --- A peer: posteriors -----------------------------------------------------------------------

# Both set log p = -n loss. A step eps of sgld there is lr / n. For sghmc, where momenta m have unit
# variance, v = eps m, a = eps alpha and lr = eps^2 n.
EXAMPLES = 20


def log_posterior(parameters: Tensor, _: object) -> tuple[Tensor, Tensor]:
    away = parameters.reshape(-1, 3) - MEAN
    return -EXAMPLES * ((away @ CURVATURE) * away).sum() / 2, torch.tensor([])


def peer(config: SamplerConfig) -> Transform:
    if config.name is Sampler.sgld:
        return sgld.build(log_posterior, lr=config.lr / EXAMPLES, temperature=config.temperature)
    eps = (config.lr / EXAMPLES) ** 0.5
    return sghmc.build(
        log_posterior, lr=eps, alpha=config.friction / eps, temperature=config.temperature
    )


def peer_walk(config: SamplerConfig, start: Tensor, steps: int, seed: int) -> Tensor:
    """Return the iterates (steps, C * D) of chains that begin at rest."""
    torch.manual_seed(seed)
    transform = peer(config)
    momenta = {} if config.name is Sampler.sgld else {"momenta": 0.0}
    state = transform.init(start.clone(), **momenta)
    iterates = []
    for _ in range(steps):
        state, _ = transform.update(state, None)
        iterates.append(state.params)
    return torch.stack(iterates)


def test_with_the_same_noise_sgld_is_that_of_posteriors() -> None:
    config, start = SamplerConfig(Sampler.sgld, lr=0.1, temperature=0.5), torch.zeros(6).double()
    _, iterates = walk(config, SamplingPlan(1, 50, 0), start, EXAMPLES, seed=3)
    torch.testing.assert_close(peer_walk(config, start, 50, seed=3), iterates)


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
    theirs = peer_walk(config, start, 51, seed=3)
    torch.testing.assert_close(theirs[0], start)
    torch.testing.assert_close(theirs[1:], iterates)


@both
def test_samples_are_distributed_as_those_of_posteriors(config: SamplerConfig) -> None:
    steps = 600
    theirs = peer_walk(config, torch.zeros(CHAINS * 3).double(), steps, seed=1)[-1].reshape(-1, 3)
    ours = draws(config, EXAMPLES, seed=2)[-CHAINS:]
    error_of_the_mean = (2 / CHAINS * theirs.var(dim=0)) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * error_of_the_mean).all()
    for one, two in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(one, two).pvalue > 0.01
    broader = ks_2samp(1.2 * (ours[:, 0] - MEAN[0]), theirs[:, 0] - MEAN[0])
    assert broader.pvalue < 1e-3  # so many draws would tell
