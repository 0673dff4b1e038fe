"""Linear experts: sums against NumPy, fits against scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor
from updates import in_any_tree

from common.data.batching import pad_all
from common.data.dataset import Sequences
from common.data.moments import FeatureMoments
from common.model.calibration import label_sums, prior_of
from common.model.linear import (
    MOST_FEATURES,
    LinearExpert,
    LinearMap,
    LinearSums,
    calibrated,
    fit_linear,
    fuse_linear,
    has_linear,
    label_columns,
    measure_linear,
    oas_shrinkage,
)
from common.task import Task

F, K = 3, 2


def close(found: Tensor, expected: object, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=rtol, atol=atol)


def drawn(seed: int, items: int, far: float = 0.0) -> np.ndarray:
    """Rows of features and labels that have to do with one another."""
    rng = np.random.default_rng(seed)
    return far + rng.normal(size=(items, F + K)) @ rng.normal(size=(F + K, F + K))


def sums_of(rows: np.ndarray, features: int = F) -> LinearSums:
    joint = torch.from_numpy(rows)
    return LinearSums.of(joint[:, :features], joint[:, features:])


# --- Sums -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 1000), st.data())
@settings(max_examples=60, deadline=None)
def test_sums_of_clients_in_any_tree_are_those_of_all_items(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    parts = [drawn(seed + place, size, far=1e3) for place, size in enumerate(sizes)]
    found = in_any_tree(data, [LinearSums.empty(F, K), *map(sums_of, parts)])
    rows = np.concatenate(parts)
    assert (found.count, found.features) == (len(rows), F)
    if len(rows):
        close(found.mean, rows.mean(axis=0))
        close(found.scatter, len(rows) * np.cov(rows, rowvar=False, bias=True), atol=1e-7)
    else:
        assert not found.mean.any() and not found.scatter.any()


def test_sums_of_other_shapes_do_not_merge() -> None:
    for other in (LinearSums.empty(F, K + 1), LinearSums.empty(F + 1, K - 1)):
        with pytest.raises(ValueError, match="features and labels"):
            LinearSums.empty(F, K).merge(other)


def test_standardising_sums_is_standardising_features() -> None:
    rows = drawn(0, 50, far=1e4)
    mean, scale = torch.tensor([1e4, -3, 0.5]), torch.tensor([0.1, 2, 0])
    changed = rows.copy()
    changed[:, :F] = (rows[:, :F] - mean.numpy()) * scale.numpy()
    found, expected = sums_of(rows).standardised(mean, scale), sums_of(changed)
    close(found.mean, expected.mean)
    close(found.scatter, expected.scatter, atol=1e-6)


def test_classes_that_a_client_has_not_seen_are_padded() -> None:
    seen = label_columns(torch.tensor([0, 1, 1]), Task.classification, 2)
    known = label_columns(torch.tensor([0, 1, 1]), Task.classification, 4)
    features = torch.from_numpy(drawn(0, 3))[:, :F]
    found, expected = LinearSums.of(features, seen).padded(4), LinearSums.of(features, known)
    assert torch.equal(found.mean, expected.mean)
    close(found.scatter, expected.scatter)


def test_features_are_pooled_over_the_steps_of_each_item() -> None:
    rng = np.random.default_rng(0)
    lengths = np.tile(np.array([3, 0, 1, 5, 2]), 40)
    values = rng.normal(size=(lengths.sum(), 2)).astype(np.float32)
    values[[4, 7], [0, 1]] = np.nan, np.inf
    labels = rng.normal(size=len(lengths)).astype(np.float32)
    sequences = Sequences.ragged(values, lengths)
    means = FeatureMoments.of(sequences).mean
    found = measure_linear(sequences, labels, Task.regression, 1, means)
    filled = np.where(np.isfinite(values), values, means.astype(np.float32)).astype(np.float64)
    items = np.split(filled, np.cumsum(lengths)[:-1])
    rows = [[*item.mean(axis=0), y] for item, y in zip(items, labels, strict=True) if len(item)]
    expected = sums_of(np.array(rows), 2)
    assert found.count == 160
    close(found.mean, expected.mean)
    close(found.scatter, expected.scatter)


def test_each_step_of_a_table_is_a_feature_and_where_none_is_finite_it_is_0() -> None:
    rows = drawn(1, 70).astype(np.float32)
    values = np.stack([rows[:, :F], rows[:, :F] ** 2], axis=1)
    values[:, 1, 2] = np.nan
    table = Sequences.ragged(values.reshape(-1, F), np.full(70, 2), tabular=True)
    labels = np.arange(70) % 3
    means = FeatureMoments.of(table).mean
    found = measure_linear(table, labels, Task.classification, 3, means)
    flat = np.nan_to_num(values.astype(np.float64)).reshape(70, -1)
    expected = sums_of(np.concatenate([flat, np.eye(3)[labels]], axis=1), 2 * F)
    close(found.mean, expected.mean)
    close(found.scatter, expected.scatter)


def test_width_is_limited() -> None:
    assert has_linear((MOST_FEATURES - 1,), 1) and has_linear((31, 33), 1)
    assert not has_linear((MOST_FEATURES,), 1) and not has_linear((32, 32), 1)


# --- Fits -------------------------------------------------------------------------------------


def numbers(items: int, features: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0.3, 1, size=(items, features)) * rng.uniform(0.2, 2, features)
    y = 40 + 7 * (x @ rng.normal(size=features) + noise * rng.normal(size=items))
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize(
    ("items", "features", "noise"), [(60, 5, 1.0), (60, 5, 0.01), (30, 25, 3.0), (20, 40, 1.0)]
)
def test_numbers_are_a_ridge_regression_of_the_least_gcv(
    items: int, features: int, noise: float
) -> None:
    x, y = numbers(items, features, noise)
    prior = prior_of(label_sums(y, Task.regression, 1), Task.regression)
    sums = LinearSums.of(x, label_columns(y, Task.regression, 1))
    found = fit_linear(sums, Task.regression, prior)
    centred = (x - x.mean(dim=0)).numpy()
    gram, scores = centred.T @ centred, {}
    for penalty in np.trace(gram) / features * np.logspace(-4, 4, 33):
        hat = 1 / items + centred @ np.linalg.solve(gram + penalty * np.eye(features), centred.T)
        left = y.numpy() - hat @ y.numpy()
        freedom = items - np.trace(hat)
        scores[penalty] = items * left @ left / freedom**2
    ridge = Ridge(alpha=min(scores, key=scores.__getitem__)).fit(x.numpy(), y.numpy())
    mean, deviation = prior[0].item(), prior[1].sqrt().item()
    close(found.weight[:, 0], ridge.coef_ / deviation, rtol=1e-6)
    close(found.bias, [(ridge.intercept_ - mean) / deviation], rtol=1e-6)


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_shrinkage_is_that_of_scikit_learn(items: int, features: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(items, features)) * np.arange(1, features + 1)
    estimated = OAS(assume_centered=True).fit(x)
    values = torch.linalg.eigvalsh(torch.from_numpy(x.T @ x / items))
    assert oas_shrinkage(values, items) == pytest.approx(estimated.shrinkage_, rel=1e-6)


def within_shrinkage(x: np.ndarray, labels: np.ndarray) -> float:
    means = np.stack([x[labels == k].mean(axis=0) for k in np.unique(labels)])
    left = x - means[np.unique(labels, return_inverse=True)[1]]
    return float(OAS(assume_centered=True).fit(left).shrinkage_)


def analysis(x: np.ndarray, labels: np.ndarray) -> LinearDiscriminantAnalysis:
    shrinkage = within_shrinkage(x, labels)
    return LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage).fit(x, labels)


@pytest.mark.parametrize(("items", "features"), [(90, 4), (25, 30)])
def test_classes_are_a_discriminant_analysis(items: int, features: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(4, size=items, p=[0.4, 0.3, 0.2, 0.1])
    x = rng.normal(size=(items, features)) + labels[:, None] * rng.normal(size=features)
    exact, classes = torch.from_numpy(x), torch.from_numpy(labels)
    # Of the six classes two are nobody's.
    sums = LinearSums.of(exact, label_columns(classes, Task.classification, 6))
    prior = prior_of(label_sums(classes, Task.classification, 6), Task.classification)
    found = fit_linear(sums, Task.classification, prior)
    assert not found.weight[:, 4:].any() and torch.equal(found.bias[4:], prior[4:])
    expected = analysis(x, labels).decision_function(x)
    shares = torch.bincount(classes).double() / items
    scores = (exact @ found.weight + found.bias - prior)[:, :4] + shares.log()
    close((scores - scores[:, :1]), expected - expected[:, :1], rtol=1e-6, atol=1e-6)
    # The classes' weighted centre is where none has an advantage.
    close(found.weight[:, :4] @ shares, np.zeros(features), atol=1e-8)


@pytest.mark.parametrize(("items", "features"), [(90, 4), (25, 30)])
def test_labels_are_discriminant_analyses_of_their_own(items: int, features: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(items, features))
    labels = (x[:, :2] + rng.normal(size=(items, 2)) > 0.5).astype(np.float64)
    always = np.concatenate([labels, np.ones((items, 1)), np.zeros((items, 1))], axis=1)
    exact, several = torch.from_numpy(x), torch.from_numpy(always)
    prior = prior_of(label_sums(several, Task.multilabel, 4), Task.multilabel)
    found = fit_linear(LinearSums.of(exact, several), Task.multilabel, prior)
    assert not found.weight[:, 2:].any() and torch.equal(found.bias[2:], prior[2:])
    for label in range(2):
        expected = analysis(x, labels[:, label]).decision_function(x)
        share = several[:, label].mean()
        scores = exact @ found.weight[:, label] + found.bias[label] - prior[label] + share.logit()
        close(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("items", [0, 1, 2, 3])
def test_few_items_constant_features_and_constant_labels_have_a_finite_fit(
    task: Task, items: int
) -> None:
    labels = {
        Task.regression: torch.full((items,), 2.5, dtype=torch.float64),
        Task.classification: torch.zeros(items, dtype=torch.int64),
        Task.multilabel: torch.ones(items, 3),
    }[task]
    outputs = 1 if task is Task.regression else 3
    x = torch.from_numpy(drawn(0, items))[:, :F]
    x[:, 1] = 0
    prior = prior_of(label_sums(labels, task, outputs), task)
    sums = LinearSums.of(x, label_columns(labels, task, outputs))
    fitted = fit_linear(sums, task, prior)
    assert not fitted.weight.any() and fitted.weight.shape == (F, outputs)
    assert fitted.bias.isfinite().all()
    close(fitted.bias, [0] if task is Task.regression and items else fitted.bias)
    labels = labels + torch.arange(items) if task is Task.regression else labels
    varied = LinearSums.of(x, label_columns(labels, task, outputs))
    weight = fit_linear(varied, task, prior).weight
    assert weight.isfinite().all() and not weight[1].any()


def test_a_class_of_single_items_is_no_certainty() -> None:
    classes = torch.arange(3)
    sums = LinearSums.of(
        torch.from_numpy(drawn(0, 3))[:, :F], label_columns(classes, Task.classification, 3)
    )
    prior = prior_of(label_sums(classes, Task.classification, 3), Task.classification)
    found = fit_linear(sums, Task.classification, prior)
    assert found.weight.isfinite().all() and found.bias.isfinite().all()


@pytest.mark.parametrize("task", list(Task))
def test_calibration_scales_towards_the_prior(task: Task) -> None:
    prior = torch.tensor([0.3, 2.0] if task is Task.regression else [-0.2, -1.7, 0.1])
    outputs = 1 if task is Task.regression else 3
    fitted = LinearMap(torch.randn(F, outputs), torch.randn(outputs))
    x, base = torch.randn(9, F), 0.0 if task is Task.regression else prior
    for factor in (0.0, 0.25, 1.0):
        scaled = calibrated(fitted, factor, prior, task)
        found = x @ scaled.weight + scaled.bias
        torch.testing.assert_close(
            found, base + factor * (x @ fitted.weight + fitted.bias - base), atol=1e-5, rtol=1e-5
        )


# --- In the model -----------------------------------------------------------------------------


def test_the_path_reads_what_the_sums_are_of() -> None:
    """Of a sequence the mean of its steps, of a table every step; padding counts for nothing."""
    weight, bias = torch.randn(2 * F, 2), torch.randn(2)
    values = torch.randn(4, 2, F)
    table = LinearExpert((2, F), 2)
    table.set(LinearMap(weight, bias))
    torch.testing.assert_close(
        table(values, torch.full((4,), 2)), values.flatten(1) @ weight + bias
    )
    first = table(values[:, :1], torch.ones(4))
    torch.testing.assert_close(first, values[:, 0] @ weight[:F] + bias)
    ragged = LinearExpert((F,), 2)
    ragged.set(LinearMap(weight[:F], bias))
    values[1, 1] = 0
    pooled = torch.stack([item.sum(dim=0) for item in values]) / torch.tensor([[2], [1], [2], [2]])
    found = ragged(values, torch.tensor([2, 1, 2, 2]))
    torch.testing.assert_close(found, pooled @ weight[:F] + bias)
    assert not list(ragged.parameters()) and len(ragged.state_dict()) == 2


def test_sums_of_padded_batches_fit_what_the_path_reads() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, size=80)
    values = rng.normal(size=(lengths.sum(), F)).astype(np.float32)
    sequences = Sequences.ragged(values, lengths)
    sums = measure_linear(
        sequences, np.zeros(80, np.float32), Task.regression, 1, np.zeros(F, np.float64)
    )
    expert = LinearExpert((F,), F)
    expert.set(LinearMap(torch.eye(F), torch.zeros(F)))
    pooled = expert(*pad_all(sequences)).double()
    close(pooled.mean(dim=0), sums.mean[:F], atol=1e-6)


def test_linear_outputs_are_weighed_among_the_modalities_present() -> None:
    outputs = {"a": torch.tensor([[1.0], [1.0], [torch.nan]]), "b": torch.full((3, 1), 5.0)}
    lengths = {"a": torch.tensor([2, 3, 0]), "b": torch.tensor([1, 0, 4])}
    found = fuse_linear(outputs, lengths, {"a": 0.6, "b": 0.2, "c": 0.2})
    torch.testing.assert_close(found, torch.tensor([[2.0], [1.0], [5.0]]))
