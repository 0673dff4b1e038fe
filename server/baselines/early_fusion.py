"""Early fusion: features of all modalities joined before one encoder.

Notation: B items, T steps, D_m feature width of modality m, d model width, O outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.batching import Padded
from common.model.encoder import Encoder, Standardise
from common.model.fusion import fuse_encodings
from common.model.ha_fedformer import Decoder


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
