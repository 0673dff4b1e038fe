"""Rules against NumPy and SciPy, and where one faulty client could do harm."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from updates import points

from common.config import FedAttConfig, StrategyConfig
from server.aggregation.rules import RULES, Setting, find_rule

Array = NDArray[np.float64]
find_rule("average", "encoder")  # imports all
SHAPES = {"matrix": (3, 4), "bias": (5,), "conv": (2, 3, 2), "scalar": ()}


def client(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def weights_of(count: int) -> list[float]:
    return [5.0, 0.25, 1000.0, *map(float, range(7, count + 4))][:count]


def merged(
    rule: str,
    clients: list[dict[str, Tensor]],
    current: dict[str, Tensor] | None = None,
    *,
    seed: int = 0,
    trim: float = 0.2,
    **fedatt: float,
) -> dict[str, Tensor]:
    total = RULES[rule].start()
    for arrays, weight in zip(clients, weights_of(len(clients)), strict=True):
        total = total.add(points(**arrays), weight)
    config = StrategyConfig("x", trim=trim, fedatt=FedAttConfig(**({"noise": 0.0} | fedatt)))
    generator = torch.Generator().manual_seed(seed)
    return RULES[rule].finish(total, Setting(current or {}, config, generator))


def attention(stack: Array, current: Array, epsilon: float) -> Array:
    """Return what the formula of FedAtt gives."""
    distances = np.array([np.linalg.norm(current - each) for each in stack])
    alpha = np.exp(distances) / np.exp(distances).sum()
    return current - epsilon * sum(
        a * (current - each) for a, each in zip(alpha, stack, strict=True)
    )


# --- Against others ---------------------------------------------------------------------------

#: Options of a rule, and what it makes of clients (n, ...), as they are stacked, and the start.
ORACLES = [
    ("average", {}, lambda stack, _: np.average(stack, axis=0, weights=weights_of(len(stack)))),
    ("median", {}, lambda stack, _: np.median(stack, axis=0)),
    *(
        ("trimmed_mean", {"trim": t}, lambda stack, _, t=t: scipy.stats.trim_mean(stack, t, axis=0))
        for t in (0.0, 0.1, 0.34, 0.49)
    ),
    *(
        ("fedatt", {"epsilon": e}, lambda stack, current, e=e: attention(stack, current, e))
        for e in (0.5, 1.2)
    ),
]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("rule", "options", "oracle"), ORACLES)
def test_rule_is_that_of_numpy_scipy_or_the_paper(rule, options, oracle, count: int) -> None:
    clients, current = [client(seed) for seed in range(count)], client(99)
    for name, found in merged(rule, clients, current, **options).items():
        assert (found.dtype, found.shape) == (torch.float32, SHAPES[name])
        stack = np.stack([arrays[name].double().numpy() for arrays in clients])
        expected = oracle(stack, current[name].double().numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def scalars(*values: float) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(float(value))} for value in values]


def test_small_contributions_are_not_lost_beside_large_ones() -> None:
    # In float32, 2**24 + 1 is 2**24.
    values, total = [2.0**24, 1.0, 1.0], RULES["average"].start()
    for arrays in scalars(*values):
        total = total.add(points(**arrays), 1.0)
    assert total.finish()["w"].item() == np.float32(np.mean(values))


def test_median_has_no_largest_tensor() -> None:
    # torch's quantile refuses more than 16 million numbers; Yin et al. have a bound on nothing.
    found = merged("median", [{"w": torch.full((6_000_000,), float(v))} for v in (1, 9, 2)])["w"]
    assert found.min() == found.max() == 2


def test_trimmed_mean_counts_what_the_share_means_not_what_floats_make_of_it() -> None:
    # 0.29 * 100 is 28.999999999999996.
    clients = scalars(*[0] * 29, *[1] * 42, *[99] * 29)
    assert merged("trimmed_mean", clients, trim=0.29)["w"].item() == 1


def test_noise_of_attention_is_scaled_by_epsilon_and_seeded() -> None:
    current = {"w": torch.zeros(200, 100), "v": torch.zeros(200, 100)}
    one, again, other = (
        merged("fedatt", [current], current, seed=seed, epsilon=2.0, noise=0.3)
        for seed in (1, 1, 2)
    )
    assert one["w"].std().item() == pytest.approx(0.6, rel=0.03)
    assert torch.equal(one["w"], again["w"])
    assert not torch.equal(one["w"], other["w"])
    assert not torch.equal(one["w"], one["v"])


def test_attention_to_clients_far_away_does_not_overflow() -> None:
    found = merged("fedatt", scalars(1e30, -1.0), {"w": torch.zeros(())})
    torch.testing.assert_close(found["w"], torch.tensor(1.2e30))


# --- Faults -----------------------------------------------------------------------------------


@given(faulty=st.floats(-1e30, 1e30), where=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_one_faulty_client_of_three_cannot_leave_the_others_range(
    faulty: float, where: int
) -> None:
    clients = [client(1), client(2)]
    clients.insert(where, {name: torch.full(shape, faulty) for name, shape in SHAPES.items()})
    for rule in ("median", "trimmed_mean"):
        for name, found in merged(rule, clients, trim=0.34).items():
            honest = torch.stack([client(1)[name], client(2)[name]])
            assert (honest.amin(dim=0) <= found).all() and (found <= honest.amax(dim=0)).all()
