"""The encoder of one modality: a pre-norm transformer over its sequence.

Source: arXiv 2303.15486, section 3; Vaswani et al. 2017 for the layer and the positions, Xiong et
al. 2020 for the pre-norm order.

Notation: B items, T steps, D feature width, d model width, h heads.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import ModelConfig
from common.model.linear import LinearExpert


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Return (B, T) bool: which steps of right-padded sequences are real."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def sinusoidal_positions(steps: int, width: int, device: torch.device) -> Tensor:
    """Return (T, d): sines in the first half, cosines in the second, of geometric wavelengths."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / max(half - 1, 1)))
    angles = torch.arange(steps, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


class Standardise(nn.Module):
    """Centre and scale features; constant features and values that are not finite become 0.

    Parameters
    ----------
    shape
        (D,), or (steps, D) if each step is a quantity of its own. The statistics are buffers, so
        they travel and are stored with the model but are never trained or merged.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, values: Tensor) -> Tensor:
        """Map (B, T, D) raw features to (B, T, D) standardised ones.

        Raises
        ------
        ValueError
            If steps have statistics of their own, and there are more steps than statistics.
        """
        steps = slice(None) if self.mean.ndim == 1 else slice(values.shape[1])
        if self.mean.ndim == 2 and values.shape[1] > len(self.mean):
            raise ValueError(f"{values.shape[1]} steps, but statistics for {len(self.mean)}")
        scaled = (values - self.mean[steps]) * self.scale[steps]
        return torch.where(torch.isfinite(scaled), scaled, 0.0)


class Attention(nn.Module):
    """Multi-head attention; a subclass projects to queries, keys and values, and back.

    The width d is divisible by the number of heads h; `dropout` is the share of the attention
    weights dropped in training.
    """

    project_out: nn.Linear

    def __init__(self, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout

    def split(self, projected: Tensor, parts: int) -> Tensor:
        """Split (B, T, parts d) into parts and heads: (parts, B, h, T, d / h)."""
        batch, steps, width = projected.shape
        heads = projected.view(batch, steps, parts, self.heads, width // parts // self.heads)
        return heads.permute(2, 0, 3, 1, 4)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, d); `mask` broadcasts to (B, h, T, S), True may be attended."""
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        projected: Tensor = self.project_out(attended.transpose(1, 2).flatten(2))
        return projected


class SelfAttention(Attention):
    """Attention of a sequence to itself."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(heads, dropout)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, d) to (B, T, d)."""
        query, key, value = self.split(self.project_in(x), 3)
        return self.attend(query, key, value, mask)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a feed-forward of width 4d, both residual."""

    def __init__(
        self,
        config: ModelConfig,
        attention_dropout: float,
        attention: Callable[[int, int, float], Attention] = SelfAttention,
    ) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention(width, config.heads, attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.relu_dropout = nn.Dropout(config.relu_dropout)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, d) to (B, T, d)."""
        x = x + self.residual_dropout(self.attention(self.attention_norm(x), mask))
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the feed-forward of each step to it."""
        hidden = self.relu_dropout(F.relu(self.expand(self.feed_forward_norm(x))))
        x = x + self.residual_dropout(self.contract(hidden))
        return x


class StepEmbedding(nn.Module):
    """A separate linear map for each step, for steps that are different quantities.

    The tokens of Gorishniy et al. 2021 (arXiv 2106.11959, section 3.3), for steps of any width: a
    convolution would read every quantity with the same weights.
    """

    def __init__(self, steps: int, features: int, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(features)
        self.weight = nn.Parameter(torch.empty(steps, features, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(steps, width).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, d); there may be fewer steps than T."""
        steps = features.shape[1]
        tokens: Tensor = torch.einsum("btf,tfd->btd", features, self.weight[:steps])
        return tokens + self.bias[:steps]


class SequenceEmbedding(nn.Conv1d):
    """A convolution over time without bias, which keeps the number of steps.

    It spans `kernel_size` steps; a causal one sees no later ones.
    """

    def __init__(self, features: int, width: int, kernel_size: int, *, causal: bool) -> None:
        super().__init__(features, width, kernel_size, bias=False)
        reach = kernel_size - 1
        self.reach = (reach, 0) if causal else (reach // 2, reach - reach // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, d)."""
        padded = F.pad(features.transpose(1, 2), self.reach)
        return super().forward(padded).transpose(1, 2)


class Encoder(nn.Module):
    """Features of one modality to a sequence of model width.

    Parameters
    ----------
    statistics
        Shape of a feature's statistics, (D,), or (steps, D) if each step is a quantity of its own;
        see `Standardise` and `StepEmbedding`.
    config
        Sizes and dropout rates.
    attention_dropout
        Dropout of the attention weights, which the paper sets per modality.
    linear
        Outputs of the modality's linear expert, which reads the same standardised features; 0 for
        none.
    """

    def __init__(
        self,
        statistics: Sequence[int],
        config: ModelConfig,
        attention_dropout: float,
        linear: int = 0,
    ) -> None:
        super().__init__()
        self.causal = config.causal
        self.standardise = Standardise(*statistics)
        self.linear = LinearExpert(statistics, linear) if linear else None
        self.embed: nn.Module = (
            StepEmbedding(statistics[0], statistics[1], config.width)
            if len(statistics) == 2
            else SequenceEmbedding(
                statistics[0], config.width, config.kernel_size, causal=config.causal
            )
        )
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config, attention_dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Encode right-padded raw features (B, T, D) to (B, T, d).

        Encodings beyond an item's real steps, `lengths` (B,), have no meaning.
        """
        steps = values.shape[1]
        features, valid = self._standardised(values, lengths)
        embedded: Tensor = self.embed(features)
        width = embedded.shape[2]
        positions = sinusoidal_positions(steps, width, values.device)
        x: Tensor = self.embedding_dropout(math.sqrt(width) * embedded + positions)
        mask = valid[:, None, None, :]
        if self.causal:
            mask = mask & torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            x = layer(x, mask)
        normed: Tensor = self.norm(x)
        return normed

    def linear_outputs(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the outputs (B, O) of the linear expert, which there is."""
        assert self.linear is not None
        outputs: Tensor = self.linear(self._standardised(values, lengths)[0], lengths)
        return outputs

    def _standardised(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, T, D), 0 after the last step, and (B, T) which steps are real."""
        # An absent modality (length 0) still gets one key: attention without any key depends on the
        # kernel, and may be NaN.
        valid = valid_steps(lengths.clamp(min=1), values.shape[1])
        return self.standardise(values) * valid[..., None], valid
