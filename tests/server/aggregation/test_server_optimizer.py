"""The server's step against the papers' algorithms in NumPy, and what it remembers."""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import ServerOptimizer, ServerOptimizerConfig
from server.aggregation.server_optimizer import OptimizerState, step

Array = NDArray[np.float64]

SGD = ServerOptimizerConfig()
MOMENTUM = ServerOptimizerConfig(ServerOptimizer.momentum, lr=0.7, momentum=0.6)
ADAM = ServerOptimizerConfig(ServerOptimizer.adam, lr=0.05, momentum=0.9, beta2=0.99, tau=1e-3)


def reddi(config: ServerOptimizerConfig, merged: list[Array], x: Array) -> Iterator[Array]:
    """Algorithm 2 of Reddi et al. 2021, FedAdam, line by line; v begins at tau^2."""
    m, v = np.zeros_like(x), np.full_like(x, config.tau**2)
    for target in merged:
        delta = target - x
        m = config.momentum * m + (1 - config.momentum) * delta
        v = config.beta2 * v + (1 - config.beta2) * delta**2
        x = x + config.lr * m / (np.sqrt(v) + config.tau)
        yield x


def hsu(config: ServerOptimizerConfig, merged: list[Array], x: Array) -> Iterator[Array]:
    """FedAvgM, with delta against the direction of the change as there."""
    v = np.zeros_like(x)
    for target in merged:
        v = config.momentum * v + (x - target)
        x = x - config.lr * v
        yield x


@pytest.mark.parametrize(("config", "paper"), [(ADAM, reddi), (MOMENTUM, hsu)])
def test_every_step_is_that_of_the_paper(config: ServerOptimizerConfig, paper) -> None:
    rng, start = np.random.default_rng(0), np.ones((2, 3))
    merged = [rng.normal(size=(2, 3)) for _ in range(4)]
    current, moments = {"w": torch.from_numpy(start).float()}, OptimizerState()
    for target, expected in zip(merged, paper(config, merged, start), strict=True):
        current, moments = step(current, {"w": torch.from_numpy(target).float()}, moments, config)
        assert current["w"].dtype == torch.float32
        np.testing.assert_allclose(current["w"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_sgd_at_rate_1_takes_the_merged_model_bit_for_bit() -> None:
    # 1e8 + (0.1 - 1e8) is not 0.1, so it must not be calculated.
    current, merged = {"w": torch.tensor([1e8])}, {"w": torch.tensor([0.1])}
    new, moments = step(current, merged, OptimizerState(), SGD, {})
    assert torch.equal(new["w"], merged["w"])
    assert not moments.first and not moments.second


@pytest.mark.parametrize("config", [SGD, MOMENTUM, ADAM])
def test_scales_multiply_the_change_of_what_they_name(config: ServerOptimizerConfig) -> None:
    current = {"a": torch.tensor([1.0]), "b": torch.tensor([0.1])}
    merged = {"a": torch.tensor([3.0]), "b": torch.tensor([3.0])}

    def stepped(merged: dict[str, Tensor], scales: dict[str, Tensor]) -> dict[str, Tensor]:
        return step(current, merged, OptimizerState(), config, scales)[0]

    scaled = stepped(merged, {"a": torch.tensor(2.5)})
    farther = stepped({"a": torch.tensor([6.0])}, {"a": torch.ones(())})
    torch.testing.assert_close(scaled["a"], farther["a"])
    torch.testing.assert_close(scaled["b"], stepped(merged, {})["b"])
    # A model that did not change stays.
    assert stepped(current, {}) == current


@pytest.mark.parametrize("config", [MOMENTUM, ADAM])
def test_an_absent_array_keeps_its_moments_and_inputs_stay(
    config: ServerOptimizerConfig,
) -> None:
    both = {"audio": torch.tensor([1.0]), "vision": torch.tensor([2.0])}
    current = {name: torch.zeros(1) for name in both}
    _, moments = step(current, both, OptimizerState(), config)
    before = deepcopy(moments)
    new, later = step(current, {"audio": both["audio"]}, moments, config)
    assert set(new) == {"audio"}
    for former, kept in ((moments.first, later.first), (moments.second, later.second)):
        assert kept.keys() == former.keys()
        assert former.get("vision") is kept.get("vision")
    assert not torch.equal(later.first["audio"], moments.first["audio"])
    torch.testing.assert_close(vars(moments), vars(before), rtol=0, atol=0)
    assert current == {name: torch.zeros(1) for name in both}
