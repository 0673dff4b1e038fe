"""The model on disk: weights in safetensors, all else that rebuilds it in the metadata."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from common.config import ModelConfig
from common.errors import UserError
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.task import Task

FORMAT = "ha-fedformer-1"


def model_bytes(model: HAFedformer, fusion: Fusion) -> bytes:
    """Return the file's content."""
    metadata = {
        "format": FORMAT,
        "spec": json.dumps(asdict(model.spec)),
        "fusion": json.dumps(fusion.to_dict()),
    }
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    content: bytes = save(weights, metadata)
    return content


def load_model(path: str | Path) -> tuple[HAFedformer, Fusion]:
    """Read a model, in evaluation mode on the CPU, and its fitted fusion rule.

    Raises `UserError` if the file is missing or is not such a model.
    """
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(f"model file {path} {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is not a model of this project (format {FORMAT})")
        model = build_model(_spec(json.loads(metadata["spec"])), seed=0)
        model.load_state_dict(load_file(path))
        fusion = Fusion.from_dict(json.loads(metadata["fusion"]))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    return model.eval(), fusion


def _spec(plain: dict[str, Any]) -> ModelSpec:
    features = {name: tuple(shape) for name, shape in plain["features"].items()}
    # Models of version 0.1 had no names.
    names = tuple(map(str, plain.get("label_names", ())))
    task, model = Task(plain["task"]), ModelConfig(**plain["model"])
    return ModelSpec(features, plain["outputs"], task, model, names)
