"""Whom the trust finds, by a predictor that is right; and the sums behind FedNova."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from updates import uplink

from common.config import ClientWeights
from common.messages import Uplink
from common.model.calibration import (
    agreement_size,
    calibration_size,
    calibration_sums,
    label_agreement,
    label_sums,
    prior_of,
)
from common.task import Task
from server.aggregation.client_weights import PRIOR_ODDS, StepSums, client_weight, trust_clients

MEANS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]).double()
SHARES = torch.tensor([0.5, 0.3, 0.2]).double()


def update(task: Task, *, agrees: Tensor | None = None, seen: Tensor | None = None) -> Uplink:
    return uplink(
        "audio-0",
        calibration_sums=torch.zeros(calibration_size(task)) if seen is None else seen,
        label_agreement=torch.zeros(agreement_size(task)) if agrees is None else agrees,
    )


# --- Trust ------------------------------------------------------------------------------------

#: Prior of labels that no test cares for.
PRIORS = {
    Task.regression: torch.tensor([0.0, 1.0], dtype=torch.float64),
    Task.classification: SHARES.log(),
    Task.multilabel: torch.zeros(3, dtype=torch.float64),
}


@pytest.mark.parametrize("task", list(Task))
def test_trust_is_the_prior_odds_where_nothing_speaks_and_does_not_overflow(task: Task) -> None:
    found = trust_clients([update(task)] * 3, PRIORS[task], task)
    assert found == pytest.approx([PRIOR_ODDS / (1 + PRIOR_ODDS)] * 3)
    for sign, limit in ((1, 1.0), (-1, 0.0)) if task is not Task.regression else ():
        agrees = torch.full((agreement_size(task),), sign * 1e300, dtype=torch.float64)
        found = trust_clients([update(task, agrees=agrees)], PRIORS[task], task)
        assert found == pytest.approx([limit], abs=1e-9)


@given(numbers=st.lists(st.floats(-1e99, 1e99), min_size=6, max_size=6), alone=st.booleans())
@example(numbers=[1, 0, 1e-90, 0, 1, 1e99], alone=True)
@example(numbers=[1, 0, 1e-200, 0, 1, 1e-90], alone=True)
@example(numbers=[1, 0, 1, 0, 5e-324, 5e-324], alone=True)
@example(numbers=[5e-324, 0, 1, 0, 1, 1], alone=True)
def test_no_evidence_of_numbers_breaks_the_trust(numbers: list[float], alone: bool) -> None:
    task = Task.regression
    odd = update(task, seen=torch.tensor(numbers, dtype=torch.float64))
    sound = update(task, seen=torch.tensor([80, 0, 80, 0, 40, 40], dtype=torch.float64))
    found = trust_clients([odd] if alone else [sound, odd, sound], PRIORS[task], task)
    assert all(0 <= trust <= 1 for trust in found)


def test_ratio_of_numbers_is_that_of_two_gaussians() -> None:
    # p - pbar from N(b (y - ybar), s^2) against N(0, s^2), b and s^2 of all clients, weighted.
    rng = np.random.default_rng(0)
    clients = []
    for slope in (0.6, 0.4, -0.2):
        y, noise = rng.normal(size=(2, 30))
        clients.append((y, slope * y + noise))
    everyone = np.concatenate(clients, axis=1)
    trusts = np.ones(3)
    for _ in range(2):
        (yy, py), (_, pp) = np.cov(everyone, ddof=0, aweights=np.repeat(trusts, 30))
        slope, noise = py / yy, pp - py**2 / yy
        centred = [each - np.mean(each, axis=1, keepdims=True) for each in map(np.stack, clients)]
        ratios = [(p**2 - (p - slope * y) ** 2).sum() / (2 * noise) for y, p in centred]
        trusts = PRIOR_ODDS / (PRIOR_ODDS + np.exp(-np.array(ratios)))
    task, prior = Task.regression, PRIORS[Task.regression]
    drawn = [(torch.from_numpy(p)[:, None], torch.from_numpy(y)) for y, p in clients]
    uplinks = [update(task, seen=calibration_sums(*pair, prior, task)) for pair in drawn]
    assert trust_clients(uplinks, prior, task) == pytest.approx(trusts)
    assert trusts.max() - trusts.min() > 0.1


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


def trusts(kinds: list[str], task: Task, items: int = 60, sharpness: float = 1.0) -> list[float]:
    """Let clients of some kinds validate the same predictor; return the trust in each.

    The predictor's outputs are those of a perfect one times `sharpness`: at 0 they tell nothing,
    and above 1 they are too sure.
    """
    everyone = torch.cat([labels_of(task, seed, items) for seed in range(len(kinds))])
    prior = prior_of(label_sums(everyone, task, 3), task)
    uplinks = []
    for seed, kind in enumerate(kinds):
        labels = labels_of(task, seed, items)
        if kind == "one label":
            labels = labels[:1].expand_as(labels)
        outputs = sharpness * outputs_for(labels, task, seed)
        if kind == "permuted":
            order = torch.Generator().manual_seed(200 + seed)  # not that of the noise
            labels = labels[torch.randperm(items, generator=order)]
        validated = slice(0 if kind == "no items" else None)
        outputs, seen = outputs[validated], labels[validated]
        agrees = label_agreement(outputs, seen, label_sums(labels, task, 3), prior, task)
        sums = calibration_sums(outputs, seen, prior, task)
        uplinks.append(update(task, agrees=agrees, seen=sums))
    return trust_clients(uplinks, prior, task)


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("single", [[], ["one label"]], ids=str)
def test_permuted_labels_are_found_and_sound_or_single_ones_are_trusted(
    single: list[str], task: Task, sharpness: float
) -> None:
    found = trusts(["sound"] * 5 + single + ["permuted"], task, sharpness=sharpness)
    assert min(found[:5]) > 0.9
    assert all(trust > 0.5 for trust in found[5:-1])
    assert found[-1] < 0.1


@pytest.mark.parametrize("task", list(Task))
def test_nobody_is_suspected_by_a_model_that_tells_nothing_or_by_himself(task: Task) -> None:
    for last in ("sound", "permuted"):
        assert min(trusts(["sound"] * 5 + [last], task, sharpness=0.0)) > 0.9
    for kind in ("sound", "permuted", "one label", "no items"):
        assert min(trusts([kind], task)) > 0.5


# --- Weights ----------------------------------------------------------------------------------


def test_weights_are_what_their_rules_say() -> None:
    weights = [client_weight(update(Task.regression), rule, 0.25) for rule in ClientWeights]
    expected = {"examples": 12, "uniform": 1, "agreement": 3}
    assert dict(zip(ClientWeights, weights, strict=True)) == expected


# --- Steps ------------------------------------------------------------------------------------

clients = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 500)), min_size=1, max_size=6)


def sum_of(pairs: list[tuple[float, int]]) -> StepSums:
    total = StepSums()
    for weight, steps in pairs:
        total = total.add(weight, steps)
    return total


@given(pairs=clients, others=clients)
def test_scale_is_the_effective_number_of_steps_over_the_typical_one_in_any_grouping(
    pairs: list[tuple[float, int]], others: list[tuple[float, int]]
) -> None:
    weights, steps = np.array(pairs + others).T
    p = weights / weights.sum()
    grouped = sum_of(others).merge(sum_of(pairs))
    # tau over the harmonic mean of steps; by Jensen's inequality at least 1.
    assert grouped.scale() == pytest.approx((p @ steps) * (p @ (1 / steps)))
    assert grouped.scale() > 1 - 1e-12
    assert StepSums().merge(grouped) == grouped == grouped.merge(StepSums())
