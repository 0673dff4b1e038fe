"""The encoder against closed forms and torch's own transformer; padding must not matter."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.model.encoder import (
    Encoder,
    EncoderLayer,
    Standardise,
    sinusoidal_positions,
    valid_steps,
)

FEATURES = 3
LENGTHS = torch.tensor([5, 2, 7, 1])

every_form = pytest.mark.parametrize(
    ("kernel_size", "causal"), [(1, False), (1, True), (3, False), (3, True)]
)


NO_DROPOUT = {f"{name}_dropout": 0.0 for name in ("embedding", "relu", "residual")}


def config(**changes: object) -> ModelConfig:
    return ModelConfig(**{**NO_DROPOUT, "width": 8, "heads": 2, "layers": 2, **changes})


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(module: nn.Module) -> nn.Module:
    """Give every parameter, biases and norms too, a value that shows in the output."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5, generator=source)
    return module.eval()


def encoder(**changes: object) -> Encoder:
    built = lively(Encoder((FEATURES,), config(**changes), 0.0))
    built.standardise.mean.copy_(torch.tensor([0.5, -1.0, 0.0]))
    built.standardise.scale.copy_(torch.tensor([2.0, 0.5, 1.0]))
    return built


def test_valid_steps_are_those_before_the_length() -> None:
    expected = [[False, False, False], [True, False, False], [True, True, True]]
    assert valid_steps(torch.tensor([0, 1, 3]), 3).tolist() == expected


@pytest.mark.parametrize(
    ("width", "rates"), [(1, [1.0]), (2, [1.0]), (5, [1.0, 1e-2, 1e-4]), (6, [1.0, 1e-2, 1e-4])]
)
def test_positions_are_sines_then_cosines_of_known_angles(width: int, rates: list[float]) -> None:
    found, angles = sinusoidal_positions(3, width, torch.device("cpu")), np.outer([0, 1, 2], rates)
    expected = np.hstack([np.sin(angles), np.cos(angles)])[:, :width]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def standardise(mean: Tensor, scale: Tensor) -> Standardise:
    module = Standardise(*mean.shape)
    module.mean.copy_(mean)
    module.scale.copy_(scale)
    return module


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_what_is_not_finite_becomes_zero(value: float, scale: float) -> None:
    found = standardise(torch.ones(2), torch.tensor([scale, 2.0]))(torch.tensor([[value, 4.0]]))
    assert found.tolist() == [[0.0, 6.0]]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_tabular_modality_is_standardised_step_by_step(steps: int) -> None:
    values, statistics = draw(4, steps, 2), torch.arange(6.0).view(3, 2)
    own = statistics[:steps]
    expected = (values - own) * (1 + own)
    torch.testing.assert_close(standardise(statistics, 1 + statistics)(values), expected)


@pytest.mark.parametrize("steps", [2, 4])
def test_more_steps_than_have_statistics_raise(steps: int) -> None:
    statistics = torch.ones(steps - 1, 2)
    with pytest.raises((RuntimeError, ValueError)):
        standardise(statistics, statistics)(draw(2, steps, 2))


def test_a_kernel_of_three_sees_both_neighbours_and_zeros_outside() -> None:
    model, values = encoder(layers=0, kernel_size=3), draw(1, 4, FEATURES)
    before, here, after = model.embed.weight.unbind(2)
    rows = torch.cat([torch.zeros(1, 3), model.standardise(values)[0], torch.zeros(1, 3)])
    windows = torch.stack(
        [before @ rows[t] + here @ rows[t + 1] + after @ rows[t + 2] for t in range(4)]
    )
    positions = sinusoidal_positions(4, 8, torch.device("cpu"))
    expected = model.norm(math.sqrt(8) * windows + positions)
    torch.testing.assert_close(model(values, torch.tensor([4]))[0], expected, atol=1e-5, rtol=1e-5)


def test_even_kernels_do_not_warn() -> None:
    torch.set_warn_always(True)
    try:
        assert encoder(kernel_size=2)(draw(4, 7, FEATURES), LENGTHS).shape == (4, 7, 8)
    finally:
        torch.set_warn_always(False)


@every_form
@pytest.mark.parametrize("garbage", [0.0, 1e6, math.nan, math.inf])
def test_padding_and_absent_items_reach_neither_outputs_nor_gradients(
    kernel_size: int, causal: bool, garbage: float
) -> None:
    model, lengths = encoder(kernel_size=kernel_size, causal=causal), torch.tensor([5, 2, 0, 7, 1])
    values, weights, real = draw(5, 9, FEATURES), draw(5, 9, 8, seed=2), valid_steps(lengths, 9)
    values[~real] = garbage
    values.requires_grad_()
    together = model(values, lengths)
    assert together.isfinite().all()
    (together * weights)[real].sum().backward()
    assert (values.grad[~real] == 0).all()
    assert (values.grad[real].abs().sum(dim=1) > 0).all()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for item, length in enumerate(lengths.tolist()):
        if length > 0:
            alone = model(values[[item], :length].detach(), lengths[[item]])[0]
            torch.testing.assert_close(together[item, :length], alone, atol=1e-5, rtol=0)
            (alone * weights[item, :length]).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_only_a_causal_encoder_does_not_look_ahead(kernel_size: int, step: int) -> None:
    values, length = draw(1, 7, FEATURES), torch.tensor([7])
    changed = values.clone()
    changed[0, step:] += 1.0
    differences = []
    for causal in (True, False):
        model = encoder(kernel_size=kernel_size, causal=causal)
        differences.append((model(values, length) - model(changed, length))[0].abs().amax(dim=1))
    assert (differences[0][:step] < 1e-6).all() and (differences[0][step:] > 1e-2).all()
    assert (differences[1] > 1e-2).all()


@torch.no_grad()
def torch_layer(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    """Build torch's layer of the same weights; in training mode, so it takes no fast path."""
    twin = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    twin.self_attn.in_proj_weight.copy_(layer.attention.project_in.weight)
    twin.self_attn.in_proj_bias.copy_(layer.attention.project_in.bias)
    for ours, theirs in [
        (layer.attention.project_out, twin.self_attn.out_proj),
        (layer.expand, twin.linear1),
        (layer.contract, twin.linear2),
        (layer.attention_norm, twin.norm1),
        (layer.feed_forward_norm, twin.norm2),
    ]:
        theirs.load_state_dict(ours.state_dict())
    return twin.train()


@pytest.mark.parametrize("causal", [False, True])
def test_the_encoder_equals_torch_layers_between_embedding_and_norm(causal: bool) -> None:
    model, values = encoder(causal=causal), draw(4, 7, FEATURES)
    valid = valid_steps(LENGTHS, 7)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    embedded = model.standardise(values) @ model.embed.weight[:, :, 0].T
    expected = math.sqrt(8) * embedded + sinusoidal_positions(7, 8, torch.device("cpu"))
    for layer in model.layers:
        expected = torch_layer(layer)(expected, mask, ~valid)
    found = model(values, LENGTHS)
    torch.testing.assert_close(found[valid], model.norm(expected)[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [*NO_DROPOUT, "attention_dropout"])
def test_every_dropout_acts_in_training_alone(rate: str) -> None:
    changes = {rate: 0.5} if rate in NO_DROPOUT else {}
    model = lively(Encoder((FEATURES,), config(**changes), 0.0 if changes else 0.5))
    values = draw(4, 7, FEATURES)
    assert torch.equal(model(values, LENGTHS), model(values, LENGTHS))
    model.train()
    assert not torch.equal(model(values, LENGTHS), model(values, LENGTHS))
