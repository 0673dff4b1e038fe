"""Fusion against the Bayesian posterior, a loop over steps, and simulated experts."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config import FusionRule
from common.model.calibration import (
    calibration_sums,
    label_sums,
    no_calibration_sums,
    prior_of,
    standardise,
)
from common.model.fusion import (
    PSEUDO_ITEMS,
    Expert,
    Fusion,
    deviation_of_seen_experts,
    fit_fusion,
    fuse_encodings,
    product_of_gaussians,
    product_of_scores,
    reliability_weights,
)
from common.task import Task

PRIOR_MEAN, PRIOR_VARIANCE = 0.7, 2.5
CLASSES = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_an_absent_modality_gives_does_not_leak(garbage: float) -> None:
    present = torch.tensor([[True], [False]])
    means, shares = torch.tensor([[1.5], [garbage]]), torch.tensor([0.81, 0.5])
    mean, std = product_of_gaussians(means, shares, present, PRIOR_MEAN, PRIOR_VARIANCE)
    assert (mean.item(), std.item()) == pytest.approx((1.5, 0.9))
    scores = torch.randn(2, 1, CLASSES, generator=generator()).log_softmax(dim=2)
    scores[1] = garbage
    found = product_of_scores(scores, present, torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    torch.testing.assert_close(found, scores[0])


def test_only_experts_that_were_fitted_to_items_make_a_number_surer() -> None:
    experts = {
        name: Expert(unexplained=share, count=count)
        for name, share, count in (("a", 0.5, 0.0), ("b", 0.2, 9.0), ("c", 0.1, 9.0))
    }
    fusion = Fusion(FusionRule.reliability, Task.regression, (PRIOR_MEAN, PRIOR_VARIANCE), experts)
    # By name: a alone; a and b; b and c. Each fitted one adds 1/unexplained - 1.
    present = torch.tensor([[False, True, True], [True, True, False], [False, False, True]])
    found = deviation_of_seen_experts(fusion, ["b", "a", "c"], present)
    expected = [math.sqrt(1 / share) for share in (1, 1 + 4, 1 + 4 + 9)]
    assert found.tolist() == pytest.approx(expected)


def telling_encodings(lengths: dict[str, list[int]]) -> dict[str, Tensor]:
    """Build (B, T_m, 2) encodings that say modality and step counted from the end; NaN beyond."""
    encodings = {}
    for modality, (name, own) in enumerate(lengths.items(), start=1):
        encoding = torch.full((len(own), max(*own, 1), 2), math.nan)
        for item, length in enumerate(own):
            for step in range(length):
                encoding[item, step] = torch.tensor([10.0**modality, step - length])
        encodings[name] = encoding
    return encodings


def fuse(lengths: dict[str, list[int]], encodings: dict, weights: dict) -> tuple[Tensor, Tensor]:
    return fuse_encodings(encodings, {n: torch.tensor(own) for n, own in lengths.items()}, weights)


def fuse_one(encodings: dict, lengths: dict, item: int, weights: dict) -> Tensor:
    """Fuse one item, step by step from the last."""
    steps = []
    for back in range(1, max(own[item] for own in lengths.values()) + 1):
        having = [name for name, own in lengths.items() if own[item] >= back]
        total = sum(weights[name] for name in having)
        rows = [weights[n] / total * encodings[n][item, lengths[n][item] - back] for n in having]
        steps.insert(0, torch.stack(rows).sum(dim=0))
    return torch.stack(steps)


def per_modality(modalities: int) -> st.SearchStrategy:
    """Draw some items' lengths, not all 0, and weights."""
    item = st.lists(st.integers(0, 5), min_size=modalities, max_size=modalities).filter(any)
    weights = st.lists(st.floats(0.01, 5.0), min_size=modalities, max_size=modalities)
    return st.tuples(st.lists(item, min_size=1, max_size=4), weights)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4).flatmap(per_modality))
def test_fusing_equals_a_loop_over_items_and_steps(drawn: tuple) -> None:
    by_item, weights_drawn = drawn
    names = [f"m{index}" for index in range(len(weights_drawn))]
    lengths = {name: [item[k] for item in by_item] for k, name in enumerate(names)}
    weights = dict(zip(names, weights_drawn, strict=True))
    encodings = telling_encodings(lengths)
    fused, fused_lengths = fuse(lengths, encodings, weights)
    assert fused_lengths.tolist() == [max(item) for item in by_item]
    for item, length in enumerate(fused_lengths.tolist()):
        expected = fuse_one(encodings, lengths, item, weights)
        torch.testing.assert_close(fused[item, :length], expected, rtol=1e-5, atol=1e-5)
    assert fused.isfinite().all()


def test_no_gradient_reaches_what_is_absent() -> None:
    lengths = {"a": [3, 1], "b": [0, 2]}
    encodings = {n: values.requires_grad_() for n, values in telling_encodings(lengths).items()}
    fused, _ = fuse(lengths, encodings, {"a": 0.5, "b": 0.5})
    fused.sum().backward()
    assert encodings["a"].grad[:, :, 0].tolist() == [[1.0, 1.0, 1.0], [0.5, 0.0, 0.0]]
    assert encodings["b"].grad[:, :, 0].tolist() == [[0.0, 0.0], [1.0, 0.5]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=5), st.floats(0, 1e6))
@example([0.0, 0.0], 50.0)
@example([0.5, 0.1, 0.2], 0.0)
@example([0.01, 0.0], 100.0)
def test_weights_go_from_uniform_to_the_shares_of_information(
    information: list[float], count: float
) -> None:
    experts = {f"m{k}": Expert(information=each, count=count) for k, each in enumerate(information)}
    weights = list(reliability_weights(experts).values())
    total, uniform = sum(information), np.full(len(information), 1 / len(information))
    shares = np.array(information) / total if total else uniform
    # Half of the way at an evidence of one.
    way = count * total / (1 + count * total)
    assert weights == pytest.approx(way * shares + (1 - way) * uniform)
    assert all(weight > 0 for weight in weights)


def fit_line(predictions: Tensor, labels: Tensor) -> Expert:
    return fit_expert(predictions[:, None], labels, Task.regression)


def with_pseudo_items(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return items, and their weights, that stand for the belief before any item is seen.

    Four corners (predicted low or high, label low or high), as often as gives the correlation. The
    labels are standardised.
    """
    spread = predictions.std()
    trusted = 0.5 * min(spread**2, 1) / spread
    signs = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    shares = np.array([1 + trusted, 1 + trusted, 1 - trusted, 1 - trusted]) / 4
    return (
        np.concatenate([predictions, predictions.mean() + spread * signs[:, 0]]),
        np.concatenate([labels, signs[:, 1]]),
        np.concatenate([np.ones(len(labels)), PSEUDO_ITEMS * shares]),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(4, 60))
def test_a_line_equals_least_squares_with_pseudo_items(seed: int, items: int) -> None:
    source = np.random.default_rng(seed)
    predictions = source.normal(1.0, 2.0, items)
    labels = -0.5 + 1.5 * predictions + source.normal(0.0, 1.0, items)
    expert = fit_line(torch.tensor(predictions), torch.tensor(labels))
    x, y, weights = with_pseudo_items(predictions, (labels - labels.mean()) / labels.std())
    line = np.polyfit(x, y, 1, w=np.sqrt(weights))
    assume(line[0] > 0)
    total = items + PSEUDO_ITEMS
    residual = weights @ (y - np.polyval(line, x)) ** 2 / (total - 2)
    variance = weights @ (y - np.average(y, weights=weights)) ** 2 / (total - 1)
    np.testing.assert_allclose([expert.slope, expert.intercept], line, rtol=1e-5, atol=1e-6)
    assert expert.unexplained == pytest.approx(np.clip(residual / variance, 1e-3, 1), rel=1e-6)
    assert expert.information == pytest.approx(1 / expert.unexplained - 1)
    assert expert.count == items


@pytest.mark.parametrize(
    "predictions",
    [[3.0, 2.0, 1.0, 0.0], [0.1] * 4, [1000.1] * 4],
    ids=["negative correlation", "constant", "constant and large"],
)
def test_predictions_that_tell_nothing_become_the_mean_label(predictions: list[float]) -> None:
    expert = fit_line(torch.tensor(3 * predictions), torch.tensor(3 * [0.0, 1.0, 2.0, 4.0]))
    assert (expert.intercept, expert.slope) == (0, 0)
    assert (expert.unexplained, expert.count) == (1.0, 12)
    assert expert.information == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1e-8, 1e-4, 1e4]))
def test_how_predictions_are_scaled_matters_to_nothing_but_the_slope(
    seed: int, unit: float
) -> None:
    """But for the belief before any item is seen, which is in units of the label."""
    source = np.random.default_rng(seed)
    labels = torch.from_numpy(source.normal(size=5000))
    predictions = labels + torch.from_numpy(source.normal(size=5000))
    one, other = fit_line(predictions, labels), fit_line(unit * predictions, labels)
    assert other.slope * unit == pytest.approx(one.slope, rel=0.01)
    assert other.unexplained == pytest.approx(one.unexplained, rel=0.01)


def test_extremes_stay_finite() -> None:
    # Labels that are all equal are 0; the belief of ten items is left.
    constant = fit_line(torch.tensor([0.0, 1.0, 2.0]), torch.full((3,), 0.1))
    assert constant.intercept + constant.slope * 1.0 == pytest.approx(0)
    assert 0 < constant.slope <= 0.5 and 0 < constant.information < 0.5
    labels = torch.arange(10_000.0)
    perfect = fit_line(2 * labels + 1, labels)
    assert perfect.slope * labels.std().item() == pytest.approx(0.5, rel=0.01)
    assert 300 < perfect.information <= 999


def test_without_items_a_line_is_modest_and_logits_are_left_as_they_are() -> None:
    expert = fit_line(torch.empty(0), torch.empty(0))
    assert (expert.slope, expert.count) == (0.5, 0)
    assert 0 < expert.information < 0.5
    expert = fit_expert(torch.empty(0, 3), torch.empty(0).long(), Task.classification)
    assert expert == Expert(slope=1.0, information=0.0, count=0.0)


def fit_expert(outputs: Tensor, labels: Tensor, task: Task) -> Expert:
    prior = prior_of(label_sums(labels, task, outputs.shape[1]), task)
    standard = torch.from_numpy(standardise(labels.numpy(), prior, task))
    sums = calibration_sums(outputs, standard, prior, task)
    return fit_fusion(FusionRule.auto, task, prior, {"a": sums}).experts["a"]


def simulated_classes(items: int = 4000) -> tuple[Tensor, Tensor]:
    """Draw true log-posteriors and labels from them."""
    scores = (2 * torch.randn(items, CLASSES, generator=generator())).log_softmax(dim=1)
    return scores, torch.multinomial(scores.exp(), 1, generator=generator(1))[:, 0]


@pytest.mark.parametrize(
    ("confidence", "slope"), [(4.0, 0.25), (2.0, 0.5), (1.0, 1.0), (0.5, 2.0), (0.1, 2.0)]
)
def test_the_temperature_undoes_false_confidence(confidence: float, slope: float) -> None:
    scores, labels = simulated_classes()
    assert fit_expert(confidence * scores, labels, Task.classification).slope == slope


def test_the_information_is_twice_the_gain_over_the_prior() -> None:
    scores, labels = simulated_classes()
    expert = fit_expert(scores, labels, Task.classification)
    shares = np.bincount(labels, minlength=CLASSES) / len(labels)
    entropy = -(shares * np.log(shares)).sum()
    loss = -scores[torch.arange(len(labels)), labels].mean().item()
    assert expert.information == pytest.approx(2 * (entropy - loss), rel=1e-3)
    assert expert.count == len(labels)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_noise_is_tempered_away(task: Task) -> None:
    outputs = 2 * torch.randn(4000, CLASSES, generator=generator())
    if task is Task.classification:
        labels = torch.randint(CLASSES, (4000,), generator=generator(1))
    else:
        labels = torch.rand(4000, CLASSES, generator=generator(1)).lt(0.3).float()
    expert = fit_expert(outputs, labels, task)
    assert (expert.slope, expert.information) == (0.0, 0.0)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", list(FusionRule))
def test_a_rule_is_chosen_weighs_to_one_and_survives_json(rule: FusionRule, task: Task) -> None:
    outputs = torch.randn(30, 3, generator=generator())
    labels = {
        Task.regression: outputs[:, 0] + 1,
        Task.classification: outputs.argmax(dim=1),
        Task.multilabel: (outputs > 0).float(),
    }[task]
    prior = prior_of(label_sums(labels, task, 3), task)
    sums = {"a": calibration_sums(outputs, labels, prior, task), "b": no_calibration_sums(task)}
    fusion = fit_fusion(rule, task, prior, sums)
    assert fusion.rule is (FusionRule.calibrated if rule is FusionRule.auto else rule)
    weights = fusion.weights
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["a"] == weights["b"] if rule is FusionRule.mean else weights["a"] > weights["b"]
    rebuilt = Fusion.from_dict(json.loads(json.dumps(fusion.to_dict())))
    assert rebuilt == fusion
    assert isinstance(rebuilt.rule, FusionRule) and isinstance(rebuilt.task, Task)
