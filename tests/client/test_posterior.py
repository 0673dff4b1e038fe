"""Fitted Gaussians against NumPy, by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from common.config import EncoderConfig, Scale
from common.posterior import Form, Gaussian, Posterior
from common.structures import fit_gaussian
from common.structures.inputs import mapped_gaussian
from server.aggregation.pbea import PosteriorSum

Array = NDArray[np.float64]
scales = st.sampled_from(list(Scale))


def draws(*shape: int, seed: int = 0) -> Array:
    """Return correlated samples, so that a covariance is not nearly the identity."""
    rng = np.random.default_rng(seed)
    flat = rng.normal(size=shape).reshape(*shape[:2], -1)
    mixed = flat @ rng.normal(size=(flat.shape[-1],) * 2)
    return (3 + mixed).reshape(shape)


def fit(samples: Array, config: EncoderConfig) -> Gaussian:
    return fit_gaussian(torch.from_numpy(samples), config)


def shrunk(covariance: Array, shrinkage: float, scale: Scale) -> tuple[Array, float]:
    """Return a covariance shrunk to its mean variance, and the factor of its inverse."""
    t = np.trace(covariance) / len(covariance)
    towards = shrinkage * t * np.eye(len(covariance)) + (1 - shrinkage) * covariance
    return towards, t if scale is Scale.relative else 1.0


@pytest.mark.parametrize("shape", [(6, 4, 3), (2, 5, 2), (5, 3, 2, 3)])
@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("shrinkage", [0.05, 0.5])
def test_row_precision_is_the_formula(
    shape: tuple[int, ...], scale: Scale, shrinkage: float
) -> None:
    samples = draws(*shape)
    gaussian = fit(samples, EncoderConfig("pbea", "row", shrinkage, scale))
    # The mean of the covariances of the rows, of which each has one value a sample.
    rows = np.moveaxis(samples.reshape(*samples.shape[:2], -1), 1, 0)
    covariance = np.mean([np.cov(row, rowvar=False) for row in rows], axis=0)
    towards, factor = shrunk(covariance, shrinkage, scale)
    assert gaussian.form is Form.row and gaussian.precision is not None
    expected = factor * np.linalg.inv(towards)
    np.testing.assert_allclose(gaussian.precision.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gaussian.mean.numpy(), samples.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("structure", ["row", "inputs"])
@pytest.mark.parametrize("scale", list(Scale))
def test_a_map_of_wide_features_is_averaged(structure: str, scale: Scale) -> None:
    # 28.8 GB in float64, were it fitted.
    samples = torch.randn(3, 2, 60_000)
    gaussian = fit_gaussian(samples, EncoderConfig("pbea", structure, 0.1, scale))
    assert gaussian.form is Form.identity and torch.equal(gaussian.mean, samples.mean(dim=0))


@pytest.mark.parametrize("shape", [(6, 4, 3), (5, 7), (4, 2, 3, 2)])
@pytest.mark.parametrize("scale", list(Scale))
def test_diagonal_precision_is_the_formula(shape: tuple[int, ...], scale: Scale) -> None:
    samples = draws(*shape)
    gaussian = fit(samples, EncoderConfig("pbea", "diagonal", 0.3, scale))
    variance = samples.var(axis=0, ddof=1)
    t = variance.mean()
    expected = (t if scale is Scale.relative else 1.0) / (0.3 * t + 0.7 * variance)
    assert gaussian.form is Form.diagonal and gaussian.precision is not None
    np.testing.assert_allclose(gaussian.precision.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("structure", ["diagonal", "row", "low_rank", "inputs"])
@pytest.mark.parametrize("scale", list(Scale))
def test_no_spread_is_an_identity(structure: str, scale: Scale) -> None:
    # In float32 five equal numbers need not have exactly that mean.
    samples = torch.from_numpy(draws(1, 4, 3)).float().expand(5, 4, 3)
    config = EncoderConfig("pbea", structure=structure, scale=scale)
    gaussian = fit_gaussian(samples, config, received=torch.zeros(4, 3))
    torch.testing.assert_close(gaussian.mean, samples[0], rtol=1e-6, atol=0)
    assert gaussian.form is Form.identity


@given(
    shrinkage=st.floats(1e-3, 1.0),
    scale=scales,
    size=st.integers(1, 12),
    samples=st.integers(2, 8),
    exponent=st.integers(-6, 3),
)
@settings(max_examples=60, deadline=None)
def test_precision_that_is_sent_is_symmetric_positive_definite(
    shrinkage: float, scale: Scale, size: int, samples: int, exponent: int
) -> None:
    # In float32, and with fewer samples than columns.
    drawn = torch.from_numpy(10.0**exponent * draws(samples, 2, size)).float()
    gaussian = fit_gaussian(drawn, EncoderConfig("pbea", "row", shrinkage, scale))
    if gaussian.precision is None:
        assert scale is Scale.relative and shrinkage == 1.0
        return
    precision = gaussian.precision.double()
    torch.testing.assert_close(precision, precision.T, rtol=1e-5, atol=0)
    assert gaussian.precision.isfinite().all()
    assert torch.linalg.eigvalsh((precision + precision.T) / 2).min() > 0


def change_of(samples: Array, received: Array, config: EncoderConfig) -> Array:
    """Return what the mean that is sent takes off what was received."""
    gaussian = fit_gaussian(torch.from_numpy(samples), config, torch.from_numpy(received))
    assert gaussian.form is Form.identity
    change: Array = received - gaussian.mean.numpy()
    return change


def dense_change(samples: Array, received: Array, config: EncoderConfig) -> Array:
    """Solve with the covariance over all entries, as large as it is."""
    flat = samples.reshape(len(samples), -1)
    covariance = np.atleast_2d(np.cov(flat, rowvar=False))
    towards, factor = shrunk(covariance, config.shrinkage, config.scale)
    solved = np.linalg.solve(towards, received.ravel() - flat.mean(axis=0))
    return (factor * solved).reshape(received.shape)


@given(
    st.integers(2, 9),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.builds(EncoderConfig, st.just("pbea"), st.just("low_rank"), st.floats(1e-4, 1.0), scales),
    st.integers(-4, 4),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_low_rank_is_the_dense_solve(
    samples: int, shape: list[int], config: EncoderConfig, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = 10.0**size * rng.normal(size=(samples, *shape))
    received = 10.0**size * rng.normal(size=shape)
    expected = dense_change(drawn, received, config)
    found = change_of(drawn, received, config)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def fedpa_change(samples: Array, received: Array, rho: float) -> Array:
    """FedPA's dynamic programme, one sample at a time (arXiv 2010.05273, appendix C).

    Of (rho_S I + (1 - rho_S) C)^-1 (received - mean), where rho_S = 1 / (1 + (S - 1) rho).
    """
    mean, change = samples[0], received - samples[0]
    directions: list[tuple[float, Array]] = []  # c, v of each c v v^T taken off the inverse
    for t, sample in enumerate(samples[1:], start=2):
        u = sample - mean
        v = u - sum((c * (w @ u) * w for c, w in directions), np.zeros_like(u))
        gamma = rho * (t - 1) / t
        step = 1 + gamma * (t * (u @ change) - u @ v) / (1 + gamma * (u @ v))
        change = change - step * v / t
        directions.append((gamma / (1 + gamma * (v @ u)), v))
        mean = mean + u / t
    return (1 + (len(samples) - 1) * rho) * change


@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("rho", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("samples", [2, 5, 11])
def test_low_rank_is_fedpa_s_recursion(samples: int, rho: float, scale: Scale) -> None:
    # FedPA shrinks towards I; where the mean variance is 1 so does rho t I.
    rng = np.random.default_rng(samples)
    drawn = rng.normal(size=(samples, 7))
    drawn /= drawn.var(axis=0, ddof=1).mean() ** 0.5
    received = rng.normal(size=7)
    config = EncoderConfig("pbea", "low_rank", 1 / (1 + (samples - 1) * rho), scale)
    expected = fedpa_change(drawn, received, rho)
    np.testing.assert_allclose(change_of(drawn, received, config), expected, rtol=1e-7)


ITEMS = (40, 90, 25)


def inputs_of(client: int) -> Array:
    """Return (items, 3) of correlated features, of another spread at each client."""
    return (1 + client) * draws(ITEMS[client], 3, seed=client) / 3


def moments_of(inputs: Array) -> Array:
    return inputs.T @ inputs / len(inputs)


def merged(weights: list[Array], moments: list[Array], shrinkage: float) -> Array:
    """Merge maps (out, in) at the server by what each client's reads."""
    total = PosteriorSum()
    for items, weight, own in zip(ITEMS, weights, moments, strict=True):
        arrays = (torch.from_numpy(weight), torch.from_numpy(own))
        gaussian = mapped_gaussian(*arrays, shrinkage, Scale.absolute)
        total = total.add(Posterior.of({"w": gaussian}), items)
    found: Array = total.finish()["w"].numpy()
    return found


def test_clients_at_their_least_squares_merge_to_that_of_all_items() -> None:
    # RegMean (arXiv 2212.09849): with A_i = X_i^T X_i / n_i and W_i = A_i^-1 X_i^T Y_i / n_i.
    rng = np.random.default_rng(0)
    inputs = [inputs_of(client) for client in range(3)]
    targets = [np.sin(x @ rng.normal(size=(3, 2))) for x in inputs]  # fitted by no map
    optima = [np.linalg.lstsq(x, y, rcond=None)[0].T for x, y in zip(inputs, targets, strict=True)]
    pooled = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0].T
    found = merged(optima, [moments_of(x) for x in inputs], 1e-12)
    np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-6)
    average = np.average(optima, axis=0, weights=ITEMS)
    assert np.abs(average - pooled).max() > 0.1 * np.abs(pooled).max()


@given(st.floats(1e-3, 1.0), scales, st.integers(-6, 6))
@settings(max_examples=40, deadline=None)
def test_precision_of_a_map_is_the_formula(shrinkage: float, scale: Scale, exponent: int) -> None:
    moments = 10.0**exponent * moments_of(inputs_of(0))
    mean = torch.from_numpy(draws(1, 2, 3)[0])
    gaussian = mapped_gaussian(mean, torch.from_numpy(moments), shrinkage, scale)
    expected, t = shrunk(moments, shrinkage, Scale.relative)
    assert gaussian.form is Form.row and gaussian.precision is not None
    expected = expected / t if scale is Scale.relative else expected
    np.testing.assert_allclose(gaussian.precision.numpy(), expected, rtol=1e-9, atol=1e-12 * t)
    assert torch.equal(gaussian.mean, mean)


@pytest.mark.parametrize("moments", [None, torch.zeros(6, 6).double()], ids=["none", "zero"])
@pytest.mark.parametrize("scale", list(Scale))
def test_a_map_that_reads_nothing_is_an_identity(moments: Tensor | None, scale: Scale) -> None:
    mean = torch.randn(4, 2, 3)
    gaussian = mapped_gaussian(mean, moments, 0.1, scale)
    assert gaussian.form is Form.identity and torch.equal(gaussian.mean, mean)


@pytest.mark.parametrize("samples", [1, 4])
def test_inputs_send_the_mean_of_the_samples_with_the_precision_of_the_map(samples: int) -> None:
    config = EncoderConfig("pbea", "inputs", 0.2, Scale.relative)
    drawn = torch.from_numpy(draws(samples, 2, 3, 1)).float()
    moments = torch.from_numpy(moments_of(inputs_of(1)))
    found = fit_gaussian(drawn, config, moments=moments)
    expected = mapped_gaussian(drawn.mean(dim=0), moments, 0.2, Scale.relative)
    assert found.precision is not None and expected.precision is not None
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.precision, expected.precision)
    assert found.precision.dtype == torch.float32
    # A bias reads nothing, and so has no precision, however many samples there are.
    assert fit_gaussian(torch.from_numpy(draws(samples, 5)), config).form is Form.identity
