"""Early fusion and cross-modal attention: what must not matter does not, and all is trained."""

import math

import pytest
import torch
from torch import Tensor, nn

from common.config import ModelConfig
from common.data.batching import Padded
from common.model.encoder import Standardise
from server.baselines.architectures import CrossAttention, CrossModal, EarlyFusion

SMALL = ModelConfig(width=8, heads=2, layers=2, kernel_size=3, decoder_layers=1)
WIDTHS = {"language": 3, "audio": 2, "vision": 4}
LENGTHS = {"language": [4, 1, 2], "audio": [2, 6, 0], "vision": [3, 0, 5]}

each_kind = pytest.mark.parametrize("kind", [EarlyFusion, CrossModal])


def build(kind: type[nn.Module], names: tuple[str, ...] = tuple(WIDTHS)) -> nn.Module:
    torch.manual_seed(0)
    standardise = {}
    for name in names:
        standardise[name] = Standardise(WIDTHS[name])
        standardise[name].mean.fill_(0.5)
        standardise[name].scale.fill_(2.0)
    return kind(standardise, 2, SMALL).eval()


def inputs(extra: int = 0, fill: float = 0.0, names: tuple[str, ...] = tuple(WIDTHS)) -> dict:
    """Three items; `extra` steps of padding more, all of it filled."""
    made = {}
    for name in names:
        lengths = torch.tensor(LENGTHS[name])
        steps = torch.arange(int(lengths.max()) + extra)
        generator = torch.Generator().manual_seed(len(name))
        values = torch.full((3, len(steps), WIDTHS[name]), fill)
        for item, length in enumerate(LENGTHS[name]):
            values[item, :length] = torch.randn(length, WIDTHS[name], generator=generator)
        made[name] = Padded(values, lengths)
    return made


@each_kind
@pytest.mark.parametrize(("extra", "fill"), [(3, 0.0), (0, 7.0), (3, math.nan), (2, math.inf)])
def test_padding_and_absences_do_not_matter(kind: type[nn.Module], fill: float, extra: int) -> None:
    model = build(kind)
    expected: Tensor = model(inputs())
    assert expected.isfinite().all() and expected.std() > 1e-3
    torch.testing.assert_close(model(inputs(extra, fill)), expected, rtol=1e-4, atol=1e-5)
    model.train()(inputs(extra, fill)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@each_kind
def test_an_item_is_predicted_alike_alone_and_among_others(kind: type[nn.Module]) -> None:
    model = build(kind)
    together = model(inputs())
    for items in ([2, 0, 1], [0], [1], [2]):
        chosen = {}
        for name, each in inputs().items():
            lengths = each.lengths[items]
            chosen[name] = Padded(each.values[items, : max(*lengths, 1)], lengths)
        torch.testing.assert_close(model(chosen), together[items], rtol=1e-4, atol=1e-5)


@each_kind
def test_every_modality_that_is_there_matters(kind: type[nn.Module]) -> None:
    model, base = build(kind), inputs()
    expected = model(base)
    for name in WIDTHS:
        moved = {**base, name: Padded(base[name].values + 1, base[name].lengths)}
        change = (model(moved) - expected).abs().amax(dim=1)
        assert torch.equal(change > 1e-4, base[name].lengths > 0)


@each_kind
def test_raw_features_are_standardised(kind: type[nn.Module]) -> None:
    model, plain = build(kind), build(kind)
    for module in plain.modules():
        if isinstance(module, Standardise):
            module.mean.zero_()
            module.scale.fill_(1.0)
    scaled = {
        name: Padded((each.values - 0.5) * 2, each.lengths) for name, each in inputs().items()
    }
    torch.testing.assert_close(model(inputs()), plain(scaled), rtol=1e-4, atol=1e-5)


@each_kind
@pytest.mark.parametrize("names", [("audio",), ("language", "audio"), tuple(WIDTHS)])
def test_gradients_reach_every_parameter(kind: type[nn.Module], names: tuple[str, ...]) -> None:
    model = build(kind, names).train()
    given = {  # the first two items: all have audio
        name: Padded(each.values[:2], each.lengths[:2])
        for name, each in inputs(names=names).items()
    }
    model(given).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_cross_attention_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(8, 2, 0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for each in (ours.project_query.bias, ours.project_source.bias, ours.project_out.bias):
            each.normal_()
        query, source = ours.project_query, ours.project_source
        theirs.in_proj_weight.copy_(torch.cat([query.weight, source.weight]))
        theirs.in_proj_bias.copy_(torch.cat([query.bias, source.bias]))
        theirs.out_proj.load_state_dict(ours.project_out.state_dict())
    target, source_steps = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    mask = torch.arange(7) < torch.tensor([7, 1, 4])[:, None]
    expected, _ = theirs(target, source_steps, source_steps, key_padding_mask=~mask)
    torch.testing.assert_close(ours(target, source_steps, mask), expected)


def test_a_target_has_a_stack_for_each_other_modality_with_its_dropout() -> None:
    rates = {"default": 0.0, "language": 0.5}
    config = ModelConfig(width=8, heads=2, layers=2, attention_dropout=rates)
    model = CrossModal({name: Standardise(2) for name in WIDTHS}, 1, config)
    assert model.head.in_features == 3 * 2 * config.width
    dropouts = {
        name: {
            other: [layer.attention.dropout for layer in stack]
            for other, stack in [*target.cross.items(), (name, target.layers)]
        }
        for name, target in model.targets.items()
    }
    expected = {"language": [0.5, 0.5], "audio": [0.0, 0.0], "vision": [0.0, 0.0]}
    assert dropouts == dict.fromkeys(WIDTHS, expected)
