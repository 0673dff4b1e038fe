"""Gaussian noise that nobody can draw again, unlike that of `common.seeding`.

Noise that hides data must not follow from the run's seed, nor from a generator whose state can be
computed from its output. Its bits are the operating system's, so such a run is not reproducible.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

#: Takes a number of bytes, returns so many random ones.
Source = Callable[[int], bytes]

_BITS = 52


def normal(shape: Sequence[int], deviation: float, source: Source = os.urandom) -> Tensor:
    """Draw independent N(0, deviation^2), float64, from a source of random bytes."""
    words = np.frombuffer(source(8 * math.prod(shape)), dtype="<u8") >> np.uint64(64 - _BITS)
    # In the middle of 2^52 equal parts of (0, 1): never 0 or 1.
    uniform = torch.from_numpy((words.astype(np.float64) + 0.5) / 2**_BITS)
    drawn: Tensor = deviation * torch.special.ndtri(uniform).reshape(tuple(shape))
    return drawn


def with_noise(arrays: Mapping[str, Tensor], deviation: float, source: Source) -> dict[str, Tensor]:
    """Add independent N(0, deviation^2) to every number; the sums are rounded once."""
    return {
        name: (array.double() + normal(array.shape, deviation, source)).to(array.dtype)
        for name, array in arrays.items()
    }
