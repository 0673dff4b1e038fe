"""Groups dealt out to parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.partition import partition_groups
from common.errors import UserError
from common.seeding import generator


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[float]]:
    """Groups of any size, in any order of items, at least one for each part."""
    equal = draw(st.booleans())
    share = st.just(1.0) if equal else st.floats(0.05, 1.0)
    shares = draw(st.lists(share, min_size=1, max_size=5))
    sizes = draw(st.lists(st.integers(1, 9), min_size=len(shares), max_size=12))
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(groups), shares


@given(cases(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_groups_stay_whole_and_shares_are_missed_by_little(case: tuple, seed: int) -> None:
    groups, shares = case
    parts = partition_groups(groups, shares, generator(seed))
    assert len(parts) == len(shares)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    assert all((np.diff(part) > 0).all() for part in parts)
    held = [set(groups[part]) for part in parts]
    assert sum(len(names) for names in held) == len(set(groups))
    assert all(held)
    largest = np.unique(groups, return_counts=True)[1].max()
    for part, share in zip(parts, np.array(shares) / sum(shares), strict=True):
        assert len(part) <= share * len(groups) + largest + 1e-9
        # Every other part may have taken one group too many, at this part's cost.
        assert len(part) >= share * (len(groups) - (len(shares) - 1) * largest) - 1e-9
    if len(set(shares)) == 1:
        assert max(map(len, parts)) - min(map(len, parts)) <= largest


def test_too_few_groups_are_counted() -> None:
    with pytest.raises(UserError, match=r"3 parts need at least 3 groups .* there are 2"):
        partition_groups(np.array(["a", "b", "a"]), [1.0] * 3, generator(0))
    with pytest.raises(UserError, match="there are 0"):
        partition_groups(np.array([], dtype=str), [1.0], generator(0))
