"""Pooled sums for linear experts: exact for sites alike, bounded whatever one site sends."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.model.linear import LinearSums, fit_linear, label_columns
from common.task import Task
from server.aggregation.bounds import KAPPA, REACH, most_examples
from server.aggregation.linear_sums import bounded, pool_linear_sums

F = 4
UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)


def items(seed: int, count: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = shift + rng.normal(size=(count, F))
    y = x @ rng.normal(size=F) + rng.normal(size=count)
    return torch.from_numpy(x), torch.from_numpy(y[:, None])


def site(seed: int, count: int = 50, shift: float = 0.0) -> LinearSums:
    return LinearSums.of(*items(seed, count, shift))


def assert_same(found: LinearSums, expected: LinearSums) -> None:
    assert found.count == expected.count
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)


def test_sites_that_are_alike_are_pooled_exactly() -> None:
    parts = [items(seed, count) for seed, count in enumerate((30, 60, 45, 100))]
    everyone = LinearSums.of(*(torch.cat(part) for part in zip(*parts, strict=True)))
    found = pool_linear_sums([LinearSums.of(*part) for part in parts], Task.regression)
    assert_same(found, everyone)


@pytest.mark.parametrize("count", [1, 5, 10**6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_of_one_site_or_two_nothing_is_taken(count: int, scale: float, shift: float) -> None:
    odd = site(1, 50).scaled(torch.full((F + 1,), shift).double(), torch.full((F + 1,), scale))
    odd = replace(odd, count=float(count))
    assert_same(pool_linear_sums([odd], Task.regression), odd)
    assert_same(pool_linear_sums([odd, site(2)], Task.regression), odd.merge(site(2)))


def test_classes_stay_as_they_are_where_each_site_has_one() -> None:
    sites = []
    for label in range(5):
        columns = label_columns(torch.full((20,), label), Task.classification, 5)
        sites.append(LinearSums.of(items(label, 20)[0], columns))
    pooled = pool_linear_sums(sites, Task.classification)
    torch.testing.assert_close(pooled.mean[F:], torch.full((5,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(
        pooled.of_labels, (100 * (torch.eye(5) / 5 - 1 / 25)).double(), atol=1e-9, rtol=0
    )


def test_a_site_counts_at_most_in_proportion() -> None:
    usual = [site(seed) for seed in range(4)]
    large = replace(site(9), count=1e9, scatter=2e7 * site(9).scatter)
    pooled = pool_linear_sums([*usual, large], Task.regression, most=most_examples([50] * 5))
    assert pooled.count == 4 * 50 + KAPPA * 50
    for other in range(1, 4):
        far = usual[0].scaled(usual[0].mean + 10.0**other, torch.ones(F + 1))
        found = pool_linear_sums([*usual, far], Task.regression)
        bound = REACH * 2  # deviations of a feature are about 1, of the label at most 4
        assert (found.mean[:F].abs() < bound).all()


@pytest.mark.parametrize("honest", [0, 1, 2])
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_the_coordinators_own_items_bound_even_the_only_site(honest: int, size: float) -> None:
    own, liar = site(8, 200), site(9).scaled(torch.full((F + 1,), size), torch.ones(F + 1) * size)
    everyone = [*(site(seed) for seed in range(honest)), liar.scaled(liar.mean, torch.ones(F + 1))]
    found = list(bounded(everyone, Task.regression, own))[-1]
    deviation = (own.scatter.diagonal() / own.count).sqrt()
    assert ((found.mean - own.mean).abs() <= 1.1 * REACH * deviation).all()
    traces = [(each.scatter.diagonal() / each.count)[:F].sum() for each in (found, own)]
    assert traces[0] <= 1.1 * KAPPA * traces[1]


def hostile(seed: int, kind: str, size: float) -> LinearSums:
    """Sums that are possible, and made to do harm."""
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.normal(size=(int(rng.integers(1, F + 2)), F + 1)))
    scatter = {
        # Every feature with the label, against the others.
        "aligned": torch.ones(F + 1, F + 1, dtype=torch.float64),
        "random": vectors.T @ vectors,
        "label": torch.diag(torch.tensor([0.0] * F + [1.0], dtype=torch.float64)),
        "nothing": torch.zeros(F + 1, F + 1, dtype=torch.float64),
    }[kind]
    mean = torch.from_numpy(rng.normal(size=F + 1)) * size
    return LinearSums(float(rng.integers(1, 10**9)), mean, scatter * size**2, F)


@given(
    honest=st.lists(st.integers(20, 60), min_size=3, max_size=6),
    kinds=st.lists(st.sampled_from(["aligned", "random", "label", "nothing"]), max_size=2),
    size=st.sampled_from([1e-3, 1.0, 1e3, 1e9]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_outputs_on_honest_items_are_bounded_by_the_labels_scatter(
    honest: list[int], kinds: list[str], size: float, seed: int
) -> None:
    """The equation of SECURITY.md."""
    x, labels = items(seed, sum(honest))
    parts = list(zip(x.split(honest), labels.split(honest), strict=True))
    sites = [LinearSums.of(*part) for part in parts]
    attacks = [hostile(seed + place, kind, size) for place, kind in enumerate(kinds)]
    everyone = [*sites, *attacks]
    most = most_examples([int(each.count) for each in everyone])
    entering = list(bounded(everyone, Task.regression, most=most))
    pooled = pool_linear_sums(everyone, Task.regression, most=most)
    fitted = fit_linear(pooled, Task.regression, UNIT)
    weight = fitted.weight[:, 0]
    mean, total = pooled.mean[F].item(), pooled.of_labels[0, 0].item()
    # Of the honest sites as they enter the pool.
    ours = reduce(LinearSums.merge, entering[: len(sites)])
    level = (ours.mean[:F] @ weight + fitted.bias).item() - mean
    energy = (weight @ ours.of_features @ weight).item() + ours.count * level**2
    assert energy <= total * (1 + 1e-6) + 1e-6
    # Of their items, where they enter it whole.
    pairs = list(zip(entering, sites, strict=False))
    if all(torch.equal(e.scatter, s.scatter) and torch.equal(e.mean, s.mean) for e, s in pairs):
        outputs = x @ weight + fitted.bias
        assert ((outputs - mean) ** 2).sum().item() <= total * (1 + 1e-6) + 1e-6
    # And that scatter is bounded by the honest sites' own.
    largest = max(
        (own.of_labels[0, 0] / own.count + (own.mean[F] - other.mean[F]) ** 2).item()
        for own in sites
        for other in sites
    )
    count = len(labels) + len(attacks) * KAPPA * max(honest)
    assert total <= count * (KAPPA + REACH**2) * largest * (1 + 1e-6)
