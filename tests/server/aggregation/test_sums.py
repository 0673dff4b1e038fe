"""Every rule of the registry: against NumPy, SciPy and papers, as a monoid, and what it refuses."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from updates import in_any_tree, points, posterior_of

from common.config import FedAttConfig, StrategyConfig
from common.posterior import Form, Gaussian, Layout, Posterior
from server.aggregation.rules import RULES, ClientSum, Setting, find_rule

find_rule("average", "encoder")  # imports all
EVERY_RULE = pytest.mark.parametrize("name", sorted(RULES))
SHAPES = {"matrix": (3, 4), "bias": (3,), "scalar": (), "conv": (2, 3, 2)}
Array = NDArray[np.float64]
Clients = list[tuple[Posterior, float]]


def arrays_of(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}


def client(seed: int) -> Posterior:
    """Return a posterior with precisions of every form; some clients have identities."""
    arrays, rng = arrays_of(seed), torch.Generator().manual_seed(100 + seed)
    sure = torch.rand(3, generator=rng) + 0.5
    precise = {"bias": Gaussian(arrays["bias"], sure, Form.diagonal)}
    if seed % 3:
        spread = torch.randn(4, 4, generator=rng)
        precision = spread @ spread.T + torch.eye(4)
        precise["matrix"] = Gaussian(arrays["matrix"], precision, Form.row)
    return posterior_of(arrays | precise)


def total_of(name: str, clients: Clients) -> ClientSum:
    total = RULES[name].start()
    for posterior, weight in clients:
        total = total.add(posterior, weight)
    return total


def finished(
    name: str,
    total: ClientSum,
    current: dict[str, Tensor] | None = None,
    *,
    seed: int = 0,
    trim: float = 0.2,
    **fedatt: float,
) -> dict[str, Tensor]:
    """Finish a round that began with zeros, and without noise, unless the test says otherwise."""
    if current is None:
        current = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    config = StrategyConfig("x", trim=trim, fedatt=FedAttConfig(**({"noise": 0.0} | fedatt)))
    return RULES[name].finish(total, Setting(current, config, torch.Generator().manual_seed(seed)))


def weights_of(count: int) -> list[float]:
    return [5.0, 0.25, 1000.0, *map(float, range(7, count + 4))][:count]


def merged(
    name: str,
    clients: list[dict[str, Tensor]],
    current: dict[str, Tensor] | None = None,
    **options: float,
) -> dict[str, Tensor]:
    """Merge clients without precisions."""
    pairs = zip(map(posterior_of, clients), weights_of(len(clients)), strict=True)
    return finished(name, total_of(name, list(pairs)), current, **options)


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
    clients, current = [arrays_of(seed) for seed in range(count)], arrays_of(99)
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


@given(faulty=st.floats(-1e30, 1e30), where=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_one_faulty_client_of_three_stays_in_the_others_range(faulty: float, where: int) -> None:
    clients = [arrays_of(1), arrays_of(2)]
    clients.insert(where, {name: torch.full(shape, faulty) for name, shape in SHAPES.items()})
    for rule in ("median", "trimmed_mean"):
        for name, found in merged(rule, clients, trim=0.34).items():
            honest = torch.stack([arrays_of(n)[name] for n in (1, 2)])
            assert (honest.amin(dim=0) <= found).all() and (found <= honest.amax(dim=0)).all()


# --- Monoids ----------------------------------------------------------------------------------


@EVERY_RULE
@given(data=st.data(), weights=st.lists(st.integers(1, 3000), min_size=2, max_size=7))
@settings(max_examples=20, deadline=None)
def test_order_and_grouping_do_not_matter(
    name: str, data: st.DataObject, weights: list[int]
) -> None:
    clients = [(client(seed), float(weight)) for seed, weight in enumerate(weights)]
    total = in_any_tree(data, [total_of(name, [one]) for one in clients])
    expected = finished(name, total_of(name, clients))
    torch.testing.assert_close(finished(name, total), expected, rtol=1e-5, atol=1e-5)


@EVERY_RULE
@given(weights=st.lists(st.floats(1e-2, 1e5), min_size=1, max_size=6), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_identical_clients_return_the_mean(name: str, weights: list[float], seed: int) -> None:
    total = total_of(name, [(client(seed), weight) for weight in weights])
    merged = finished(name, total, epsilon=1.0)  # attention that moves the whole way
    for array in merged.values():
        assert array.dtype is torch.float32
    torch.testing.assert_close(
        merged, {key: each.mean for key, each in client(seed).items()}, rtol=1e-5, atol=1e-5
    )


@EVERY_RULE
def test_empty_sum_is_neutral_alone_has_no_mean_and_sums_are_left_as_they_were(name: str) -> None:
    empty, total = RULES[name].start(), total_of(name, [(client(0), 2.0), (client(1), 3.0)])
    before = finished(name, total)
    total.add(client(2), 5.0)
    for merged in (empty.merge(total), total.merge(empty), total):
        torch.testing.assert_close(finished(name, merged), before, rtol=0, atol=0)
    for nothing in (empty, empty.merge(empty)):
        with pytest.raises(ValueError, match="no clients to merge"):
            finished(name, nothing)


# --- Refusals ---------------------------------------------------------------------------------


@EVERY_RULE
@pytest.mark.parametrize("weight", [0, -0.5, float("inf"), float("nan")])
def test_weight_that_is_not_positive_and_finite_raises(name: str, weight: float) -> None:
    for clients in ([], [(client(0), 1.0)]):
        with pytest.raises(ValueError, match="weight"):
            total_of(name, [*clients, (client(1), weight)])


@EVERY_RULE
@pytest.mark.parametrize(
    ("left", "right"), [((1,), (3,)), ((), (3,)), ((3, 1), (3, 3)), ((3,), (1, 3)), ((4,), (2, 2))]
)
def test_shapes_that_could_broadcast_raise_and_are_named(
    name: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    for shapes in ((left, right), (right, left)):
        clients = [(points(ok=torch.ones(2), w=torch.ones(shape)), 1.0) for shape in shapes]
        with pytest.raises(ValueError) as raised:
            total_of(name, clients)
        assert all(part in str(raised.value) for part in ("'w'", str(left), str(right)))


@EVERY_RULE
def test_names_that_differ_raise_and_are_named(name: str) -> None:
    full, short = points(ok=torch.ones(2), w=torch.ones(2)), points(ok=torch.ones(2))
    for pair in ((full, short), (short, full), (full, Posterior(Layout(), torch.zeros(0)))):
        with pytest.raises(ValueError, match=r"'w'|'ok'|no arrays"):
            total_of(name, [(each, 1.0) for each in pair])


@pytest.mark.parametrize("forms", [(Form.diagonal, Form.row), (Form.row, Form.diagonal)])
def test_precisions_of_two_forms_raise_and_are_named(forms: tuple[Form, Form]) -> None:
    precisions = {Form.diagonal: torch.ones(3, 4), Form.row: torch.eye(4)}
    clients = [
        (Posterior.of({"w": Gaussian(torch.ones(3, 4), precisions[form], form)}), 1.0)
        for form in forms
    ]
    with pytest.raises(ValueError, match=r"'w'.*(row|diagonal)"):
        total_of("pbea", clients)
