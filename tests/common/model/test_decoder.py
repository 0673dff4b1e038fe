"""The decoder against an LSTM that is run on each item by itself."""

import math

import pytest
import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.model.ha_fedformer import Decoder

WIDTH = 8
LENGTHS = torch.tensor([3, 1, 6, 4])


def decoder(outputs: int = 3, layers: int = 3) -> Decoder:
    built = Decoder(outputs, ModelConfig(width=WIDTH, heads=2, decoder_layers=layers))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0.0, 0.5, generator=source)
    return built.eval()


def encodings(steps: int = 6) -> Tensor:
    return torch.randn(len(LENGTHS), steps, WIDTH, generator=torch.Generator().manual_seed(1))


def head_by_hand(model: Decoder, last: Tensor) -> Tensor:
    hidden = (model.expand.weight @ last + model.expand.bias).clamp(min=0)
    residual = last + model.contract.weight @ hidden + model.contract.bias
    return model.head.weight @ residual + model.head.bias


def test_the_last_step_equals_the_state_of_a_packed_sequence() -> None:
    model, padded = decoder(), encodings()
    packed = nn.utils.rnn.pack_padded_sequence(
        padded, LENGTHS, batch_first=True, enforce_sorted=False
    )
    _, (hidden, _) = model.lstm(packed)
    expected = torch.stack([head_by_hand(model, last) for last in hidden[-1]])
    torch.testing.assert_close(model(padded, LENGTHS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("garbage", [1e6, math.nan, math.inf])
def test_padding_reaches_neither_outputs_nor_gradients(garbage: float) -> None:
    model, padded = decoder(), encodings(steps=9).requires_grad_()
    clean, real = model(padded, LENGTHS), torch.arange(9) < LENGTHS[:, None]
    clean.sum().backward()
    assert (padded.grad[~real] == 0).all()
    assert (padded.grad[real].abs().sum(dim=1) > 0).all()
    soiled = padded.detach().masked_fill(~real[:, :, None], garbage)
    torch.testing.assert_close(model(soiled, LENGTHS), clean, atol=1e-6, rtol=0)


def test_a_length_of_zero_reads_the_first_step() -> None:
    model, padded, zero = decoder(), encodings(), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(model(padded, zero), model(padded, zero + 1))
