"""The fused model as a function of tensors alone, which torch can follow into ONNX.

It computes what `common.model.predict.predict` computes. Two things differ: the LSTM is ONNX's own
operator, since torch would unroll it for one number of steps; and fused sequences are as long as
the inputs rather than as their longest item, which adds padding that nothing reads.

Notation: B items, T steps, D feature width, d model width, K classes or labels.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.data.batching import Padded
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.model.predict import Encoded, predict_present


class FusedModel(nn.Module):
    """A model and its fusion rule.

    Parameters
    ----------
    model
        In evaluation mode; it is copied.
    fusion
        Its fitted rule.
    names
        The modalities that it takes, in order.
    """

    def __init__(self, model: HAFedformer, fusion: Fusion, names: Sequence[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.decoder.lstm = OnnxLSTM(model.decoder.lstm)  # type: ignore[assignment]
        self.fusion = fusion
        self.names = list(names)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Predict B items.

        Parameters
        ----------
        *inputs
            For each modality its features (B, T, D), right-padded, and its lengths (B,); 0 where
            an item lacks it.

        Returns
        -------
        list
            Predictions, (B,) or (B, K), NaN for an item without any modality; for numbers their
            deviations (B,) too; then the encodings (B, T, d) of each modality.
        """
        pairs = zip(inputs[::2], inputs[1::2], strict=True)
        padded = {name: Padded(*pair) for name, pair in zip(self.names, pairs, strict=True)}
        encoded = Encoded(
            {name: self.model.encode(name, each) for name, each in padded.items()},
            {name: each.lengths for name, each in padded.items()},
        )
        steps = longest(padded)
        found = predict_present(self.model, self.fusion, encoded, self.names, steps)
        having = encoded.present(self.names).any(dim=0)
        values = having if found.values.ndim == 1 else having[:, None]
        outputs = [torch.where(values, found.values, torch.nan)]
        if found.std is not None:
            outputs.append(torch.where(having, found.std, torch.nan))
        return [*outputs, *encoded.encodings.values()]


def longest(padded: Mapping[str, Padded]) -> int:
    """Return the most steps of any modality; an expression, while torch follows."""
    first, *others = (each.values.shape[1] for each in padded.values())
    for steps in others:
        first = torch.sym_max(first, steps)  # type: ignore[no-untyped-call]
    return first


class OnnxLSTM(nn.Module):
    """An LSTM as ONNX has it; only torch's exporter can run it.

    Parameters
    ----------
    lstm
        In one direction, batch first, with biases.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.width = lstm.hidden_size
        self.layers = nn.ParameterList(
            nn.ParameterList(_layer(lstm, number)) for number in range(lstm.num_layers)
        )

    def forward(self, sequences: Tensor) -> tuple[Tensor, None]:
        """Map (B, T, d) to the states of the last layer, (B, T, d)."""
        steps = sequences.transpose(0, 1)
        for layer in self.layers:
            # (T, directions, B, d)
            states = torch.onnx.ops.symbolic(
                "LSTM",
                [steps, *layer],
                {"hidden_size": self.width},
                dtype=torch.float32,
                shape=[steps.shape[0], 1, steps.shape[1], self.width],
            )
            steps = states.squeeze(1)
        return steps.transpose(0, 1), None


def _layer(lstm: nn.LSTM, number: int) -> list[Tensor]:
    """Return a layer's weights as ONNX wants them: of inputs, of states, both biases."""

    def reordered(kind: str) -> Tensor:
        # torch: input, forget, cell, output. ONNX: input, output, forget, cell.
        gates = getattr(lstm, f"{kind}_l{number}").detach().chunk(4)
        return torch.cat([gates[index] for index in (0, 3, 1, 2)])

    biases = torch.cat([reordered("bias_ih"), reordered("bias_hh")])
    return [each[None] for each in (reordered("weight_ih"), reordered("weight_hh"), biases)]
