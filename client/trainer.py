"""Local training on one client, and evaluation of what it received.

Notation: B items, O outputs, P parameters, S samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client import sampling
from common.config import ClientConfig, Optimizer, SamplerConfig
from common.data.batching import SequenceItems, batches
from common.data.federation import ClientData
from common.errors import UserError
from common.model.ha_fedformer import HAFedformer
from common.model.losses import task_loss


@dataclass(frozen=True)
class Trained:
    """What local training leaves.

    Attributes
    ----------
    samples
        Parameter name to its samples (S, *shape), on the CPU.
    loss
        Mean training loss over the local steps.
    """

    samples: dict[str, Tensor]
    loss: float


def choose_device(setting: str) -> torch.device:
    """Return the device of ``client.device``; ``auto`` is CUDA where there is one.

    Raises
    ------
    UserError
        If torch knows no such device, or this machine has none.
    """
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"client.device={setting} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return device


def train(
    model: HAFedformer, data: ClientData, config: ClientConfig, sampler: SamplerConfig, seed: int
) -> Trained:
    """Train in place for ``config.local_epochs`` and sample along the way.

    Parameters
    ----------
    model
        A model of the client's one modality, on the device to train on.
    data
        The client's items.
    config, sampler
        Local training and sampling.
    seed
        Decides the order of the items and the dropout. Torch's global generators are seeded with
        it, since dropout has no other.

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.
    """
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    items = SequenceItems(data.sequences, data.labels, data.train)
    optimizer = _optimizer(model, config)
    steps_per_epoch = -(-len(items) // config.batch_size)
    steps = sampling.plan(sampler, config.local_epochs * steps_per_epoch)
    state = sampling.init(steps, nn.utils.parameters_to_vector(model.parameters()).detach())
    losses = []
    model.train()
    for epoch in range(config.local_epochs):
        for padded, labels in batches(
            items, config.batch_size, seed=seed + epoch, num_workers=config.num_workers
        ):
            outputs = model(data.modality, padded.to(device))
            loss = task_loss(outputs, labels.to(device), model.spec.task)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(loss.detach())
            state = sampling.step(state, _iterate(model) if sampling.wanted(state) else None)
    mean_loss = torch.stack(losses).mean().item()
    if mean_loss != mean_loss or mean_loss == float("inf"):
        raise FloatingPointError("the training loss is not finite; lower client.lr")
    return Trained(_by_name(model, sampling.collect(state).cpu()), mean_loss)


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


def _optimizer(model: nn.Module, config: ClientConfig) -> torch.optim.Optimizer:
    parameters, lr, decay = model.parameters(), config.lr, config.weight_decay
    match config.optimizer:
        case Optimizer.adamw:
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
        case Optimizer.adam:
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)
        case Optimizer.sgd:
            return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, fused=True)


def _iterate(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _by_name(model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
    """Cut samples (S, P) into those of each parameter."""
    named = list(model.named_parameters())
    pieces = torch.split(samples, [parameter.numel() for _, parameter in named], dim=1)
    return {
        name: piece.reshape(len(samples), *parameter.shape)
        for (name, parameter), piece in zip(named, pieces, strict=True)
    }
