"""The server's step against the papers' algorithms in NumPy, and what it remembers."""

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


def targets(rounds: int = 4) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 3)) for _ in range(rounds)]


def stepped(config: ServerOptimizerConfig, merged: list[Array], start: Array) -> list[Array]:
    """Return the weights after each round."""
    current, moments, seen = {"w": torch.from_numpy(start).float()}, OptimizerState(), []
    for target in merged:
        current, moments = step(current, {"w": torch.from_numpy(target).float()}, moments, config)
        assert current["w"].dtype == torch.float32
        seen.append(current["w"].double().numpy())
    return seen


def reddi(config: ServerOptimizerConfig, merged: list[Array], start: Array) -> list[Array]:
    """Algorithm 2 of Reddi et al. 2021, FedAdam, line by line; v begins at tau^2."""
    x, m, v, seen = start, np.zeros_like(start), np.full_like(start, config.tau**2), []
    for target in merged:
        delta = target - x
        m = config.momentum * m + (1 - config.momentum) * delta
        v = config.beta2 * v + (1 - config.beta2) * delta**2
        x = x + config.lr * m / (np.sqrt(v) + config.tau)
        seen.append(x)
    return seen


def hsu(config: ServerOptimizerConfig, merged: list[Array], start: Array) -> list[Array]:
    """FedAvgM, with delta against the direction of the change as there."""
    x, v, seen = start, np.zeros_like(start), []
    for target in merged:
        v = config.momentum * v + (x - target)
        x = x - config.lr * v
        seen.append(x)
    return seen


def test_adam_is_algorithm_2_of_reddi_et_al() -> None:
    start = np.ones((2, 3))
    np.testing.assert_allclose(
        stepped(ADAM, targets(), start), reddi(ADAM, targets(), start), rtol=1e-5
    )


def test_momentum_is_fedavgm() -> None:
    start = np.ones((2, 3))
    np.testing.assert_allclose(
        stepped(MOMENTUM, targets(), start), hsu(MOMENTUM, targets(), start), rtol=1e-4, atol=1e-6
    )


def test_sgd_at_rate_1_takes_the_merged_model_bit_for_bit() -> None:
    # 1e8 + (0.1 - 1e8) is not 0.1, so it must not be calculated.
    current, merged = {"w": torch.tensor([1e8])}, {"w": torch.tensor([0.1])}
    new, moments = step(current, merged, OptimizerState(), SGD, {})
    assert torch.equal(new["w"], merged["w"])
    assert not moments.first and not moments.second


@pytest.mark.parametrize("config", [SGD, MOMENTUM, ADAM])
def test_scales_multiply_the_change_of_what_they_name(config: ServerOptimizerConfig) -> None:
    current = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    merged = {"a": torch.tensor([3.0]), "b": torch.tensor([3.0])}
    scaled, _ = step(current, merged, OptimizerState(), config, {"a": torch.tensor(2.5)})
    farther, _ = step(
        current, {"a": torch.tensor([6.0])}, OptimizerState(), config, {"a": torch.ones(())}
    )
    torch.testing.assert_close(scaled["a"], farther["a"])
    plain, _ = step(current, merged, OptimizerState(), config)
    torch.testing.assert_close(scaled["b"], plain["b"])


@pytest.mark.parametrize("config", [MOMENTUM, ADAM])
def test_an_array_that_is_absent_keeps_its_moments(config: ServerOptimizerConfig) -> None:
    both = {"audio": torch.tensor([1.0]), "vision": torch.tensor([2.0])}
    current = {name: torch.zeros(1) for name in both}
    _, moments = step(current, both, OptimizerState(), config)
    new, later = step(current, {"audio": both["audio"]}, moments, config)
    assert set(new) == {"audio"}
    for former, kept in ((moments.first, later.first), (moments.second, later.second)):
        assert kept.keys() == former.keys()
        assert former.get("vision") is kept.get("vision")
    assert not torch.equal(later.first["audio"], moments.first["audio"])


def test_former_moments_and_the_model_stay_as_they_were() -> None:
    current, merged = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    _, moments = step(current, merged, OptimizerState(), ADAM)
    before: list[Tensor] = [moments.first["w"].clone(), moments.second["w"].clone()]
    step(current, merged, moments, ADAM)
    assert torch.equal(moments.first["w"], before[0])
    assert torch.equal(moments.second["w"], before[1])
    assert torch.equal(current["w"], torch.zeros(2))


@pytest.mark.parametrize("config", [SGD, MOMENTUM, ADAM])
def test_a_model_that_did_not_change_stays(config: ServerOptimizerConfig) -> None:
    current = {"w": torch.tensor([0.1, -7.0])}
    new, _ = step(current, current, OptimizerState(), config)
    assert torch.equal(new["w"], current["w"])
