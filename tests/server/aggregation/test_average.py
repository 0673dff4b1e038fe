"""The weighted average against NumPy's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from common.posterior import Gaussian, Posterior
from server.aggregation.average import WeightedSum


def average(arrays: list[Tensor], weights: list[float]) -> Tensor:
    total = WeightedSum()
    for array, weight in zip(arrays, weights, strict=True):
        total = total.add(Posterior.of({"w": Gaussian(array)}), weight)
    return total.finish()["w"]


@pytest.mark.parametrize("weights", [[1.0], [3, 1], [5.0, 0.25, 1000.0, 7.0]])
@pytest.mark.parametrize("shape", [(3, 4), (3,), (), (2, 3, 2)])
def test_equals_numpy_average(weights: list[float], shape: tuple[int, ...]) -> None:
    arrays = list(torch.randn((len(weights), *shape)))
    merged = average(arrays, weights)
    stacked = np.stack([array.double().numpy() for array in arrays])
    expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    assert (merged.dtype, merged.shape) == (torch.float32, shape)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-7, atol=1e-12)


def test_small_contributions_are_not_lost_beside_large_ones() -> None:
    # In float32, 2**24 + 1 is 2**24.
    values = [2.0**24, 1.0, 1.0]
    merged = average([torch.tensor(value) for value in values], [1.0] * 3)
    assert merged.item() == np.float32(np.mean(values))
