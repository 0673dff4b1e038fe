"""Posterior samples of a client's weights, taken along its local training.

Until burn-in ends the local optimiser moves. After it, by sampler:

- ``iasg``, iterate-averaged stochastic gradient (Mandt, Hoffman and Blei 2017; FedPA, arXiv
  2010.05273): the optimiser goes on, and each sample is the mean of one segment of its iterates;
- ``sgld``, Langevin dynamics (Welling and Teh 2011): w <- w - lr g + N(0, 2 lr T / n);
- ``sghmc``, Hamiltonian dynamics with friction (Chen, Fox and Guestrin 2014):
  v <- (1 - a) v - lr g + N(0, 2 a lr T / n), w <- w + v;

where g is the gradient of the mean loss, so that n times the loss over the temperature T is the
potential, n examples, and a the friction. A sample of the last two is the last iterate of its
segment.

Notation: S samples, P parameters in one vector, T the temperature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Sampler, SamplerConfig

_LANGEVIN = (Sampler.sgld, Sampler.sghmc)


@dataclass(frozen=True)
class SamplingPlan:
    """How local steps are divided into samples."""

    num_samples: int
    segment: int  # steps of one sample
    burn_in: int  # steps before the first segment


def plan(config: SamplerConfig, steps: int) -> SamplingPlan:
    """Fit the samples into the local steps of a round.

    The last segment always ends at the last step; ``last`` has one sample, the last iterate. A
    client with too few steps shortens segments of a given length, then gives up burn-in, then
    samples, so that every sample has at least one step. A given segment length decides the burn-in.
    """
    if config.name is Sampler.last:
        return SamplingPlan(1, 1, steps - 1)
    num_samples = min(config.num_samples, steps)
    after_burn_in = max(steps - int(config.burn_in * steps), num_samples)
    segment = after_burn_in // num_samples
    if config.segment is not None:
        segment = min(config.segment, steps // num_samples)
    return SamplingPlan(num_samples, segment, steps - num_samples * segment)


class WeightSampler:
    """Takes samples while local steps are made, of P parameters and n examples."""

    def __init__(
        self,
        config: SamplerConfig,
        sampling_plan: SamplingPlan,
        parameters: Tensor,
        examples: int,
        seed: int,
    ) -> None:
        self.plan = sampling_plan
        self._config = config
        self._samples = parameters.new_zeros(sampling_plan.num_samples, len(parameters))
        self._velocity = torch.zeros_like(parameters)
        # Deviation of the noise divided by the root of twice the rate.
        self._noise = (config.temperature / examples) ** 0.5
        self._generator = torch.Generator(parameters.device).manual_seed(seed)
        self._taken = 0

    @property
    def wants(self) -> bool:
        """Whether the next iterate belongs to a sample, so that burn-in costs nothing."""
        return self._taken >= self.plan.burn_in

    @property
    def moves(self) -> bool:
        """Whether the sampler makes the next local step itself, instead of the optimiser."""
        return self.wants and self._config.name in _LANGEVIN

    def step(self, parameters: Tensor | None, gradient: Tensor | None = None) -> Tensor | None:
        """Account for one local step, and make it where the sampler `moves`.

        There `parameters` (P,) are those before the step, and `gradient` (P,) is of the mean loss
        at them. Otherwise they are those after the optimiser's step, or None during burn-in.
        Returns the parameters after the step.
        """
        if self.wants:
            assert parameters is not None
            segment, position = divmod(self._taken - self.plan.burn_in, self.plan.segment)
            if self.moves:
                assert gradient is not None
                parameters = self._move(parameters, gradient)
                if position == self.plan.segment - 1:
                    self._samples[segment] = parameters
            else:
                self._samples[segment] += parameters / self.plan.segment
        self._taken += 1
        return parameters

    def _move(self, parameters: Tensor, gradient: Tensor) -> Tensor:
        lr, friction = self._config.lr, self._config.friction
        drawn = torch.randn(
            parameters.shape,
            generator=self._generator,
            dtype=parameters.dtype,
            device=parameters.device,
        )
        if self._config.name is Sampler.sgld:
            moved: Tensor = parameters - lr * gradient + (2 * lr) ** 0.5 * self._noise * drawn
            return moved
        noise = (2 * friction * lr) ** 0.5 * self._noise * drawn
        self._velocity = (1 - friction) * self._velocity - lr * gradient + noise
        return parameters + self._velocity

    def collect(self) -> Tensor:
        """Return the samples (S, P); `RuntimeError` if local steps are still missing."""
        expected = self.plan.burn_in + self.plan.num_samples * self.plan.segment
        if self._taken != expected:
            raise RuntimeError(f"the sampler saw {self._taken} of {expected} steps")
        return self._samples
