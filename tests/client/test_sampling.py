"""Which local steps make which sample, and what the samples recover."""

import numpy as np
import pytest
import torch
from torch import Tensor

from client.sampling import SamplingPlan, WeightSampler
from client.sampling import plan as make_plan
from common.config import Sampler, SamplerConfig

LAST = SamplerConfig(Sampler.last)


LANGEVIN = (Sampler.sgld, Sampler.sghmc)


def iasg(num_samples: int, burn_in: float, segment: int | None = None) -> SamplerConfig:
    return SamplerConfig(Sampler.iasg, num_samples, burn_in, segment)


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [
        # (samples, steps in each, burn-in)
        (iasg(8, 0.5), 16, SamplingPlan(8, 1, 8)),
        # What does not divide is burnt in: 37 - 18 = 19 = 8 * 2 + 3.
        (iasg(8, 0.5), 37, SamplingPlan(8, 2, 21)),
        (iasg(4, 0.0), 12, SamplingPlan(4, 3, 0)),
        (iasg(1, 0.0), 10, SamplingPlan(1, 10, 0)),
        # Burn-in gives way before samples do.
        (iasg(8, 0.9), 10, SamplingPlan(8, 1, 2)),
        # Fewer steps than samples, one step alone.
        (iasg(8, 0.5), 3, SamplingPlan(3, 1, 0)),
        (iasg(8, 0.9), 1, SamplingPlan(1, 1, 0)),
        (LAST, 57, SamplingPlan(1, 1, 56)),
        (SamplerConfig(Sampler.last, num_samples=8, burn_in=0.0), 5, SamplingPlan(1, 1, 4)),
        # Segments of a given length decide the burn-in.
        (iasg(4, 0.75, segment=5), 100, SamplingPlan(4, 5, 80)),
        # Where they do not fit they are shortened, before samples are given up.
        (iasg(4, 0.75, segment=5), 19, SamplingPlan(4, 4, 3)),
        (iasg(4, 0.75, segment=5), 3, SamplingPlan(3, 1, 0)),
    ],
)
def test_plan(config: SamplerConfig, steps: int, expected: SamplingPlan) -> None:
    assert make_plan(config, steps) == expected


def run(config: SamplerConfig, plan: SamplingPlan, iterates: Tensor) -> Tensor:
    """Sample from the iterates of an optimiser."""
    state = WeightSampler(config, plan, iterates[0], 1, 0)
    for iterate in iterates:
        assert not state.moves
        found = state.step(iterate if state.wants else None)
        assert found is None or found is iterate
    return state.collect()


@pytest.mark.parametrize(
    "plan", [SamplingPlan(4, 3, 2), SamplingPlan(1, 14, 0), SamplingPlan(14, 1, 0)]
)
def test_samples_are_the_means_of_their_segments(plan: SamplingPlan) -> None:
    iterates = np.random.default_rng(0).normal(size=(14, 5))
    samples = run(iasg(4, 0.0), plan, torch.from_numpy(iterates))
    expected = iterates[plan.burn_in :].reshape(plan.num_samples, plan.segment, 5).mean(axis=1)
    np.testing.assert_allclose(samples.numpy(), expected, rtol=1e-14)
    assert samples.dtype == torch.float64


def test_last_is_the_last_iterate_bit_for_bit() -> None:
    iterates = torch.randn(9, 4)
    assert torch.equal(run(LAST, make_plan(LAST, 9), iterates), iterates[-1:])


@pytest.mark.parametrize("name", [Sampler.iasg, *LANGEVIN])
def test_burn_in_wants_no_iterate_and_leaves_the_steps_to_the_optimiser(name: Sampler) -> None:
    parameters = torch.zeros(1)
    state = WeightSampler(SamplerConfig(name), SamplingPlan(2, 1, 3), parameters, 1, 0)
    for wanted in (False, False, False, True, True):
        assert (state.wants, state.moves) == (wanted, wanted and name in LANGEVIN)
        found = state.step(parameters if wanted else None, torch.ones(1))
        assert wanted or found is None


def test_collecting_too_early_raises() -> None:
    state = WeightSampler(SamplerConfig(), SamplingPlan(2, 2, 1), torch.zeros(3), 1, 0)
    for _ in range(4):
        state.step(torch.zeros(3), torch.zeros(3))
    with pytest.raises(RuntimeError, match="4 of 5"):
        state.collect()


def noisy_descent(mean: Tensor, curvature: Tensor, rate: float, steps: int) -> Tensor:
    """Return the iterates (steps, P) of SGD with unit gradient noise on a quadratic."""
    noise = torch.randn(steps, len(mean), generator=torch.Generator().manual_seed(0))
    iterates, current = [], torch.full_like(mean, 5.0)
    for draw in noise:
        current = current - rate * (curvature * (current - mean) + draw)
        iterates.append(current)
    return torch.stack(iterates)


def test_iasg_recovers_the_mean_and_the_directions_of_a_gaussian() -> None:
    # Averages over segments longer than the correlation time 1 / (rate curvature) have the
    # variance 1 / (curvature^2 segment), and their own mean is that of the target.
    mean, curvature = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, 2.0, 4.0])
    iterates = noisy_descent(mean, curvature, rate=0.2, steps=4000)
    config = iasg(40, 0.1)
    samples = run(config, make_plan(config, len(iterates)), iterates)
    error_of_the_mean = 1 / (curvature * 3600**0.5)
    assert ((samples.mean(dim=0) - mean).abs() < 4 * error_of_the_mean).all()
    expected_spread = 1 / (curvature * 90**0.5)
    torch.testing.assert_close(samples.std(dim=0), expected_spread, rtol=0.35, atol=0)
