"""Every rule of the registry sums clients as a monoid, and refuses what does not fit together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from updates import in_any_tree, points, posterior_of

from common.config import FedAttConfig, StrategyConfig
from common.posterior import Form, Gaussian, Layout, Posterior
from server.aggregation.rules import RULES, ClientSum, Setting, find_rule

find_rule("average", "encoder")  # imports all
EVERY_RULE = pytest.mark.parametrize("name", sorted(RULES))
SHAPES = {"matrix": (3, 4), "bias": (3,), "scalar": (), "conv": (2, 3, 2)}
Clients = list[tuple[Posterior, float]]


def client(seed: int) -> Posterior:
    """Return a posterior with precisions of every form; some clients have identities."""
    rng = torch.Generator().manual_seed(seed)
    arrays = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
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


def finished(name: str, total: ClientSum) -> dict[str, Tensor]:
    """Finish with attention that moves the whole way, and without noise."""
    current = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    config = StrategyConfig("x", fedatt=FedAttConfig(epsilon=1.0, noise=0.0))
    return RULES[name].finish(total, Setting(current, config, torch.Generator()))


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
def test_one_client_and_identical_clients_return_the_mean(
    name: str, weights: list[float], seed: int
) -> None:
    merged = finished(name, total_of(name, [(client(seed), weight) for weight in weights]))
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
