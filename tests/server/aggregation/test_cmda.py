"""CmDA against a double loop over its formula, and where it must be the plain mean."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from updates import points

from common.config import DecoderConfig, StrategyConfig
from server.aggregation.average import WeightedSum
from server.aggregation.cmda import cmda_weights, merge_decoders
from server.aggregation.rules import Setting

Array = NDArray[np.float64]

options = st.builds(
    DecoderConfig,
    epsilon=st.floats(-3, 3),
    temperature=st.floats(0.01, 100),
    sign=st.sampled_from([1, -1]),
    noise=st.just(0.0),
)


def quiet(**changes: float) -> DecoderConfig:
    return DecoderConfig(**({"noise": 0.0} | changes))


def merge(
    decoders: dict[str, dict[str, Tensor]], config: DecoderConfig, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    sums = {m: WeightedSum().add(points(**arrays), 2.0) for m, arrays in decoders.items()}
    generator, current = torch.Generator().manual_seed(seed), next(iter(decoders.values()))
    return merge_decoders(sums, Setting(current, StrategyConfig("x", decoder=config), generator))


def random_layers(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 4)) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy((i + 1) * rng.normal(size=shape)).float() for i in range(count)]


def as_decoders(layers: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    return {f"modality_{i}": {"w": layer} for i, layer in enumerate(layers)}


def formula(layers: list[Array], epsilon: float, temperature: float, sign: int) -> Array:
    """Move every anchor as the paper says, then average the moved ones."""
    count = len(layers)
    distance = {
        (m, n): math.sqrt(float(((layers[m] - layers[n]) ** 2).sum()))
        for m, n in permutations(range(count), 2)
    }
    typical, moved = np.mean(list(distance.values())), []
    for m in range(count):
        others = [n for n in range(count) if n != m]
        scores = [math.exp(sign * distance[m, n] / (temperature * typical)) for n in others]
        step = np.zeros_like(layers[m])
        for n, score in zip(others, scores, strict=True):
            step += score / sum(scores) * (layers[m] - layers[n])
        moved.append(layers[m] - epsilon * step)
    return np.mean(moved, axis=0)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("epsilon", [0.5, 1.2])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_equals_the_formula(count: int, epsilon: float, temperature: float, sign: int) -> None:
    layers = random_layers(count)
    expected = formula([layer.double().numpy() for layer in layers], epsilon, temperature, sign)
    config = quiet(epsilon=epsilon, temperature=temperature, sign=sign)
    merged, weights = merge(as_decoders(layers), config)
    np.testing.assert_allclose(merged["w"].numpy(), expected, rtol=1e-5, atol=1e-5)
    weighed = np.tensordot([*weights["w"].values()], torch.stack(layers).double().numpy(), axes=1)
    np.testing.assert_allclose(weighed, expected, rtol=1e-12, atol=1e-12)
    assert merged["w"].dtype == torch.float32


@given(
    config=options,
    count=st.integers(1, 7),
    seed=st.integers(0, 1000),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one(config: DecoderConfig, count: int, seed: int, size: float) -> None:
    weights = cmda_weights([size * layer for layer in random_layers(count, seed)], config)
    assert weights.shape == (count,)
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)


def corners() -> list[Tensor]:
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    return [torch.stack([angle.cos(), angle.sin()]) for angle in angles]


@pytest.mark.parametrize(
    "layers",
    [random_layers(2), corners(), random_layers(1) * 3, random_layers(1) * 5],
    ids=["two modalities", "equilateral triangle", "three identical", "five identical"],
)
@given(config=options)
@settings(max_examples=15, deadline=None)
def test_symmetric_attention_is_the_plain_mean(layers: list[Tensor], config: DecoderConfig) -> None:
    weights = cmda_weights(layers, config)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(layers)))
    merged, _ = merge(as_decoders(layers), config)
    torch.testing.assert_close(merged["w"], torch.stack(layers).double().mean(dim=0).float())


def test_one_modality_returns_itself() -> None:
    decoder = {"a": torch.randn(3, 2), "b": torch.randn(4), "c": torch.tensor(0.7)}
    merged, weights = merge({"audio": decoder}, quiet())
    assert merged.keys() == decoder.keys()
    for name, array in decoder.items():
        assert torch.equal(merged[name], array)
        assert weights[name] == {"audio": 1.0}


@given(data=st.data(), config=options, count=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_weights_follow_modalities(data: st.DataObject, config: DecoderConfig, count: int) -> None:
    decoders = as_decoders(random_layers(count))
    order = data.draw(st.permutations(list(decoders)))
    merged, weights = merge(decoders, config)
    permuted, permuted_weights = merge({name: decoders[name] for name in order}, config)
    assert list(permuted_weights["w"]) == order
    assert permuted_weights["w"] == pytest.approx(weights["w"], abs=1e-12)
    torch.testing.assert_close(permuted["w"], merged["w"], rtol=1e-5, atol=1e-5)


def test_layers_are_weighed_each_on_its_own() -> None:
    first, second = random_layers(3, 1), random_layers(3, 2, shape=(5,))
    decoders = {f"m{i}": {"first": first[i], "second": second[i]} for i in range(3)}
    _, weights = merge(decoders, quiet())
    for name, layers in (("first", first), ("second", second)):
        assert list(weights[name].values()) == cmda_weights(layers, quiet()).tolist()
    assert weights["first"] != weights["second"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_noise_is_the_mean_of_independent_draws(count: int) -> None:
    decoders = {f"m{i}": {"w": torch.zeros(200, 100)} for i in range(count)}
    config = DecoderConfig("cmda", noise=0.3)
    merged, _ = merge(decoders, config, 5)
    expected = 0.3 / math.sqrt(count)
    assert merged["w"].std().item() == pytest.approx(expected, rel=0.03)
    assert abs(merged["w"].mean().item()) < 4 * expected / math.sqrt(20_000)
    assert torch.equal(merged["w"], merge(decoders, config, 5)[0]["w"])
    assert not torch.equal(merged["w"], merge(decoders, config, 6)[0]["w"])
