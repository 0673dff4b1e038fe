"""Local training on one client, and evaluation of what it received.

Notation: B items, O outputs, P parameters, S samples.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.input_moments import InputMoments
from client.objective import Objective
from client.sampling import WeightSampler, plan
from common.config import ClientConfig, SamplerConfig
from common.data.batching import SequenceItems, batches
from common.data.federation import ClientData
from common.model.ha_fedformer import HAFedformer
from common.training import make_optimizer

#: Items in a batch over which moments are measured.
_MEASURED_AT_ONCE = 256

#: Steps of a client's items over which they are measured, about, and the fewest items.
MEASURED_STEPS, MEASURED_ITEMS = 4096, 32


@dataclass(frozen=True)
class Trained:
    """The result of local training."""

    samples: dict[str, Tensor]  # by parameter name, (S, *shape), on the CPU
    loss: float  # mean over the local steps
    steps: int


@dataclass(frozen=True)
class RoundOptions:
    """What a round changes in local training."""

    objective: Objective | None = None  # the loss; None for the task's
    lr_scale: float = 1.0  # factor of the local rates
    # mu of FedProx (Li et al. 2020): mu/2 ||w - received||^2 is added to the loss.
    proximal: float = 0.0


def train(
    model: HAFedformer,
    data: ClientData,
    config: ClientConfig,
    sampler: SamplerConfig,
    seed: int,
    options: RoundOptions | None = None,
) -> Trained:
    """Train in place for ``config.local_epochs`` and sample along the way.

    The seed is that of the items' order, the sampler's noise and dropout, for which torch's global
    generators are seeded.

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.
    """
    torch.manual_seed(seed)
    options = options or RoundOptions()
    objective = options.objective or Objective(data.task)
    device = next(model.parameters()).device
    items = SequenceItems(data.sequences, data.labels, data.train)
    steps = _Steps(model, config, sampler, options, len(items), seed)
    losses = []
    model.train()
    for epoch in range(config.local_epochs):
        for padded, labels in batches(
            items, config.batch_size, seed=seed + epoch, num_workers=config.num_workers
        ):
            loss = objective(model(data.modality, padded.to(device)), labels.to(device))
            model.zero_grad()
            torch.autograd.backward(loss)
            steps.make()
            losses.append(loss.detach())
    mean_loss = torch.stack(losses).mean().item()
    if not math.isfinite(mean_loss):
        raise FloatingPointError("the training loss is not finite; lower client.lr")
    samples = steps.sampler.collect().cpu()
    return Trained(_by_name(model, samples), mean_loss, len(losses))


class _Steps:
    """Local steps, made by the optimiser or by the sampler."""

    def __init__(
        self,
        model: nn.Module,
        config: ClientConfig,
        sampler: SamplerConfig,
        options: RoundOptions,
        examples: int,
        seed: int,
    ) -> None:
        self.parameters = list(model.parameters())
        self.optimizer = make_optimizer(self.parameters, config, options.lr_scale)
        self.max_grad_norm = config.max_grad_norm
        self.proximal = options.proximal
        self.received = [parameter.detach().clone() for parameter in self.parameters]
        count = config.local_epochs * -(-examples // config.batch_size)
        scaled = replace(sampler, lr=sampler.lr * options.lr_scale)
        self.sampler = WeightSampler(scaled, plan(sampler, count), self._vector(), examples, seed)

    def make(self) -> None:
        """Make one step with the gradients at hand; the sampler's steps are not clipped."""
        if self.sampler.moves:
            self._pull()
            gradient = torch.cat([_gradient(each).flatten() for each in self.parameters])
            moved = self.sampler.step(self._vector(), gradient)
            assert moved is not None
            nn.utils.vector_to_parameters(moved, self.parameters)
            return
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self._pull()
        self.optimizer.step()
        self.sampler.step(self._vector() if self.sampler.wants else None)

    def _pull(self) -> None:
        """Add the gradient of the proximal term."""
        if self.proximal > 0:
            for parameter, received in zip(self.parameters, self.received, strict=True):
                _gradient(parameter).add_(parameter.detach() - received, alpha=self.proximal)

    def _vector(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.parameters).detach()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.inference_mode()
def validation_outputs(model: HAFedformer, data: ClientData, batch_size: int) -> Tensor:
    """Return the outputs (B, O) on the client's validation items; B may be 0."""
    model.eval()
    device = next(model.parameters()).device
    if len(data.validation) == 0:
        return torch.empty(0, model.spec.outputs)
    items = SequenceItems(data.sequences, data.labels, data.validation)
    outputs = [
        model(data.modality, padded.to(device)).cpu() for padded, _ in batches(items, batch_size)
    ]
    return torch.cat(outputs)


def read_moments(model: HAFedformer, data: ClientData, decoder: bool = True) -> dict[str, Tensor]:
    """Return the moments of `client.input_moments` over the client's train items.

    Those of the decoder's maps are left out unless they are asked for. Of many items, over as many
    as have `MEASURED_STEPS`, evenly spaced.
    """
    device = next(model.parameters()).device
    moments = InputMoments(model, decoder)
    steps = int(data.sequences.lengths[data.train].sum())
    share = MEASURED_STEPS / max(steps, 1)
    count = min(len(data.train), max(round(share * len(data.train)), MEASURED_ITEMS))
    places = np.linspace(0, len(data.train) - 1, count).round().astype(int)
    items = SequenceItems(data.sequences, data.labels, data.train[places])
    for padded, _ in batches(items, _MEASURED_AT_ONCE):
        moments.add(data.modality, padded.to(device))
    return moments.mean()


def _by_name(model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
    """Split samples (S, P) by parameter."""
    named = list(model.named_parameters())
    pieces = torch.split(samples, [parameter.numel() for _, parameter in named], dim=1)
    return {
        name: piece.reshape(len(samples), *parameter.shape)
        for (name, parameter), piece in zip(named, pieces, strict=True)
    }
