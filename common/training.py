"""What clients and baselines train with: the device, the optimiser, and one thread."""

from collections.abc import Iterable

import torch
from torch import nn

from common.config import ClientConfig, Optimizer
from common.errors import UserError


def choose_device(name: str, setting: str = "client.device") -> torch.device:
    """Return the device that a setting names; ``auto`` is CUDA where there is one.

    Raises `UserError` if torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # "meta" holds nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{setting}={name} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return device


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: ClientConfig, lr_scale: float = 1.0
) -> torch.optim.Optimizer:
    """Build the optimiser that ``client.*`` names."""
    lr, decay = config.lr * lr_scale, config.weight_decay
    match config.optimizer:
        case Optimizer.adamw:
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
        case Optimizer.adam:
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)
        case Optimizer.sgd:
            return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, fused=True)


def use_one_thread() -> None:
    """Use one core for each operation: clients need the others, and sums keep their order."""
    torch.set_num_threads(1)
