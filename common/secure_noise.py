"""Gaussian noise that nobody can draw again, unlike that of `common.seeding`.

Noise that hides data must not follow from the run's seed, which clients and server both know, nor
from a generator whose state can be computed from what it gave out. So its bits are the operating
system's, and a run with it is not the same again.
"""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

#: Takes a number of bytes, returns so many random ones.
Source = Callable[[int], bytes]

_BITS = 52


def normal(shape: Sequence[int], deviation: float, source: Source = os.urandom) -> Tensor:
    """Draw independent N(0, deviation^2), float64.

    Parameters
    ----------
    shape
        Of the result.
    deviation
        Its standard deviation.
    source
        Of random bytes; one that tests can know.
    """
    words = np.frombuffer(source(8 * math.prod(shape)), dtype="<u8") >> np.uint64(64 - _BITS)
    # In the middle of 2^52 equal parts of (0, 1): never 0 or 1.
    uniform = torch.from_numpy((words.astype(np.float64) + 0.5) / 2**_BITS)
    drawn: Tensor = deviation * torch.special.ndtri(uniform).reshape(tuple(shape))
    return drawn
