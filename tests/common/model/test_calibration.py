"""Sums that clients report: they add up, and they hold the fit and the losses they stand for."""

from random import Random

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config import FusionRule
from common.model.calibration import (
    INVERSE_TEMPERATURES,
    agreement_size,
    calibration_size,
    calibration_sums,
    label_agreement,
    label_sums,
    no_calibration_sums,
    own_prior,
    pool_label_sums,
    prior_of,
    standardise,
)
from common.model.fusion import fit_fusion
from common.model.predict import Prediction, in_label_units
from common.task import Task

CLASSES = 3
AT_ONE = 1 + INVERSE_TEMPERATURES.index(1.0)

every_task = pytest.mark.parametrize("task", list(Task))


def draw(task: Task, items: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw outputs and labels of a task."""
    source = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(items, 1 if task is Task.regression else CLASSES, generator=source)
    if task is Task.regression:
        return outputs, 1 + 0.5 * outputs[:, 0] + torch.randn(items, generator=source)
    if task is Task.classification:
        return outputs, torch.randint(CLASSES, (items,), generator=source)
    return outputs, torch.rand(items, CLASSES, generator=source).lt(0.3).float()


def some_prior(task: Task) -> Tensor:
    return {
        Task.regression: torch.tensor([0.5, 2.0], dtype=torch.float64),
        Task.classification: torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(),
        Task.multilabel: torch.logit(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)),
    }[task]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(Task), st.integers(0, 12), st.integers(0, 12), st.integers(0, 99))
def test_the_evidence_of_two_parts_adds_up(task: Task, first: int, second: int, seed: int) -> None:
    outputs, labels = draw(task, first + second, seed)
    whole, one, two = (
        calibration_sums(outputs[part], labels[part], some_prior(task), task)
        for part in (slice(None), slice(first), slice(first, None))
    )
    torch.testing.assert_close(one + two, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("items", [0, 7])
@every_task
def test_sums_are_as_long_as_announced_and_zero_without_items(task: Task, items: int) -> None:
    drawn, sums = draw(task, items), label_sums(draw(task, 9)[1], task, CLASSES)
    evidence = calibration_sums(*drawn, some_prior(task), task)
    agreement = label_agreement(*drawn, sums, some_prior(task), task)
    for found, size in (
        (evidence, calibration_size(task)),
        (agreement, agreement_size(task)),
    ):
        assert (found.dtype, found.shape) == (torch.float64, (size,))
        assert items > 0 or not found.any()
    assert items > 0 or torch.equal(evidence, no_calibration_sums(task))


def test_the_sums_are_taken_in_double_precision() -> None:
    outputs, labels = torch.full((1000, 1), 0.1), torch.full((1000,), 1e4)
    found = calibration_sums(outputs, labels, some_prior(Task.regression), Task.regression)
    tenth = float(torch.tensor(0.1))
    expected = [1000, 1e7, 1e11, 1000 * tenth, 1000 * tenth**2, 1e7 * tenth]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_every_temperature_interpolates_between_prior_and_outputs(task: Task) -> None:
    outputs, labels = draw(task, 20)
    prior, truth = some_prior(task).numpy(), labels.numpy()
    found = calibration_sums(outputs, labels, some_prior(task), task)
    for beta, loss in zip(INVERSE_TEMPERATURES, found[1:], strict=True):
        if task is Task.classification:
            own = scipy.special.log_softmax(outputs.double().numpy(), axis=1)
            mixed = scipy.special.softmax((1 - beta) * prior + beta * own, axis=1)
            expected = -np.log(mixed[np.arange(20), truth]).sum()
        else:
            chance = scipy.special.expit((1 - beta) * prior + beta * outputs.double().numpy())
            expected = -(truth * np.log(chance) + (1 - truth) * np.log(1 - chance)).sum()
        assert loss == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.floats(0.1, 1e3), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_the_prior_of_numbers_is_their_mean_and_variance(
    items: int, scale: float, shift: float, seed: int
) -> None:
    _, labels = draw(Task.regression, items, seed)
    labels = labels.double() * scale + shift
    found = prior_of(label_sums(labels, Task.regression, 1), Task.regression)
    mean, variance = (labels.numpy().mean(), labels.numpy().var()) if items else (0.0, 0.0)
    assert found[0] == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert found[1] == pytest.approx(variance or 1.0, rel=1e-9)


@pytest.mark.parametrize("items", [0, 50])
@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_priors_of_classes_and_labels_are_their_shares_smoothed_by_one_item(
    task: Task, items: int
) -> None:
    _, labels = draw(task, items)
    found = prior_of(label_sums(labels, task, CLASSES), task)
    if task is Task.classification:
        counts, preference = np.bincount(labels, minlength=CLASSES), 1 / CLASSES
    else:
        counts, preference = labels.numpy().sum(axis=0), 0.5
    shares = (counts + preference) / (items + 1)
    expected = np.log(shares) if task is Task.classification else scipy.special.logit(shares)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(numbers, min_size=1, max_size=6),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([0.0, 1e3, -1e9]),
    st.randoms(use_true_random=False),
)
def test_sums_of_numbers_pool_in_any_order_and_grouping_as_all_at_once(
    clients: list[list[float]], unit: float, shift: float, random: Random
) -> None:
    labels = [unit * (torch.tensor(own, dtype=torch.float64) + shift) for own in clients]
    expected = label_sums(torch.cat(labels), Task.regression, 1)
    sums = [label_sums(own, Task.regression, 1) for own in labels]
    while len(sums) > 1:
        random.shuffle(sums)
        sums.append(pool_label_sums([sums.pop(), sums.pop()], Task.regression))
    ((count, mean, squares),) = (each.tolist() for each in sums)
    # Means and deviations are as exact as float64 holds the labels, not as their own size.
    rounding = 1e-14 * unit * (100 + abs(shift))
    assert count == expected[0]
    assert mean == pytest.approx(expected[1].item(), rel=1e-14, abs=rounding)
    assert squares == pytest.approx(expected[2].item(), rel=1e-6, abs=count * rounding**2)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4 / 3, 1e30])
@pytest.mark.parametrize("items", [1, 1000])
def test_equal_numbers_have_a_deviation_of_1(value: float, items: int) -> None:
    labels = torch.full((items,), value, dtype=torch.float64)
    sums = [label_sums(part, Task.regression, 1) for part in (labels, labels[:1])]
    prior = prior_of(pool_label_sums(sums, Task.regression), Task.regression)
    assert prior.tolist() == pytest.approx([value, 1.0], rel=1e-14)
    standard = standardise(labels.numpy(), prior, Task.regression)
    # The mean of so many is as exact as float64 is.
    np.testing.assert_allclose(standard, 0, atol=1e-15 * max(abs(value), 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.floats(1e-6, 1e6),
    st.floats(-1e9, 1e9),
)
def test_predictions_in_label_units_undo_standardising(
    deviations: list[float], deviation: float, mean: float
) -> None:
    labels = mean + deviation * np.array(deviations)
    prior = torch.tensor([mean, deviation**2], dtype=torch.float64)
    standard = standardise(labels, prior, Task.regression)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard, (labels - mean) / deviation, rtol=1e-6, atol=1e-30)
    values, std = torch.from_numpy(standard.astype(np.float64)), torch.ones(len(labels)).double()
    found = in_label_units(Prediction(values, std), prior.tolist(), Task.regression)
    # Rounded as float32, of which 1e-38 is about the least.
    largest = deviation * (1e-7 * np.abs(deviations).max() + 1e-38) + 1e-15 * abs(mean)
    np.testing.assert_allclose(found.values, labels, rtol=1e-12, atol=2 * largest)
    np.testing.assert_allclose(found.std, deviation, rtol=1e-12)


def test_a_large_offset_costs_no_digits() -> None:
    """Of a million and some hundredths float32 keeps one digit after the point."""
    labels = 1e6 + np.linspace(0, 0.1, 101)
    prior = prior_of(label_sums(torch.from_numpy(labels), Task.regression, 1), Task.regression)
    expected = np.linspace(-50, 50, 101) / np.sqrt(np.arange(-50, 51).var())
    found = standardise(labels, prior, Task.regression)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_classes_and_labels_are_not_standardised(task: Task) -> None:
    outputs, labels = draw(task, 5)
    assert standardise(labels.numpy(), some_prior(task), task) is not None
    np.testing.assert_array_equal(standardise(labels.numpy(), some_prior(task), task), labels)
    predicted = Prediction(outputs)
    assert in_label_units(predicted, some_prior(task).tolist(), task) is predicted


@pytest.mark.parametrize(
    ("task", "sums"), [(Task.classification, [3, 1]), (Task.multilabel, [4, 3, 1])]
)
def test_a_client_s_prior_is_smoothed_by_one_item_of_all_clients(
    task: Task, sums: list[float]
) -> None:
    exact, pooled = (torch.tensor(each, dtype=torch.float64) for each in (sums, [0.9, 0.1]))
    log, back = (
        (torch.log, torch.exp) if task is Task.classification else (torch.logit, torch.sigmoid)
    )
    np.testing.assert_allclose(
        back(own_prior(exact, log(pooled), task)), [3.9 / 5, 1.1 / 5], rtol=1e-12
    )
    # A class that this client has never seen.
    unseen = own_prior(exact[:1], pooled.log(), Task.classification).exp() * (exact[0] + 1)
    np.testing.assert_allclose(unseen, [sums[0] + 0.9, 0.1], rtol=1e-12)


MANY = 1e12  # so many train items that the one that smooths their shares is nothing


# Of four kinds of item, equally many, the chance of each of three classes.
POSTERIOR = torch.tensor(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64
)
PRIOR = POSTERIOR.mean(dim=0)


def expected_agreement(joint: Tensor) -> float:
    """Return that of an item drawn from a client, kind and class by (4, 3), at temperature 1."""
    sums = MANY * joint.sum(dim=0)
    found = 0.0
    for kind, label in torch.cartesian_prod(torch.arange(4), torch.arange(3)):
        outputs = POSTERIOR[None, kind].log()
        ratios = label_agreement(outputs, label[None], sums, PRIOR.log(), Task.classification)
        found += (joint[kind, label] * ratios[AT_ONE - 1]).item()
    return found


@pytest.mark.parametrize("skew", [[1.0, 1.0, 1.0], [0.5, 2.0, 3.0], [9.0, 0.1, 1.0]])
def test_right_labels_agree_by_their_information_and_permuted_ones_disagree(
    skew: list[float],
) -> None:
    # A client's (4, 3) joint distribution; its classes look like everybody's.
    joint = POSTERIOR * torch.tensor(skew)
    joint /= joint.sum()
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0)
    information = (joint * (joint / independent).log()).sum().item()
    # The relative entropy the other way round.
    misinformation = (independent * (independent / joint).log()).sum().item()
    assert min(information, misinformation) > 0.05
    assert expected_agreement(joint) == pytest.approx(information, rel=1e-6)
    assert expected_agreement(independent) == pytest.approx(-misinformation, rel=1e-6)


def test_right_labels_agree_and_permuted_ones_disagree_label_by_label() -> None:
    source = torch.Generator().manual_seed(0)
    prior = some_prior(Task.multilabel)
    outputs = prior + 2 * torch.randn(3000, CLASSES, generator=source).double()
    labels = torch.bernoulli(outputs.sigmoid(), generator=source)
    sums = label_sums(labels, Task.multilabel, CLASSES)
    pooled = prior_of(sums, Task.multilabel)
    permuted = labels[torch.randperm(3000, generator=source)]
    right, wrong = (
        label_agreement(outputs, each, sums, pooled, Task.multilabel) for each in (labels, permuted)
    )
    assert (right[1 : AT_ONE + 1] > 0).all() and (wrong[1:] < 0).all()
    assert right[AT_ONE - 1] > 300 and wrong[AT_ONE - 1] < -300


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(0, CLASSES - 1), st.floats(0, 10), st.integers(0, 99))
def test_a_client_with_one_class_and_few_items_is_hardly_for_and_against_within_bounds(
    train: int, only: int, confidence: float, seed: int
) -> None:
    # One item in n + 1 is like all clients': that is how much of another class is thought possible.
    prior, labels = some_prior(Task.classification), torch.full((20,), only)
    outputs = confidence * draw(Task.classification, 20, seed)[0].double()
    sums = train * F.one_hot(torch.tensor(only), CLASSES).double()
    found = label_agreement(outputs, labels, sums, prior, Task.classification)
    share, gains = prior[only].exp(), outputs.log_softmax(dim=1) - prior
    assert (found <= 20 * torch.log((train + 1) / (train + share)) + 1e-9).all()
    likelier = gains.amax(dim=1) - gains[:, only]
    for beta, value in zip(INVERSE_TEMPERATURES, found, strict=True):
        others = (1 - share) * (beta * likelier).exp()
        worst = torch.log((train + share + others) / (train + share)).sum()
        assert value >= -worst - 1e-9


@pytest.mark.parametrize(("slope", "shift"), [(1.0, -1.0), (0.1, 0.2), (10.0, 100.0)])
def test_whatever_the_line_of_predictions_their_calibration_is_unbiased_and_covers(
    slope: float, shift: float
) -> None:
    """Also where items come in groups, each with a level of its own."""
    source, task = np.random.default_rng(0), Task.regression
    levels = np.repeat(source.normal(size=40), 5)
    labels = torch.from_numpy(levels + source.normal(size=200))
    prior = prior_of(label_sums(labels, task, 1), task)
    standard = torch.from_numpy(standardise(labels.numpy(), prior, task))
    predictions = slope * (standard + 0.3 * torch.from_numpy(source.normal(size=200))) + shift
    sums = calibration_sums(predictions[:, None], standard, prior, task)
    expert = fit_fusion(FusionRule.product_of_experts, task, prior, {"a": sums}).experts["a"]
    errors = expert.intercept + expert.slope * predictions - standard
    assert abs(errors.mean()) < 0.02
    covered = (errors.abs() < 1.645 * expert.unexplained**0.5).double().mean()
    assert covered > 0.85
