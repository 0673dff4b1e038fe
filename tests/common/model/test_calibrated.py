"""The rule `calibrated` against posteriors, products of experts, and simulated modalities."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from torch import Tensor

from common.model.calibrated import Joint, Opinion, join_numbers, join_scores, subsets
from common.model.calibration import calibration_sums, no_calibration_sums
from common.model.fit_joint import FEW_ITEMS, PAIRED_PRIOR, Opinions, fit_joint
from common.model.fusion import product_of_gaussians, product_of_scores
from common.task import Task

STANDARD = torch.tensor([0.0, 1.0], dtype=torch.float64)
CLASSES = 4
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def nothing(names: list[str], task: Task = Task.regression) -> dict[str, Tensor]:
    return dict.fromkeys(names, no_calibration_sums(task))


def everyone(names: list[str], items: int) -> dict[str, Tensor]:
    return dict.fromkeys(names, torch.ones(items, dtype=torch.bool))


def said(
    labels: Tensor, outputs: dict[str, Tensor], linear: dict[str, Tensor], *, groups: int = 0
) -> Opinions:
    """Return opinions on items that have every modality, each in a group of its own by default."""
    numbers = torch.arange(len(labels)) % (groups or len(labels))
    return Opinions(labels, outputs, linear, everyone(list(outputs), len(labels)), numbers)


def measured(names: list[str], labels: NDArray, found: NDArray) -> Opinions:
    """Return opinions (N, M) on numbers."""
    outputs = {name: torch.from_numpy(found[:, [m]]) for m, name in enumerate(names)}
    return said(torch.from_numpy(labels), outputs, {})


def joined(joint: Joint, items: Opinions, names: list[str]) -> tuple[NDArray, NDArray]:
    columns = {n: joint.opinions[n].of(items.outputs[n], items.linear.get(n))[:, 0] for n in names}
    mean, std = join_numbers(joint, columns, {name: items.present[name] for name in names})
    return mean.numpy(), std.numpy()


class Simulation:
    """Modalities x_m = h_m y + e_m of standard normal y, errors of one correlation."""

    def __init__(self, signals: list[float], correlation: float, seed: int) -> None:
        self.names = [f"m{m}" for m in range(len(signals))]
        self._signals, self._rng = np.array(signals), np.random.default_rng(seed)
        count = len(signals)
        self._errors = np.full((count, count), correlation) + (1 - correlation) * np.eye(count)

    def items(self, count: int) -> Opinions:
        labels = self._rng.normal(size=count)
        zero = np.zeros(len(self._signals))
        errors = self._rng.multivariate_normal(zero, self._errors, size=count)
        return measured(self.names, labels, self._signals * labels[:, None] + errors)

    def fitted(self) -> Joint:
        return fit_joint(Task.regression, STANDARD, nothing(self.names), self.items(140))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_every_subset_is_the_posterior_of_the_label(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    loading, noise = rng.uniform(0, 2, count), rng.uniform(0.3, 2, count)
    root = rng.normal(size=(count, count + 2))
    products = root @ root.T
    size = np.sqrt(products.diagonal())
    correlations = products / np.outer(size, size)
    offsets, x = rng.normal(size=count), rng.normal(size=count)
    opinions = {f"m{m}": Opinion(0.0, offsets[m], loading[m], noise[m], 1.0) for m in range(count)}
    joint = Joint(opinions, correlations.tolist())
    errors = correlations * np.outer(noise, noise)
    grid = np.linspace(-8, 8, 4001)
    for size_of in range(1, count + 1):
        for chosen in combinations(range(count), size_of):
            own = list(chosen)
            density = multivariate_normal(np.zeros(size_of), errors[np.ix_(own, own)])
            centred = x[own] - offsets[own] - loading[own] * grid[:, None]
            posterior = density.pdf(centred).reshape(-1) * np.exp(-(grid**2) / 2)
            posterior /= posterior.sum()
            mean = (posterior * grid).sum()
            std = np.sqrt((posterior * (grid - mean) ** 2).sum())
            columns = {f"m{m}": torch.tensor([x[m]]) for m in own}
            found = join_numbers(joint, columns, everyone(list(columns), 1))
            assert [part.item() for part in found] == pytest.approx([mean, std], abs=2e-3)


def test_opinions_that_err_independently_are_the_product_of_experts() -> None:
    joint = Joint(
        {"a": Opinion(0.0, 0.2, 0.8, 0.6), "b": Opinion(0.0, -0.1, 0.5, 1.1)}, np.eye(2).tolist()
    )
    x = {"a": torch.tensor([0.3, 1.0, np.nan]), "b": torch.tensor([-0.4, np.nan, 2.0])}
    present = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, True])}
    means, variances = [], []
    for name, opinion in joint.opinions.items():
        precision = 1 + opinion.loading**2 / opinion.noise**2
        own = (x[name] - opinion.offset) * opinion.loading / opinion.noise**2
        means.append(own / precision)
        variances.append(1 / precision)
    expected = product_of_gaussians(
        torch.stack(means), torch.tensor(variances), torch.stack([*present.values()]), 0.0, 1.0
    )
    for found, wanted in zip(join_numbers(joint, x, present), expected, strict=True):
        torch.testing.assert_close(found.float(), wanted.float())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 1e4), st.floats(-1e3, 1e3))
def test_the_units_of_an_opinion_do_not_matter(seed: int, scale: float, shift: float) -> None:
    simulation = Simulation([1.0, 0.5], 0.3, seed)
    items = simulation.items(120)
    other = measured(
        simulation.names,
        items.labels.numpy(),
        np.concatenate([*items.outputs.values()], axis=1) * scale + scale * shift,
    )
    results = []
    for each in (items, other):
        joint = fit_joint(Task.regression, STANDARD, nothing(simulation.names), each)
        results.append(joined(joint, each, simulation.names))
    for found, expected in zip(*results, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_equal_modalities_are_joined_as_well_as_by_their_mean(correlation: float) -> None:
    gains = []
    for seed in range(200):
        simulation = Simulation([0.816] * 3, correlation, seed)  # R^2 of .4 each
        joint, test = simulation.fitted(), simulation.items(2000)
        mean, _ = joined(joint, test, simulation.names)
        average = np.concatenate([*test.outputs.values()], axis=1).mean(axis=1)
        labels = test.labels.numpy()
        gains.append(np.corrcoef(mean, labels)[0, 1] - np.corrcoef(average, labels)[0, 1])
    assert np.mean(gains) > -0.002


@pytest.mark.parametrize("correlation", [0.0, 0.4, -0.3])
def test_a_useless_modality_costs_next_to_nothing(correlation: float) -> None:
    losses, covered = [], []
    for seed in range(100):
        simulation = Simulation([0.816, 0.816, 0.0], correlation, seed)
        joint, test = simulation.fitted(), simulation.items(2000)
        labels, (all_three, std) = test.labels.numpy(), joined(joint, test, simulation.names)
        two, _ = joined(joint, test, simulation.names[:2])
        losses.append(np.corrcoef(two, labels)[0, 1] - np.corrcoef(all_three, labels)[0, 1])
        covered.append(np.mean(np.abs(labels - all_three) <= 1.6449 * std))
    assert np.mean(losses) < 0.005
    assert 0.87 < np.mean(covered) < 0.93


def test_parts_of_a_label_are_added_up() -> None:
    rng = np.random.default_rng(1)
    parts = rng.normal(size=(600, 3)) / 3**0.5
    names, labels = ["a", "b", "c"], parts.sum(axis=1)
    items = measured(names, labels, parts + 0.1 * rng.normal(size=parts.shape))
    joint = fit_joint(Task.regression, STANDARD, nothing(names), items)
    mean, std = joined(joint, items, names)
    assert np.corrcoef(mean, labels)[0, 1] > 0.97
    # The product of experts would shrink this to .6, and be far too unsure.
    assert np.polyfit(mean, labels, 1)[0] == pytest.approx(1, abs=0.12)
    assert std[0] < 0.45


def test_an_expert_that_says_nothing_is_left_to_the_prior() -> None:
    items = measured(["a"], np.linspace(-1, 1, 50), np.full((50, 1), 3.0))
    joint = fit_joint(Task.regression, STANDARD, nothing(["a"]), items)
    mean, std = joined(joint, items, ["a"])
    assert mean == pytest.approx(0)
    # Labels are even between -1 and 1, so that 90% of them lie within .9.
    assert std == pytest.approx((0.9 / 1.645) ** (50 / 150), rel=0.02)


def test_what_clients_report_counts_only_where_the_server_has_few_items() -> None:
    rng = np.random.default_rng(2)
    many = rng.normal(size=400)
    outputs = torch.from_numpy(many + 0.1 * rng.normal(size=400))[:, None]
    reported = {"a": calibration_sums(outputs, torch.from_numpy(many), STANDARD, Task.regression)}
    loadings = []
    for count in (FEW_ITEMS - 1, FEW_ITEMS):
        items = measured(["a"], rng.normal(size=count), rng.normal(size=(count, 1)))
        joint = fit_joint(Task.regression, STANDARD, reported, items)
        loadings.append(joint.opinions["a"].loading)
    alone = fit_joint(Task.regression, STANDARD, reported, None).opinions["a"].loading
    assert alone == pytest.approx(1, abs=0.02)
    assert loadings[0] > 0.8 > 0.5 > loadings[1]


def test_correlations_are_those_of_the_errors_shrunk() -> None:
    items = Simulation([1.0, 1.0], 0.5, 3).items(500)
    joint = fit_joint(Task.regression, STANDARD, nothing(["m0", "m1"]), items)
    labels = items.labels.numpy()
    errors = [
        items.outputs[name][:, 0].numpy() - joint.opinions[name].loading * labels
        for name in ("m0", "m1")
    ]
    expected = np.corrcoef(errors)[0, 1] * 500 / (500 + PAIRED_PRIOR)
    assert joint.correlations[0][1] == pytest.approx(expected)


def test_the_better_of_two_experts_is_preferred() -> None:
    rng = np.random.default_rng(4)
    labels = rng.normal(size=300)
    good, bad = labels + 0.3 * rng.normal(size=300), rng.normal(size=300)
    for output, linear, share in ((good, bad, 0.0), (bad, good, 1.0)):
        columns = [torch.from_numpy(part)[:, None] for part in (output, linear)]
        items = said(torch.from_numpy(labels), {"a": columns[0]}, {"a": columns[1]})
        joint = fit_joint(Task.regression, STANDARD, nothing(["a"]), items)
        assert joint.opinions["a"].share == share


# Items in groups ---------------------------------------------------------------------------------


def test_intervals_hold_what_they_say_of_errors_that_are_not_normal() -> None:
    """Half of the items are understood, and half are not at all."""
    rng, names = np.random.default_rng(6), ["a", "b"]

    def draw(count: int) -> Opinions:
        y = rng.normal(size=(count, 1))
        known = rng.random((count, 2)) < 0.5
        return measured(names, y[:, 0], np.where(known, y, rng.normal(size=(count, 2))))

    joint = fit_joint(Task.regression, STANDARD, nothing(names), draw(2000))
    fresh = draw(20_000)
    for count in (1, 2):
        mean, std = joined(joint, fresh, names[:count])
        inside = np.abs(fresh.labels.numpy() - mean) <= 1.645 * std
        assert inside.mean() == pytest.approx(0.9, abs=0.01)


def test_a_useless_modality_does_no_harm_where_it_shows_the_group() -> None:
    """As the audio of CMU-MOSI: 144 items of 12 videos, each of a mood of its own."""
    names, groups = ["words", "audio"], np.repeat(np.arange(12), 12)

    def draw(rng: np.random.Generator) -> Opinions:
        y = (0.6 * rng.normal(size=12)[groups] + rng.normal(size=144)) / 1.36**0.5
        audio = rng.normal(size=12)[groups] + 0.3 * rng.normal(size=144)
        found = np.stack([y + 1.3 * rng.normal(size=144), audio], axis=1)
        return replace(measured(names, y, found), groups=torch.from_numpy(groups))

    losses: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        joint = fit_joint(Task.regression, STANDARD, nothing(names), draw(rng))
        fresh = draw(rng)
        for count in losses:
            error = joined(joint, fresh, names[:count])[0] - fresh.labels.numpy()
            losses[count].append(float((error**2).mean()))
    assert np.mean(losses[2]) < 1.02 * np.mean(losses[1])


# Classes and labels ------------------------------------------------------------------------------


def class_scores(labels: Tensor, names: list[str], shared: float, seed: int) -> dict[str, Tensor]:
    """Return overconfident log-probabilities; `shared` is how much of the noise is the same."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.one_hot(labels, CLASSES).double() * 2
    draw = (len(labels), CLASSES)
    same = torch.randn(draw, generator=rng, dtype=torch.float64)
    return {
        name: 3
        * (
            truth
            + shared**0.5 * same
            + (1 - shared) ** 0.5 * torch.randn(draw, generator=rng, dtype=torch.float64)
        )
        for name in names
    }


def test_without_overlap_scores_are_multiplied_at_their_temperatures() -> None:
    names = ["a", "b"]
    scores = {n: torch.randn(5, CLASSES, dtype=torch.float64).log_softmax(dim=1) for n in names}
    joint = Joint({"a": Opinion(loading=0.5), "b": Opinion(loading=1.414)})
    present = {"a": torch.tensor([True] * 5), "b": torch.tensor([True, False] * 2 + [True])}
    tempered = torch.stack([PRIOR + joint.opinions[n].loading * (scores[n] - PRIOR) for n in names])
    expected = product_of_scores(tempered, torch.stack([present[n] for n in names]), PRIOR)
    found = join_scores(joint, Task.classification, PRIOR, scores, present)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("shared", "low", "high"), [(0.0, -0.25, 0.3), (0.9, 0.5, 2.0)])
def test_classes_that_err_together_overlap(shared: float, low: float, high: float) -> None:
    rng = torch.Generator().manual_seed(5)
    labels = torch.multinomial(PRIOR.exp(), 600, replacement=True, generator=rng)
    names = ["a", "b", "c"]
    items = said(labels, class_scores(labels, names, shared, 6), {})
    joint = fit_joint(Task.classification, PRIOR, nothing(names, Task.classification), items)
    assert low <= joint.overlap <= high
    scores = join_scores(joint, Task.classification, PRIOR, items.outputs, items.present)
    probabilities = scores.softmax(dim=1)
    top = probabilities.max(dim=1)
    right = (top.indices == labels).double().mean().item()
    assert top.values.mean().item() == pytest.approx(right, abs=0.05)


def test_one_informative_opinion_is_not_weakened_by_empty_ones() -> None:
    opinions = {"a": Opinion(loading=1.0, information=0.8), "b": Opinion(), "c": Opinion()}
    joint = Joint(opinions, overlap=2.0)
    assert joint.strengths[0b111] == pytest.approx(1)
    equal = Joint(dict.fromkeys("abc", Opinion(loading=1.0, information=0.8)), overlap=0.5)
    assert equal.strengths[0b111] == pytest.approx(1 / (1 + 0.5 * 2))
    assert equal.strengths[0b101] == pytest.approx(1 / (1 + 0.5))


@pytest.mark.parametrize("task", [Task.regression, Task.classification])
def test_weights_sum_to_one_and_follow_the_information(task: Task) -> None:
    opinions = {"a": Opinion(loading=1.0, information=3.0), "b": Opinion(loading=0.0)}
    weights = Joint(opinions, np.eye(2).tolist()).weights(task)
    assert weights == pytest.approx({"a": 1.0, "b": 0.0})
    empty = Joint(dict.fromkeys("ab", Opinion()), np.eye(2).tolist()).weights(task)
    assert empty == pytest.approx({"a": 0.5, "b": 0.5})


def test_subsets_are_numbered_by_their_bits() -> None:
    assert subsets(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
