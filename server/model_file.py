"""The model on disk: weights in safetensors, all else that rebuilds it in the metadata.

A checkpoint of `server.run.checkpoint` holds one too, besides what a run goes on from.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from common.config import FusionRule, ModelConfig
from common.errors import UserError, parsed_as, reason
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.seal import NotSealedError, SealError, read_sealed
from common.task import Task

FORMAT = "ha-fedformer-2"
CHECKPOINT = "ha-fedformer-checkpoint-2"

#: The part of a checkpoint that is the model's weights.
WEIGHTS = "model"

#: What rebuilds a model besides its weights, as plain values for JSON.
Header = Mapping[str, Any]


def to_header(spec: ModelSpec, fusion: Fusion) -> dict[str, Any]:
    """Return what rebuilds a model besides its weights; `from_header` undoes it."""
    return {"spec": asdict(spec), "fusion": fusion.to_dict()}


def from_header(header: Header) -> tuple[ModelSpec, Fusion]:
    """Rebuild from `to_header`; a header that is none raises one of several errors."""
    spec = _spec(header["spec"])
    return spec, _fusion(header["fusion"], spec)


def model_bytes(model: HAFedformer, fusion: Fusion) -> bytes:
    """Return the file's content."""
    header = to_header(model.spec, fusion)
    metadata = {"format": FORMAT} | {name: json.dumps(part) for name, part in header.items()}
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    content: bytes = save(weights, metadata)
    return content


def load_model(path: str | Path) -> tuple[HAFedformer, Fusion]:
    """Read a model, in evaluation mode on the CPU, and its fitted fusion rule.

    The file is one of `model_bytes`, or a checkpoint. Raises `UserError` if it is missing, damaged
    or neither.
    """
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(f"model file {path} {kind}")
    try:
        header, weights = _read(Path(path))
        spec, fusion = from_header(header)
        _check_weights(spec, weights)
        model = build_model(spec, seed=0)
        model.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged: {said}; expected a model or a checkpoint, copy it again"
        ) from error
    return model.eval(), fusion


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read the header and the weights of a file of either kind."""
    try:
        header, tensors, _ = read_sealed(path)
    except NotSealedError:
        return _read_plain(path)
    except SealError as error:
        raise UserError(f"{path} {error}; copy it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    if (found := header.get("format")) != CHECKPOINT:
        if str(found).startswith(CHECKPOINT[:-1]):
            raise UserError(
                f"{path} is a checkpoint of another version ({found}, and this release reads "
                f"{CHECKPOINT}); give its run's model.safetensors"
            )
        raise _not_a_model(path)
    prefix = f"{WEIGHTS}/"
    names = [name for name in tensors if name.startswith(prefix)]
    return header, {name.removeprefix(prefix): tensors[name] for name in names}


def _read_plain(path: Path) -> tuple[Header, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise _not_a_model(path)
    return {name: json.loads(metadata[name]) for name in ("spec", "fusion")}, load_file(path)


def _not_a_model(path: Path) -> UserError:
    return UserError(
        f"{path} is not a model of this project (format {FORMAT}, or {CHECKPOINT} of a checkpoint)"
    )


def _check_weights(spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Raise an error, mostly `ValueError`, unless these are weights of the spec's model.

    A model that a file only claims to hold takes no memory, and no more time than one it holds.
    """
    layers = len(spec.features) * spec.model.layers + spec.model.decoder_layers
    if layers > len(weights):
        raise ValueError(f"a model of {layers} layers, and {len(weights)} tensors")
    with torch.device("meta"):
        expected = build_model(spec, seed=0).state_dict()
    if other := sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"tensor {other[0]!r} is {'missing' if other[0] in expected else 'extra'}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"tensor {name!r} has shape {shapes}")
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name!r} holds a value that is not finite")


def _fusion(plain: Mapping[str, Any], spec: ModelSpec) -> Fusion:
    fusion = parsed_as(Fusion, asdict(Fusion.from_dict(plain)))
    json.dumps(asdict(fusion), allow_nan=False)  # a ValueError, if any number is not finite
    names, opinions = spec.features.keys(), fusion.joint.opinions.keys()
    expected = 2 if spec.task is Task.regression else spec.outputs
    if fusion.task is not spec.task:
        raise ValueError(f"a model of {spec.task}, and fusion of {fusion.task}")
    if len(fusion.prior) != expected:
        raise ValueError(f"the prior has {len(fusion.prior)} numbers, expected {expected}")
    variances = [expert.unexplained for expert in fusion.experts.values()]
    variances += fusion.prior[1:] if spec.task is Task.regression else ()
    if min(variances, default=1.0) <= 0:
        raise ValueError(f"a variance is {min(variances)}, expected more than 0")
    complete = fusion.rule is not FusionRule.calibrated or opinions == names
    if fusion.experts.keys() != names or not opinions <= names or not complete:
        raise ValueError("fusion is of other modalities than the model")
    _ = fusion.weights  # of calibrated: correlations that are none are a LinAlgError, a ValueError
    return fusion


def _spec(plain: dict[str, Any]) -> ModelSpec:
    features = {name: tuple(shape) for name, shape in plain["features"].items()}
    task, model = Task(plain["task"]), ModelConfig(**plain["model"])
    # Models of version 0.1 had no names, and took all numbers for sentiment.
    names = tuple(map(str, plain.get("label_names", ())))
    sentiment = bool(plain.get("sentiment", task is Task.regression))
    # Older models have no linear experts.
    linear = tuple(map(str, plain.get("linear", ())))
    reading = plain.get("reading")
    spec = ModelSpec(features, plain["outputs"], task, model, names, sentiment, linear, reading)
    spec = parsed_as(ModelSpec, asdict(spec))
    width, heads = spec.model.width, spec.model.heads
    if min(width, heads) < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")
    return spec
