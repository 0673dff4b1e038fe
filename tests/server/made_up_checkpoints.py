"""Checkpoints that no run left."""

from pathlib import Path
from typing import Any

import torch
from made_up_models import fusion_for, model_for
from torch import Tensor

from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from server.aggregation.server_optimizer import OptimizerState
from server.roster.labels import PooledLabels
from server.run.checkpoint import Checkpoint, Checkpoints
from server.run.folder import CHECKPOINTS
from server.strategy import StrategyState


def checkpoint(number: int, size: int = 3, moments: bool = True, **changes: Any) -> Checkpoint:
    """Make the checkpoint of a round; equal numbers give equal ones, and others differ."""
    random = torch.Generator().manual_seed(number)

    def some(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=random, dtype=dtype)

    model = {
        "encoders.audio.weight": some(size, 2, dtype=torch.float32),
        "encoders.audio.empty": some(0, 4, dtype=torch.float32),
        "decoder.bias": some(size),
        "decoder.scale": some(dtype=torch.float32),
    }
    names = ("encoders.audio.weight", "decoder.bias") if moments else ()
    parts: dict[str, Any] = {
        "round": number,
        "config": {"rounds": 9, "clients": {"default": None}, "dataset": {"tabular": ["audio"]}},
        "items": {"train": 70, "validation": 10, "test": 20},
        "model": model,
        "spec": model_for().spec,
        "fusion": fusion_for(),
        "strategy": StrategyState(
            OptimizerState(
                {name: some(*model[name].shape) for name in names},
                {name: some(*model[name].shape) ** 2 for name in names},
            ),
            {"audio": some(6), "vision": some(6)},
            {7: 2, 2**64 - 1: number},
            {"decoder": 1 / 3, "encoder/audio": 1e-9 * number},
        ),
        "labels": PooledLabels(some(2), 1 / 3 + number),
        "seconds": 12.345,
    }
    return Checkpoint(**(parts | changes))


def write_checkpoint(run: Path, number: int, model: HAFedformer, fusion: Fusion) -> Path:
    """Leave the checkpoint of a model in a run folder; return its file."""
    kept, parts = Checkpoints(run / CHECKPOINTS), {"model": model.state_dict(), "spec": model.spec}
    run.mkdir(exist_ok=True)
    kept.save(checkpoint(number, **parts, fusion=fusion))
    return kept.path(number)
