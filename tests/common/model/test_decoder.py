"""The decoder against an LSTM that is run on each item by itself."""

import math

import pytest
import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.model.decoder import Decoder

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
def test_padding_does_not_reach_the_outputs(garbage: float) -> None:
    model, padded = decoder(), encodings(steps=9)
    clean = model(padded, LENGTHS)
    for item, length in enumerate(LENGTHS.tolist()):
        padded[item, length:] = garbage
    torch.testing.assert_close(model(padded, LENGTHS), clean, atol=1e-6, rtol=0)


def test_no_gradient_reaches_padding() -> None:
    model, padded = decoder(), encodings().requires_grad_()
    model(padded, LENGTHS).sum().backward()
    real = torch.arange(6) < LENGTHS[:, None]
    assert (padded.grad[~real] == 0).all()
    assert (padded.grad[real].abs().sum(dim=1) > 0).all()


def test_a_length_of_zero_reads_the_first_step() -> None:
    model, padded = decoder(), encodings()
    zero, one = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1])
    assert torch.equal(model(padded, zero), model(padded, one))
