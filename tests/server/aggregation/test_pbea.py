"""PbEA against exact posteriors: quadratic losses, whose pooled optimum a dense solve gives.

Client i has the loss 1/2 sum_r (w_r - m_ir)' H_i (w_r - m_ir) over the rows r of its weights, an
exact posterior N(m_i, H_i^-1) for each row.
"""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.config import EncoderConfig, Scale
from common.posterior import Form, Gaussian, Posterior
from common.structures import fit_gaussian
from server.aggregation.pbea import PosteriorSum

Array = NDArray[np.float64]


def spd(rng: np.random.Generator, size: int, condition: float = 100.0) -> Array:
    """Return a random symmetric positive definite matrix."""
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return basis * np.geomspace(1, condition, size) @ basis.T


def product(posteriors: list[Gaussian], weights: list[float]) -> PosteriorSum:
    total = PosteriorSum()
    for gaussian, weight in zip(posteriors, weights, strict=True):
        total = total.add(Posterior.of({"w": gaussian}), weight)
    return total


def exact_mode(total: PosteriorSum) -> Array:
    """Return the mode before it is rounded to float32."""
    shift = total.shifts.layout.split(total.shifts.vector)["w"]
    precise = total.precisions.get("w")
    mode: Array = (shift / total.shifts.weight if precise is None else precise.solve(shift)).numpy()
    return mode


# --- Closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "shape"),
    [(Form.row, shape) for shape in [(4, 5), (1, 6), (3, 2, 3)]]
    + [(Form.diagonal, shape) for shape in [(4, 5), (7,), (3, 2, 3), ()]],
)
def test_precisions_give_the_optimum_and_averages_do_not(
    form: Form, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    weights = [30.0, 10.0, 55.0]
    optima = [np.asarray(rng.normal(size=shape)) for _ in weights]
    if form is Form.row:
        hessians = [spd(rng, math.prod(shape[1:])) for _ in weights]
        dense = [np.kron(np.eye(shape[0]), hessian) for hessian in hessians]
    else:
        hessians = [np.asarray(rng.uniform(0.01, 10, shape)) for _ in weights]
        dense = [np.diag(np.ravel(hessian)) for hessian in hessians]
    pairs = zip(map(torch.as_tensor, optima), map(torch.as_tensor, hessians), strict=True)
    total = product([Gaussian(*pair, form) for pair in pairs], weights)
    # One dense solve over all entries of the tensor at once.
    left = sum(n * each for n, each in zip(weights, dense, strict=True))
    right = sum(n * h @ np.ravel(m) for n, h, m in zip(weights, dense, optima, strict=True))
    expected = np.linalg.solve(left, right).reshape(shape)
    np.testing.assert_allclose(exact_mode(total), expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(total.finish()["w"].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert total.finish()["w"].dtype == torch.float32
    fedavg = np.average(np.stack(optima), axis=0, weights=weights)
    assert np.linalg.norm(fedavg - expected) > 0.05 * np.linalg.norm(expected)


# --- Where PbEA is FedAvg ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "config"),
    [
        (1, EncoderConfig("pbea", structure="row")),
        (1, EncoderConfig("pbea", structure="diagonal", scale=Scale.absolute)),
        (6, EncoderConfig("pbea", structure="row", shrinkage=1.0)),
        (6, EncoderConfig("pbea", structure="diagonal", shrinkage=1.0)),
        (6, EncoderConfig(merge="average")),
    ],
)
@pytest.mark.parametrize("shape", [(4, 3), (5,), (2, 3, 2)])
def test_posteriors_without_directions_give_fedavg(
    samples: int, config: EncoderConfig, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(3)
    weights = [10.0, 1.0, 4.0]
    drawn = [rng.normal(size=(samples, *shape)) for _ in weights]
    means = np.stack([each.mean(axis=0) for each in drawn])
    expected = np.average(means, axis=0, weights=weights)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        posteriors = [fit_gaussian(torch.from_numpy(each).to(dtype), config) for each in drawn]
        total = product(posteriors, weights)
        np.testing.assert_allclose(exact_mode(total), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(total.finish()["w"].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("structure", ["row", "diagonal"])
def test_full_shrinkage_at_absolute_scale_weighs_by_spread(structure: str) -> None:
    rng = np.random.default_rng(4)
    config = EncoderConfig("pbea", structure=structure, shrinkage=1.0, scale=Scale.absolute)
    weights, drawn = [2.0, 5.0], [rng.normal(size=(6, 4, 3)), 3 * rng.normal(size=(6, 4, 3))]
    total = product([fit_gaussian(torch.from_numpy(each), config) for each in drawn], weights)
    inverse_spread = [n / each.var(axis=0, ddof=1).mean() for n, each in zip(weights, drawn)]  # noqa: B905
    means = np.stack([each.mean(axis=0) for each in drawn])
    np.testing.assert_allclose(
        exact_mode(total), np.average(means, axis=0, weights=inverse_spread), rtol=1e-12
    )


# --- Forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [Form.diagonal, Form.row])
@pytest.mark.parametrize("identity_first", [True, False])
def test_identity_counts_as_ones_in_the_other_form(form: Form, identity_first: bool) -> None:
    rng = np.random.default_rng(0)
    plain, mean = torch.from_numpy(rng.normal(size=(2, 3, 2, 2)))
    own, ones = rng.uniform(0.2, 5, (3, 2, 2)), torch.ones(3, 2, 2)
    if form is Form.row:
        own, ones = spd(rng, 4, 10), torch.eye(4)
    other = Gaussian(mean, torch.from_numpy(own), form)
    order = slice(None, None, 1 if identity_first else -1)
    weights = [3.0, 7.0][order]
    mixed = product([Gaussian(plain), other][order], weights)
    expected = product([Gaussian(plain, ones.double(), form), other][order], weights)
    assert mixed.precisions["w"].form is form
    np.testing.assert_allclose(exact_mode(mixed), exact_mode(expected), rtol=1e-13)
