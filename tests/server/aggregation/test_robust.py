"""Rules over all clients at once against NumPy and SciPy, and as a monoid."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from common.config import FedAttConfig, StrategyConfig
from common.posterior import Gaussian, Posterior
from server.aggregation.fedatt import attend
from server.aggregation.robust import ClientUpdates, median, trimmed_mean
from server.aggregation.rules import Setting

Array = NDArray[np.float64]
SHAPES = {"matrix": (3, 4), "bias": (5,), "scalar": ()}
QUIET = FedAttConfig(noise=0.0)


def posterior_of(arrays: dict[str, Tensor]) -> Posterior:
    return Posterior.of({name: Gaussian(array) for name, array in arrays.items()})


def attended(
    total: ClientUpdates,
    current: dict[str, Tensor],
    config: FedAttConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    return attend(total, Setting(current, StrategyConfig("x", fedatt=config), generator))


def client(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def collected(clients: list[dict[str, Tensor]]) -> ClientUpdates:
    total = ClientUpdates()
    for seed, arrays in enumerate(clients):
        total = total.add(posterior_of(arrays), 1.0 + seed)
    return total


def stacked(clients: list[dict[str, Tensor]], name: str) -> Array:
    return np.stack([arrays[name].double().numpy() for arrays in clients])


# --- Against others ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_median_is_numpy_s(count: int) -> None:
    clients = [client(seed) for seed in range(count)]
    for name, found in median(collected(clients)).items():
        assert (found.dtype, found.shape) == (torch.float32, SHAPES[name])
        expected = np.median(stacked(clients, name), axis=0)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_median_has_no_largest_tensor() -> None:
    # torch's quantile refuses more than 16 million numbers; Yin et al. have a bound on nothing.
    clients = [{"w": torch.full((6_000_000,), float(value))} for value in (1, 9, 2)]
    found = median(collected(clients))["w"]
    assert found.min() == found.max() == 2


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("trim", [0.0, 0.1, 0.34, 0.49])
def test_trimmed_mean_is_scipy_s(count: int, trim: float) -> None:
    clients = [client(seed) for seed in range(count)]
    for name, found in trimmed_mean(collected(clients), trim).items():
        assert (found.dtype, found.shape) == (torch.float32, SHAPES[name])
        expected = scipy.stats.trim_mean(stacked(clients, name), trim, axis=0)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_trimmed_mean_counts_what_the_share_means_not_what_floats_make_of_it() -> None:
    # 0.29 * 100 is 28.999999999999996.
    clients = [{"w": torch.tensor(float(value))} for value in [0] * 29 + [1] * 42 + [99] * 29]
    assert trimmed_mean(collected(clients), 0.29)["w"].item() == 1


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [0.5, 1.2])
def test_attention_is_the_formula_of_fedatt(count: int, epsilon: float) -> None:
    clients, current = [client(seed) for seed in range(count)], client(99)
    config = FedAttConfig(epsilon=epsilon, noise=0.0)
    found = attended(collected(clients), current, config, torch.Generator())
    for name in SHAPES:
        w = current[name].double().numpy()
        distances = np.array([np.linalg.norm(w - each) for each in stacked(clients, name)])
        alpha = np.exp(distances) / np.exp(distances).sum()
        pull = sum(a * (w - each) for a, each in zip(alpha, stacked(clients, name), strict=True))
        np.testing.assert_allclose(found[name].numpy(), w - epsilon * pull, rtol=1e-5, atol=1e-6)
        assert found[name].dtype == torch.float32


def test_noise_of_attention_is_scaled_by_epsilon_and_seeded() -> None:
    current = {"w": torch.zeros(200, 100), "v": torch.zeros(200, 100)}
    total, config = collected([current]), FedAttConfig(epsilon=2.0, noise=0.3)
    one, again, other = (
        attended(total, current, config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one["w"].std().item() == pytest.approx(0.6, rel=0.03)
    assert torch.equal(one["w"], again["w"])
    assert not torch.equal(one["w"], other["w"])
    assert not torch.equal(one["w"], one["v"])


def test_attention_to_clients_far_away_does_not_overflow() -> None:
    clients = [{"w": torch.full((3,), value)} for value in (1e30, -1.0)]
    found = attended(collected(clients), {"w": torch.zeros(3)}, QUIET, torch.Generator())
    torch.testing.assert_close(found["w"], torch.full((3,), 1.2e30))


# --- Faults -----------------------------------------------------------------------------------


@given(faulty=st.floats(-1e30, 1e30), where=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_one_faulty_client_of_three_cannot_leave_the_others_range(
    faulty: float, where: int
) -> None:
    clients = [client(1), client(2)]
    clients.insert(where, {name: torch.full(shape, faulty) for name, shape in SHAPES.items()})
    for merged in (median(collected(clients)), trimmed_mean(collected(clients), 0.34)):
        for name, found in merged.items():
            honest = torch.stack([client(1)[name], client(2)[name]])
            assert (honest.amin(dim=0) <= found).all() and (found <= honest.amax(dim=0)).all()
