"""HA-Fedformer: an encoder for each modality and one decoder.

Source: arXiv 2303.15486. A client builds the same model with its one modality, so it holds its own
encoder and the decoder and nothing else.

Notation: B items, T steps, D feature width, d model width, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.batching import Padded
from common.data.moments import FeatureMoments
from common.model.decoder import Decoder
from common.model.encoder import Encoder
from common.task import Task

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build the model."""

    # Modality to the shape of its features' statistics: (D,), or (steps, D) where tabular.
    features: Mapping[str, Sequence[int]]
    outputs: int
    task: Task
    model: ModelConfig = field(default_factory=ModelConfig)
    label_names: tuple[str, ...] = ()  # of the outputs, if known; only for display


class HAFedformer(nn.Module):
    """The model; a client trains one with its single modality."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        dropout = spec.model.attention_dropout
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(shape, spec.model, dropout.get(name, dropout.get("default", 0.0)))
                for name, shape in spec.features.items()
            }
        )
        self.decoder = Decoder(spec.outputs, spec.model)

    def encode(self, modality: str, padded: Padded) -> Tensor:
        """Return the encodings (B, T, d) of one modality."""
        encodings: Tensor = self.encoders[modality](*padded)
        return encodings

    def forward(self, modality: str, padded: Padded) -> Tensor:
        """Return the outputs (B, O) from one modality alone."""
        outputs: Tensor = self.decoder(self.encode(modality, padded), padded.lengths)
        return outputs


def build_model(spec: ModelSpec, seed: int) -> HAFedformer:
    """Build a model with weights drawn from `seed`, leaving torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HAFedformer(spec)


# The only place that knows which arrays belong to encoders and which to the decoder --------------


@dataclass(frozen=True)
class ModelArrays:
    """A model's arrays, taken apart: encoder arrays by modality, then the decoder's.

    The same names, without the prefix, whatever the modality: so encoders can be compared.
    """

    encoders: Mapping[str, Arrays]
    decoder: Arrays


def split_arrays(arrays: Mapping[str, Tensor]) -> ModelArrays:
    """Take a state dict apart into encoders and decoder; `KeyError` if a name is in neither."""
    encoders: dict[str, Arrays] = {}
    decoder: Arrays = {}
    for name, array in arrays.items():
        match name.split(".", 2):
            case ["encoders", modality, rest]:
                encoders.setdefault(modality, {})[rest] = array
            case ["decoder", first, *others]:
                decoder[".".join([first, *others])] = array
            case _:
                raise KeyError(f"{name} belongs neither to an encoder nor to the decoder")
    return ModelArrays(encoders, decoder)


def join_arrays(parts: ModelArrays) -> Arrays:
    """Put encoders and decoder together into a state dict; undoes `split_arrays`."""
    joined = {
        f"encoders.{modality}.{name}": array
        for modality, arrays in parts.encoders.items()
        for name, array in arrays.items()
    }
    return joined | {f"decoder.{name}": array for name, array in parts.decoder.items()}


def trained_names(modules: nn.Module) -> list[str]:
    """Return the names of what is trained and merged, in order: parameters, not buffers."""
    return [name for name, _ in modules.named_parameters()]


def set_standardisation(model: HAFedformer, modality: str, moments: FeatureMoments) -> None:
    """Give an encoder its statistics; `ValueError` if they are not of the encoder's features."""
    encoder = model.encoders[modality]
    assert isinstance(encoder, Encoder)
    found, expected = moments.mean.shape, tuple(encoder.standardise.mean.shape)
    if found != expected:
        raise ValueError(f"{modality}: moments of shape {found}, expected {expected}")
    std = np.where(moments.constant, 1.0, moments.std)
    scale = np.where(moments.constant, 0.0, 1.0 / std)
    encoder.standardise.mean.copy_(torch.from_numpy(moments.mean))
    encoder.standardise.scale.copy_(torch.from_numpy(scale))
