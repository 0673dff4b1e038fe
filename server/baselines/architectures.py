"""Models that take all modalities of an item at once: early fusion and cross-modal attention.

Cross-modal attention is MulT: every modality attends to every other, before its own steps attend to
each other (Tsai et al. 2019, arXiv 1906.00295, section 3). Unlike the paper, embeddings are normed
(`common.model.encoder.Encoder` without layers), the sizes are those of HA-Fedformer, and no
attention is causal, since steps of different modalities are not at the same times.

Notation: B items, M modalities, T_m steps of modality m, D_m feature width of modality m, d model
width, h heads, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Config, ModelConfig
from common.data.batching import Padded
from common.errors import UserError
from common.model.encoder import Attention, Encoder, EncoderLayer, Standardise, valid_steps
from common.model.fusion import fuse_encodings
from common.model.ha_fedformer import Decoder, HAFedformer
from common.seeding import derive_seed


class EarlyFusion(nn.Module):
    """One encoder and the decoder of HA-Fedformer, over features aligned at the last step.

    The attention dropout is the default one.
    """

    def __init__(
        self, standardise: Mapping[str, Standardise], outputs: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.standardise = nn.ModuleDict(standardise)
        width = sum(own.mean.shape[-1] for own in standardise.values())
        dropout = config.attention_dropout.get("default", 0.0)
        self.encoder = Encoder((width,), config, dropout)
        self.decoder = Decoder(outputs, config)

    def forward(self, inputs: Mapping[str, Padded]) -> Tensor:
        """Predict (B, O) from all modalities.

        Every modality is right-padded (B, T_m, D_m), of length 0 where an item lacks it; an item
        has at least one. Where a modality has no step, its features are 0, their mean.
        """
        lengths = {name: padded.lengths for name, padded in inputs.items()}
        aligned = []
        for name, standardise in self.standardise.items():
            # The weighted mean of a single modality: its own steps, and 0 where it has none.
            features = {name: standardise(inputs[name].values)}
            joined, longest = fuse_encodings(features, lengths, {name: 1.0})
            aligned.append(joined)
        encodings = self.encoder(torch.cat(aligned, dim=2), longest)
        outputs: Tensor = self.decoder(encodings, longest)
        return outputs


class CrossAttention(Attention):
    """Attention of one sequence to another."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(heads, dropout)
        self.project_query = nn.Linear(width, width)
        self.project_source = nn.Linear(width, 2 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, d), attending to (B, S, d), to (B, T, d); `mask` (B, S): may be attended."""
        (query,) = self.split(self.project_query(target), 1)
        key, value = self.split(self.project_source(source), 2)
        return self.attend(query, key, value, mask[:, None, None, :])


class CrossLayer(EncoderLayer):
    """Pre-norm layer: attention to a source, then a feed-forward of width 4d, both residual.

    Target and source have one norm, as in the authors' code.
    """

    def __init__(self, config: ModelConfig, attention_dropout: float) -> None:
        super().__init__(config, attention_dropout, CrossAttention)

    def forward(  # type: ignore[override]
        self, target: Tensor, source: Tensor, lengths: Tensor
    ) -> Tensor:
        """Map (B, T, d) to (B, T, d), attending to (B, S, d) of which `lengths` (B,) are real.

        A source without steps adds nothing.
        """
        # One key at least: attention without any depends on the kernel.
        mask = valid_steps(lengths.clamp(min=1), source.shape[1])
        attended = self.attention(self.attention_norm(target), self.attention_norm(source), mask)
        attended = self.residual_dropout(attended)
        return self.feed_forward(target + torch.where((lengths > 0)[:, None, None], attended, 0.0))


class Target(nn.Module):
    """One modality: it attends to each of the others, if any, then the result to itself.

    The attention dropout is that of the modality attended to.
    """

    def __init__(self, name: str, others: Sequence[str], config: ModelConfig) -> None:
        super().__init__()
        self.name = name
        width = config.width * max(len(others), 1)
        rates = config.attention_dropout
        default = rates.get("default", 0.0)
        self.cross = nn.ModuleDict(
            {
                other: nn.ModuleList(
                    CrossLayer(config, rates.get(other, default)) for _ in range(config.layers)
                )
                for other in others
            }
        )
        self.cross_norms = nn.ModuleDict({other: nn.LayerNorm(config.width) for other in others})
        self.layers = nn.ModuleList(
            EncoderLayer(replace(config, width=width), rates.get(name, default))
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Return (B, (M-1) d) the last real step; 0 where an item lacks the modality.

        Embeddings are (B, T_m, d) and lengths (B,), by modality.
        """
        own, views = lengths[self.name], []
        for other, norm in self.cross_norms.items():
            x = embedded[self.name]
            for layer in cast(nn.ModuleList, self.cross[other]):
                x = layer(x, embedded[other], lengths[other])
            views.append(norm(x))
        x = torch.cat(views or [embedded[self.name]], dim=2)
        mask = valid_steps(own.clamp(min=1), x.shape[1])[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        last = self.norm(x[torch.arange(len(x), device=x.device), own.clamp(min=1) - 1])
        return torch.where((own > 0)[:, None], last, 0.0)


class CrossModal(nn.Module):
    """MulT, of one or more modalities; ``layers`` of each stack."""

    def __init__(
        self, standardise: Mapping[str, Standardise], outputs: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict()
        for name, own in standardise.items():
            # Without layers it only embeds: convolution, positions, norm.
            encoder = Encoder(own.mean.shape, replace(config, layers=0), attention_dropout=0.0)
            encoder.standardise = own
            self.embeddings[name] = encoder
        self.targets = nn.ModuleDict()
        for name in standardise:
            others = [other for other in standardise if other != name]
            self.targets[name] = Target(name, others, config)
        modalities = len(standardise)
        width = config.width * modalities * max(modalities - 1, 1)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Mapping[str, Padded]) -> Tensor:
        """Predict (B, O) from all modalities.

        Every modality is right-padded (B, T_m, D_m), of length 0 where an item lacks it; what is in
        the padding does not matter.
        """
        lengths = {name: padded.lengths for name, padded in inputs.items()}
        embedded = {name: embed(*inputs[name]) for name, embed in self.embeddings.items()}
        read = torch.cat([target(embedded, lengths) for target in self.targets.values()], dim=1)
        outputs: Tensor = self.head(read + self.contract(F.relu(self.expand(read))))
        return outputs


#: ``strategy.architecture`` to a model made of each modality's `Standardise`, the number of
#: outputs, and the sizes; called with modality to `Padded`, it returns outputs (B, O).
ARCHITECTURES: dict[str, Callable[[Mapping[str, Standardise], int, ModelConfig], nn.Module]] = {
    "early_fusion": EarlyFusion,
    "cross_modal": CrossModal,
}


def build_other(config: Config, initial: HAFedformer) -> nn.Module:
    """Build the model of `ARCHITECTURES` that ``strategy.architecture`` names.

    It standardises as `initial` does, and its weights are drawn from the same seed. Raises
    `UserError` if there is no such architecture.
    """
    name = config.strategy.architecture
    if name not in ARCHITECTURES:
        names = ", ".join(["ha_fedformer", *ARCHITECTURES])
        raise UserError(f"strategy.architecture={name}: expected one of {names}")
    standardise = {}
    for modality, encoder in initial.encoders.items():
        assert isinstance(encoder, Encoder)
        standardise[modality] = encoder.standardise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "model"))
        return ARCHITECTURES[name](standardise, initial.spec.outputs, config.model)
