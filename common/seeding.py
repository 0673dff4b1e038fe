"""Seeds derived from names, so that a result does not depend on who ran first."""

from hashlib import blake2b

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Hash the parts, as in ``(1234, "train", round, "audio-0")``, into a seed in [0, 2**63).

    Equal parts give equal seeds on every machine and in every process.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded by `derive_seed` of the same parts."""
    return np.random.default_rng(derive_seed(*parts))
