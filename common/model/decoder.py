"""The decoder that all modalities share: an LSTM, a residual block, a linear head.

Source: arXiv 2303.15486, section 3.

Notation: B items, T steps, d model width, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import ModelConfig


class Decoder(nn.Module):
    """Encodings to outputs: 1 for regression, else the number of classes or labels."""

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
