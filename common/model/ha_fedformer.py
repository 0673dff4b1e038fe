"""HA-Fedformer: an encoder for each modality, one decoder, and the loss of each task.

A modality may have a linear expert too (`common.model.linear`): its outputs are added to the
network's, which so learns the remainder.

Source: arXiv 2303.15486, section 3. A client builds the same model with its one modality, so it
holds its own encoder and the decoder and nothing else.

Notation: B items, T steps, D feature width, d model width, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.batching import Padded
from common.data.moments import FeatureMoments
from common.data.source import Reading
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
    label_names: tuple[str, ...] = ()  # of classes or labels; () for classes from 0
    sentiment: bool = False  # whether the labels are; see `common.metrics.is_sentiment`
    linear: tuple[str, ...] = ()  # the modalities that have a linear expert
    reading: Reading | None = None  # how its data were read; None in models of before


class Decoder(nn.Module):
    """An LSTM, a residual block and a linear head, which all modalities share.

    There is 1 output for regression, else the number of classes or labels.
    """

    def __init__(self, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.lstm = nn.LSTM(width, width, config.decoder_layers, batch_first=True)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, encodings: Tensor, lengths: Tensor) -> Tensor:
        """Decode right-padded encodings (B, T, d) to (B, O) numbers, or logits.

        Reads the last of each item's (B,) real steps, at least the first. The LSTM is causal, so
        padding cannot reach it.
        """
        states, _ = self.lstm(encodings)
        items = torch.arange(states.shape[0], device=states.device)
        last = states[items, lengths.clamp(min=1) - 1]
        decoded: Tensor = self.head(last + self.contract(F.relu(self.expand(last))))
        return decoded


class HAFedformer(nn.Module):
    """The model; a client trains one with its single modality."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        dropout = spec.model.attention_dropout
        self.encoders = nn.ModuleDict(
            {
                name: Encoder(
                    shape,
                    spec.model,
                    dropout.get(name, dropout.get("default", 0.0)),
                    spec.outputs if name in spec.linear else 0,
                )
                for name, shape in spec.features.items()
            }
        )
        self.decoder = Decoder(spec.outputs, spec.model)

    def encode(self, modality: str, padded: Padded) -> Tensor:
        """Return the encodings (B, T, d) of one modality."""
        return self.encoders[modality](*padded)  # type: ignore[no-any-return]

    def forward(self, modality: str, padded: Padded) -> Tensor:
        """Return the outputs (B, O) from one modality alone."""
        outputs: Tensor = self.decoder(self.encode(modality, padded), padded.lengths)
        return outputs + self.linear_outputs(modality, padded)

    def linear_outputs(self, modality: str, padded: Padded) -> Tensor:
        """Return the outputs (B, O) of a modality's linear expert alone; 0 where it has none."""
        if modality not in self.spec.linear:
            # Not `len`, which an export would take for a constant.
            return padded.values.new_zeros(padded.lengths.shape[0], self.spec.outputs)
        return self.encoder(modality).linear_outputs(*padded)

    def encoder(self, modality: str) -> Encoder:
        """Return the encoder of a modality."""
        encoder = self.encoders[modality]
        assert isinstance(encoder, Encoder)
        return encoder


def build_model(spec: ModelSpec, seed: int) -> HAFedformer:
    """Build a model with weights drawn from `seed`, leaving torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HAFedformer(spec)


def task_loss(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the mean loss of outputs (B, O) on labels (B,), or (B, O) of 0/1 for several.

    Numbers take the absolute error, classes the cross-entropy, several labels the binary
    cross-entropy of each.
    """
    match task:
        case Task.regression:
            return F.l1_loss(outputs[:, 0], labels)
        case Task.classification:
            return F.cross_entropy(outputs, labels)
        case Task.multilabel:
            return F.binary_cross_entropy_with_logits(outputs, labels)


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
    standardise = model.encoder(modality).standardise
    found, expected = moments.mean.shape, tuple(standardise.mean.shape)
    if found != expected:
        raise ValueError(f"{modality}: moments of shape {found}, expected {expected}")
    for buffer, array in zip(
        (standardise.mean, standardise.scale), standardisation(moments), strict=True
    ):
        buffer.copy_(array)


def in_units(encoder: Mapping[str, Tensor], moments: FeatureMoments) -> dict[str, Tensor]:
    """Return an encoder's arrays with other statistics of its features."""
    mean, scale = standardisation(moments)
    return {**encoder, "standardise.mean": mean, "standardise.scale": scale}


def standardisation(moments: FeatureMoments) -> tuple[Tensor, Tensor]:
    """Return the mean that features are centred with and the factor after that, float32.

    The factor of a constant feature is 0.
    """
    std = np.where(moments.constant, 1.0, moments.std)
    scale = np.where(moments.constant, 0.0, 1.0 / std)
    return torch.from_numpy(moments.mean).float(), torch.from_numpy(scale).float()
