"""Fusion against the Bayesian posterior, a loop over steps, and simulated experts."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config import FusionRule
from common.model.calibration import calibration_sums, label_sums, no_calibration_sums, prior_of
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
def test_what_an_absent_modality_predicts_does_not_leak(garbage: float) -> None:
    mean, std = product_of_gaussians(
        torch.tensor([[1.5], [garbage]]),
        torch.tensor([0.81, 0.5]),
        torch.tensor([[True], [False]]),
        PRIOR_MEAN,
        PRIOR_VARIANCE,
    )
    assert (mean.item(), std.item()) == pytest.approx((1.5, 0.9))


def test_what_an_absent_modality_scores_does_not_leak() -> None:
    scores = torch.randn(2, 1, CLASSES, generator=generator()).log_softmax(dim=2)
    scores[1] = math.nan
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    found = product_of_scores(scores, torch.tensor([[True], [False]]), prior)
    torch.testing.assert_close(found, scores[0])


def test_only_experts_that_were_fitted_to_items_make_a_number_surer() -> None:
    experts = {
        name: Expert(unexplained=share, count=count)
        for name, share, count in (("a", 0.5, 0.0), ("b", 0.2, 9.0), ("c", 0.1, 9.0))
    }
    prior = (PRIOR_MEAN, PRIOR_VARIANCE)
    fusion = Fusion(FusionRule.reliability, Task.regression, prior, experts)
    present = torch.tensor([[True, True, False], [True, False, True], [False, False, True]])
    # In the order of the names given: a alone; a and b; b and c. Each adds 1/unexplained - 1.
    found = deviation_of_seen_experts(fusion, ["b", "a", "c"], present[[1, 0, 2]])
    shares = [1 + 4, 1, 1 + 4 + 9]
    assert found.tolist() == pytest.approx([math.sqrt(PRIOR_VARIANCE / each) for each in shares])


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


def fuse(
    lengths: dict[str, list[int]], encodings: dict[str, Tensor], weights: dict[str, float]
) -> tuple[Tensor, Tensor]:
    as_tensors = {name: torch.tensor(own) for name, own in lengths.items()}
    return fuse_encodings(encodings, as_tensors, weights)


def fuse_one(
    encodings: dict[str, Tensor], lengths: dict[str, list[int]], item: int, weights: dict
) -> Tensor:
    """Fuse one item, step by step from the last."""
    steps = []
    for back in range(1, max(own[item] for own in lengths.values()) + 1):
        having = [name for name, own in lengths.items() if own[item] >= back]
        total = sum(weights[name] for name in having)
        rows = [
            weights[name] / total * encodings[name][item, lengths[name][item] - back]
            for name in having
        ]
        steps.insert(0, torch.stack(rows).sum(dim=0))
    return torch.stack(steps)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda modalities: st.tuples(
            st.lists(
                st.lists(st.integers(0, 5), min_size=modalities, max_size=modalities).filter(any),
                min_size=1,
                max_size=4,
            ),
            st.lists(st.floats(0.01, 5.0), min_size=modalities, max_size=modalities),
        )
    )
)
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
    encodings = {
        name: values.requires_grad_() for name, values in telling_encodings(lengths).items()
    }
    fused, _ = fuse(lengths, encodings, {"a": 0.5, "b": 0.5})
    fused.sum().backward()
    assert encodings["a"].grad[:, :, 0].tolist() == [[1.0, 1.0, 1.0], [0.5, 0.0, 0.0]]
    assert encodings["b"].grad[:, :, 0].tolist() == [[0.0, 0.0], [1.0, 0.5]]


def experts(information: list[float], count: float = 50.0) -> dict[str, Expert]:
    return {
        f"m{index}": Expert(information=value, count=count)
        for index, value in enumerate(information)
    }


informations = st.lists(st.floats(0, 100), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(informations, st.floats(0, 1e6))
def test_weights_are_positive_and_sum_to_one(information: list[float], count: float) -> None:
    weights = reliability_weights(experts(information, count)).values()
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight > 0 for weight in weights)


@pytest.mark.parametrize("modalities", [1, 2, 5])
def test_without_evidence_weights_are_uniform(modalities: int) -> None:
    for silent in (experts([0.0] * modalities), experts([0.5] * modalities, count=0.0)):
        assert list(reliability_weights(silent).values()) == pytest.approx(
            [1 / modalities] * modalities
        )


def test_weights_tend_to_the_share_of_information() -> None:
    information = [0.2, 0.6, 1.2]
    shares = np.array(information) / 2.0
    distances = [
        np.abs(list(reliability_weights(experts(information, count)).values()) - shares).max()
        for count in (0.0, 1.0, 10.0, 100.0, 1e9)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] == pytest.approx(0.6 - 1 / 3)
    assert distances[-1] < 1e-6


def test_the_shrinkage_is_one_half_at_an_evidence_of_one() -> None:
    weights = reliability_weights(experts([0.01, 0.0], count=100.0))
    assert list(weights.values()) == pytest.approx([0.5 * 0.5 + 0.5, 0.5 * 0.5])


def fit_line(predictions: Tensor, labels: Tensor) -> Expert:
    prior = prior_of(label_sums(labels, Task.regression, 1), Task.regression)
    sums = calibration_sums(predictions[:, None], labels, prior, Task.regression)
    return fit_fusion(FusionRule.reliability, Task.regression, prior, {"a": sums}).experts["a"]


@pytest.mark.parametrize("task", list(Task))
def test_auto_chooses_by_task(task: Task) -> None:
    sums = {"a": no_calibration_sums(task)}
    numbers = task is Task.regression
    expected = FusionRule.reliability if numbers else FusionRule.product_of_experts
    assert fit_fusion(FusionRule.auto, task, torch.zeros(2), sums).rule is expected
    assert fit_fusion(FusionRule.mean, task, torch.zeros(2), sums).rule is FusionRule.mean


def with_pseudo_items(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return items, and their weights, that stand for the belief before any item is seen.

    Four corners (predicted low or high, label low or high), as often as gives the correlation.
    """
    spread, deviation = predictions.std(), labels.std()
    trusted = 0.5 * min(spread**2, deviation**2) / (spread * deviation)
    signs = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    shares = np.array([1 + trusted, 1 + trusted, 1 - trusted, 1 - trusted]) / 4
    return (
        np.concatenate([predictions, predictions.mean() + spread * signs[:, 0]]),
        np.concatenate([labels, labels.mean() + deviation * signs[:, 1]]),
        np.concatenate([np.ones(len(labels)), PSEUDO_ITEMS * shares]),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(4, 60))
def test_a_line_equals_least_squares_with_pseudo_items(seed: int, items: int) -> None:
    source = np.random.default_rng(seed)
    predictions = source.normal(1.0, 2.0, items)
    labels = -0.5 + 1.5 * predictions + source.normal(0.0, 1.0, items)
    expert = fit_line(torch.tensor(predictions), torch.tensor(labels))
    x, y, weights = with_pseudo_items(predictions, labels)
    line = np.polyfit(x, y, 1, w=np.sqrt(weights))
    assume(line[0] > 0)
    total = items + PSEUDO_ITEMS
    residual = weights @ (y - np.polyval(line, x)) ** 2 / (total - 2)
    variance = weights @ (y - np.average(y, weights=weights)) ** 2 / (total - 1)
    np.testing.assert_allclose([expert.slope, expert.intercept], line, rtol=1e-6)
    assert expert.unexplained == pytest.approx(np.clip(residual / variance, 1e-3, 1), rel=1e-6)
    assert expert.information == pytest.approx(1 / expert.unexplained - 1)
    assert expert.count == items


def test_the_information_is_the_ratio_of_signal_to_noise() -> None:
    labels = torch.randn(50_000, generator=generator()).double()
    predictions = labels + 2.0 * torch.randn(50_000, generator=generator(1)).double()
    assert fit_line(predictions, labels).information == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    "predictions",
    [[3.0, 2.0, 1.0, 0.0], [0.1] * 4, [1000.1] * 4],
    ids=["negative correlation", "constant", "constant and large"],
)
def test_predictions_that_tell_nothing_become_the_mean_label(predictions: list[float]) -> None:
    expert = fit_line(torch.tensor(predictions), torch.tensor([0.0, 1.0, 2.0, 4.0]))
    assert expert.intercept + expert.slope * predictions[0] == pytest.approx(1.75)
    assert expert.unexplained == 1.0
    assert expert.information == pytest.approx(0.0, abs=1e-9)
    assert expert.count == 4


def test_constant_labels_leave_the_constant() -> None:
    expert = fit_line(torch.tensor([0.0, 1.0, 2.0]), torch.full((3,), 0.1))
    assert expert.slope == pytest.approx(0.0, abs=1e-5)
    assert expert.intercept == pytest.approx(0.1, rel=1e-4)
    assert expert.information == pytest.approx(0.0, abs=1e-5)


def test_perfect_predictions_have_large_but_finite_information() -> None:
    labels = torch.arange(10_000.0)
    expert = fit_line(2 * labels + 1, labels)
    assert expert.slope == pytest.approx(0.5, rel=0.01)
    assert 300 < expert.information <= 999


def test_without_items_every_expert_is_the_same_modest_one() -> None:
    expert = fit_line(torch.empty(0), torch.empty(0))
    assert (expert.slope, expert.count) == (0.5, 0)
    assert 0 < expert.information < 0.5


def fit_temperature(
    outputs: Tensor, labels: Tensor, task: Task, prior: Tensor | None = None
) -> Expert:
    if prior is None:
        prior = prior_of(label_sums(labels, task, outputs.shape[1]), task)
    sums = calibration_sums(outputs, labels, prior, task)
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
    assert fit_temperature(confidence * scores, labels, Task.classification).slope == slope


def test_the_information_is_twice_the_gain_over_the_prior() -> None:
    scores, labels = simulated_classes()
    expert = fit_temperature(scores, labels, Task.classification)
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
    expert = fit_temperature(outputs, labels, task)
    assert (expert.slope, expert.information) == (0.0, 0.0)


def test_without_items_logits_are_left_as_they_are() -> None:
    fusion = fit_fusion(
        FusionRule.auto,
        Task.classification,
        torch.zeros(3),
        {"a": no_calibration_sums(Task.classification)},
    )
    assert fusion.experts["a"] == Expert(slope=1.0, information=0.0, count=0.0)


def fitted(rule: FusionRule, task: Task) -> Fusion:
    outputs = torch.randn(30, 3, generator=generator())
    labels = {
        Task.regression: outputs[:, 0] + 1,
        Task.classification: outputs.argmax(dim=1),
        Task.multilabel: (outputs > 0).float(),
    }[task]
    prior = prior_of(label_sums(labels, task, 3), task)
    sums = calibration_sums(outputs, labels, prior, task)
    return fit_fusion(rule, task, prior, {"audio": sums, "language": no_calibration_sums(task)})


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("rule", list(FusionRule))
def test_a_rule_survives_json(rule: FusionRule, task: Task) -> None:
    fusion = fitted(rule, task)
    rebuilt = Fusion.from_dict(json.loads(json.dumps(fusion.to_dict())))
    assert rebuilt == fusion
    assert isinstance(rebuilt.rule, FusionRule)
    assert isinstance(rebuilt.task, Task)
    assert rebuilt.weights == fusion.weights


@pytest.mark.parametrize("rule", [rule for rule in FusionRule if rule is not FusionRule.auto])
def test_the_weights_of_a_rule_sum_to_one(rule: FusionRule) -> None:
    weights = fitted(rule, Task.classification).weights
    assert sum(weights.values()) == pytest.approx(1.0)
    if rule is FusionRule.mean:
        assert weights == {"audio": 0.5, "language": 0.5}
    else:
        assert weights["audio"] > weights["language"]
