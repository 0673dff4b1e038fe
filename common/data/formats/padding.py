"""Which steps of a padded array are real: those from the first that is not zero to the last.

Notation: N items, T steps, D width.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import IntArray

#: Items that are looked at together, to save memory.
CHUNK = 256


def real_spans(block: NDArray[Any], lengths: IntArray | None = None) -> tuple[IntArray, IntArray]:
    """Return each item's first real step, and the one after its last; 0 and 0 for none.

    Parameters
    ----------
    block
        (N, T, D), padded with zeros on the left or on the right. NaN is not zero.
    lengths
        (N,), if known: what lies behind is no part of an item, whatever it holds.
    """
    steps = block.shape[1]
    first = np.zeros(len(block), dtype=np.int64)
    last = np.zeros(len(block), dtype=np.int64)
    for start in range(0, len(block), CHUNK):
        part = slice(start, start + CHUNK)
        real = (block[part] != 0).any(axis=2)
        if lengths is not None:
            real &= np.arange(steps) < lengths[part, None]
        present = real.any(axis=1)
        first[part] = np.where(present, real.argmax(axis=1), 0)
        last[part] = np.where(present, steps - real[:, ::-1].argmax(axis=1), 0)
    return first, last
