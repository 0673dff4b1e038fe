"""Whom the trust finds, by a predictor that is right; and the sums behind FedNova."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.clients import ClientKey
from common.config import ClientWeights, FusionRule
from common.messages import Uplink
from common.model.evidence import (
    agreement,
    agreement_size,
    evidence,
    evidence_size,
    label_sums,
    prior_of,
)
from common.model.fusion import Expert, fit_fusion
from common.task import Task
from server.aggregation.client_weights import PRIOR_ODDS, StepSums, client_weight, trust

NEUTRAL = PRIOR_ODDS / (1 + PRIOR_ODDS)


def uplink(task: Task, *, agrees: Tensor | None = None, seen: Tensor | None = None) -> Uplink:
    return Uplink(
        ClientKey("audio", 0),
        1,
        {},
        {},
        examples=12,
        train_loss=0.5,
        evidence=torch.zeros(evidence_size(task)) if seen is None else seen,
        agreement=torch.zeros(agreement_size(task)) if agrees is None else agrees,
        steps=3,
    )


# --- Trust ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_trust_is_the_prior_odds_where_nothing_speaks_for_or_against(task: Task) -> None:
    expert = Expert(slope=0.5, unexplained=0.8)
    assert trust(uplink(task), expert, 2.0, task) == pytest.approx(NEUTRAL)


@pytest.mark.parametrize("task", list(Task))
def test_trust_is_the_prior_odds_of_an_expert_that_tells_nothing(task: Task) -> None:
    agrees = torch.full((agreement_size(task),), -50.0)
    # By `agreement`, a ratio is 0 at inverse temperature 0.
    agrees[0] = -50.0 if task is Task.regression else 0.0
    found = trust(uplink(task, agrees=agrees), Expert(slope=0.0), 2.0, task)
    assert found == pytest.approx(NEUTRAL)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(("sign", "limit"), [(1, 1.0), (-1, 0.0)])
def test_trust_does_not_overflow(task: Task, sign: int, limit: float) -> None:
    agrees = torch.full((agreement_size(task),), sign * 1e300, dtype=torch.float64)
    if task is Task.regression:
        agrees[0] = 0
    found = trust(uplink(task, agrees=agrees), Expert(slope=1.0, unexplained=0.5), 1.0, task)
    assert found == pytest.approx(limit, abs=1e-9)


def test_ratio_of_numbers_is_that_of_two_gaussians() -> None:
    # y - ybar from N(b (p - pbar), s^2) against N(0, s^2).
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 30))
    slope, unexplained, variance = 0.7, 0.6, 1.9
    p, y = p - p.mean(), y - y.mean()
    ratio = (y**2 - (y - slope * p) ** 2).sum() / (2 * unexplained * variance)
    agrees = torch.tensor([(p * p).sum(), (p * y).sum()])
    expert = Expert(slope=slope, unexplained=unexplained)
    found = trust(uplink(Task.regression, agrees=agrees), expert, variance, Task.regression)
    assert math.log(found / (1 - found)) == pytest.approx(ratio + math.log(20))


MEANS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]).double()
SHARES = torch.tensor([0.5, 0.3, 0.2]).double()


def outputs_for(labels: Tensor, task: Task, seed: int) -> Tensor:
    """Observe the labels in noise; return the exact posterior, the best that there is."""
    generator = torch.Generator().manual_seed(seed)
    if task is Task.regression:  # y ~ N(0, 1), x = y + N(0, 1): the mean of y is x / 2.
        noise = torch.randn(labels.shape, generator=generator)
        return ((labels + noise) / 2)[:, None]
    if task is Task.multilabel:  # a bit in N(+-1, 1) has the logit 2 x at even odds.
        return 2 * (2 * labels - 1 + torch.randn(labels.shape, generator=generator))
    x = MEANS[labels] + torch.randn((len(labels), 3), generator=generator)
    return x @ MEANS.T - (MEANS**2).sum(dim=1) / 2 + SHARES.log()


def labels_of(task: Task, seed: int, items: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    if task is Task.regression:
        return torch.randn(items, generator=generator)
    if task is Task.multilabel:
        return torch.randint(0, 2, (items, 3), generator=generator).float()
    return torch.multinomial(SHARES, items, replacement=True, generator=generator)


def trusts(kinds: list[str], task: Task, items: int = 60) -> list[float]:
    """Let clients of some kinds validate the same predictor; return the trust in each."""
    everyone = torch.cat([labels_of(task, seed, items) for seed in range(len(kinds))])
    prior = prior_of(label_sums(everyone, task, 3), task)
    uplinks = []
    for seed, kind in enumerate(kinds):
        features_of = labels_of(task, seed, items)
        if kind == "one label":
            features_of = features_of[:1].expand_as(features_of)
        outputs, labels = outputs_for(features_of, task, seed), features_of
        if kind == "permuted":
            order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
            labels = labels[order]
        sums = label_sums(labels, task, 3)
        agrees = agreement(outputs, labels, sums, prior, task)
        seen = evidence(outputs, labels, prior, task)
        uplinks.append(uplink(task, agrees=agrees, seen=seen))
    pooled = torch.stack([each.evidence for each in uplinks]).sum(dim=0)
    rule = FusionRule.product_of_experts
    expert = fit_fusion(rule, task, prior, {"audio": pooled}).experts["audio"]
    variance = prior[1].item() if task is Task.regression else 1.0
    return [trust(each, expert, variance, task) for each in uplinks]


@pytest.mark.parametrize("task", list(Task))
def test_permuted_labels_are_found_and_sound_ones_are_trusted(task: Task) -> None:
    *sound, permuted = trusts(["sound"] * 5 + ["permuted"], task)
    assert min(sound) > 0.9
    assert permuted < 0.1


@pytest.mark.parametrize("task", list(Task))
def test_a_client_of_one_label_is_kept(task: Task) -> None:
    *sound, one, permuted = trusts(["sound"] * 5 + ["one label", "permuted"], task)
    assert min(sound) > 0.9
    assert one > 0.5
    assert permuted < 0.1


@pytest.mark.parametrize("task", list(Task))
def test_a_client_without_validation_items_is_kept(task: Task) -> None:
    labels = labels_of(task, 0, 50)
    sums = label_sums(labels, task, 3)
    prior = prior_of(sums, task)
    agrees = agreement(outputs_for(labels[:0], task, 0), labels[:0], sums, prior, task)
    assert trust(uplink(task, agrees=agrees), Expert(), 1.0, task) == pytest.approx(NEUTRAL)


# --- Weights ----------------------------------------------------------------------------------


@given(
    rule=st.sampled_from(list(ClientWeights)),
    trusted=st.floats(0, 1),
    examples=st.integers(1, 10**9),
)
def test_weights_are_positive_and_finite(
    rule: ClientWeights, trusted: float, examples: int
) -> None:
    plain = uplink(Task.regression)
    counted = Uplink(**{**vars(plain), "examples": examples})
    assert 0 < client_weight(counted, rule, trusted) < math.inf


def test_weights_are_what_their_rules_say() -> None:
    weights = {rule: client_weight(uplink(Task.regression), rule, 0.25) for rule in ClientWeights}
    assert weights == {
        ClientWeights.examples: 12,
        ClientWeights.uniform: 1,
        ClientWeights.agreement: 3,
    }


# --- Steps ------------------------------------------------------------------------------------

clients = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 500)), min_size=1, max_size=6)


def sum_of(pairs: list[tuple[float, int]]) -> StepSums:
    total = StepSums()
    for weight, steps in pairs:
        total = total.add(weight, steps)
    return total


@given(pairs=clients, others=clients)
def test_steps_are_summed_in_any_order_and_grouping(
    pairs: list[tuple[float, int]], others: list[tuple[float, int]]
) -> None:
    grouped = sum_of(pairs).merge(sum_of(others))
    assert grouped.scale() == pytest.approx(sum_of((pairs + others)[::-1]).scale())
    assert StepSums().merge(grouped) == grouped == grouped.merge(StepSums())


@given(pairs=clients)
def test_scale_is_the_effective_number_of_steps_over_the_typical_one(
    pairs: list[tuple[float, int]],
) -> None:
    weights, steps = np.array(pairs).T
    p = weights / weights.sum()
    # tau over the harmonic mean of steps; by Jensen's inequality at least 1.
    assert sum_of(pairs).scale() == pytest.approx((p @ steps) * (p @ (1 / steps)))
    assert sum_of(pairs).scale() > 1 - 1e-12


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), steps=st.integers(1, 500))
def test_scale_of_equal_steps_is_1(weights: list[float], steps: int) -> None:
    assert sum_of([(weight, steps) for weight in weights]).scale() == pytest.approx(1, abs=1e-12)
