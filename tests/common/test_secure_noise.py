"""The noise is Gaussian, and never the same again."""

import math

import numpy as np
import scipy.stats
import torch

from common.secure_noise import normal


def test_it_is_standard_normal_times_the_deviation() -> None:
    drawn = normal((40_000,), 2.5, np.random.default_rng(3).bytes)
    assert drawn.dtype == torch.float64
    _, likelihood = scipy.stats.kstest(drawn.numpy() / 2.5, "norm")
    assert likelihood > 0.01
    # Within 5 deviations of its own.
    assert abs(drawn.std().item() / 2.5 - 1) < 5 / math.sqrt(2 * 40_000)


def test_the_bits_decide_it_and_extremes_are_finite() -> None:
    def source(fill: bytes) -> object:
        return lambda count: fill * count

    low, high = (normal((2, 3), 1.0, source(fill)) for fill in (b"\x00", b"\xff"))
    assert low.shape == (2, 3)
    assert (low < -8).all() and (high > 8).all()
    assert low.isfinite().all() and high.isfinite().all()
    assert normal((), 1.0).shape == ()


def test_no_seed_brings_it_back() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        drawn.append(normal((8,), 1.0))
    assert not torch.equal(*drawn)
