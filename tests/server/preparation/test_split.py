"""Sides of a split: whole groups at random, or exactly as the source says."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from data_checks import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import PrepareConfig, Split
from common.data.dataset import MultimodalDataset
from common.data.partition import shared_groups, split_source
from common.data.source import Source

SIDES = ("train", "validation", "test")


def source_of(sides: dict[str, Sequence[str]]) -> Source:
    """A source that says for each side which groups its items are of; items in mixed order."""
    pairs = [(side, group) for side, groups in sides.items() for group in groups]
    splits, groups = np.random.default_rng(0).permutation(pairs).T
    labels = np.zeros(len(pairs), dtype=np.float32)
    return Source(MultimodalDataset(groups, groups, labels, {}), splits)


def split(
    source: Source, rule: Split = Split.source, seed: int = 1234, **options: float
) -> dict[str, list[int]]:
    """The items of each side."""
    sides = split_source(source, PrepareConfig(split=rule, **options), seed)
    return {name: getattr(sides, name).tolist() for name in SIDES}


def items_of(source: Source, side: str) -> list[int]:
    return np.flatnonzero(source.splits == side).tolist()


def groups_of(number: int, size: int = 5) -> list[str]:
    return [f"g{group}" for group in range(number)] * size


SIZES = st.lists(st.integers(1, 9), min_size=3, max_size=15)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.45])


@given(SIZES, FRACTIONS, FRACTIONS, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_random_split_never_shares_a_group_and_loses_no_item(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    source = source_of({"": np.repeat(groups_of(len(sizes), 1), sizes).tolist()})
    fractions = {"validation_fraction": validation, "test_fraction": test}
    found = split(source, Split.random, seed=seed, **fractions)
    assert sorted(itertools.chain(*found.values())) == list(range(sum(sizes)))
    assert sum(len(set(source.items.groups[side])) for side in found.values()) == len(sizes)
    assert all(side == sorted(side) for side in found.values())
    assert [bool(side) for side in found.values()] == [True, validation > 0, test > 0]


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.5)])
def test_fractions_are_missed_by_little_and_the_seed_decides(
    validation: float, test: float
) -> None:
    source = source_of({"": groups_of(200)})
    options = {"validation_fraction": validation, "test_fraction": test}
    one, same, other = (split(source, Split.random, seed=seed, **options) for seed in (1, 1, 2))
    for name, share in zip(SIDES, (1 - validation - test, validation, test), strict=True):
        assert len(one[name]) / 1000 == pytest.approx(share, abs=0.01)
        assert (one[name] != other[name]) == (share > 0)
    assert one == same


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_a_source_with_all_sides_is_kept_exactly(fraction: float) -> None:
    source = source_of({"train": ["a", "b"] * 8, "validation": ["c"] * 3, "test": ["d"] * 5})
    found = split(source, validation_fraction=fraction)
    assert found == {name: items_of(source, name) for name in SIDES}
    assert found == split(source, Split.auto, validation_fraction=fraction)


def test_a_random_split_does_not_look_at_the_sides_of_the_source() -> None:
    source = source_of({"train": groups_of(9), "validation": groups_of(3), "test": ["g1", "t"] * 5})
    without = Source(source.items, np.full(len(source.splits), ""))
    assert split(source, Split.random) == split(without, Split.random)


def test_validation_is_taken_from_train_by_group_where_the_source_has_none() -> None:
    source = source_of({"train": groups_of(40), "test": ["t1", "t2"] * 20})
    found, again, other = (split(source, validation_fraction=0.25, seed=seed) for seed in (3, 3, 4))
    train, validation, test = found.values()
    assert test == items_of(source, "test")
    assert sorted(train + validation) == items_of(source, "train")
    # Groups that were held back are no mistake of the source.
    assert not set(source.items.groups[train]) & set(source.items.groups[validation])
    assert split_source(source, PrepareConfig(), 0).warnings == ()
    assert len(validation) == pytest.approx(50, abs=5)
    assert all(side == sorted(side) for side in found.values())
    assert again == found
    assert other["validation"] != validation
    assert split(source, validation_fraction=0.0)["validation"] == []


def test_data_for_evaluation_have_nothing_to_train_on() -> None:
    source = source_of({"": groups_of(30)})
    found = split(source, Split.evaluation, validation_fraction=0.5, test_fraction=0.5)
    assert found["train"] == []
    assert sorted(found["validation"] + found["test"]) == list(range(150))
    assert len(found["validation"]) == pytest.approx(75, abs=5)
    # As the source says, if it says so of all; also items that it calls train are held back.
    paired = source_of({"validation": groups_of(3), "test": ["t1", "t2"]})
    assert split(paired, Split.evaluation) == {name: items_of(paired, name) for name in SIDES}
    trained = source_of({"train": groups_of(9), "test": ["t1", "t2"]})
    assert split(trained, Split.evaluation)["train"] == []
    tested = source_of({"test": groups_of(9)})
    found = split(tested, Split.evaluation)
    assert found["train"] == [] and 0 < len(found["validation"]) < len(found["test"])


@pytest.mark.parametrize(
    ("sides", "rule", "message"),
    [
        ({"": ["a", "b"]}, "source", "the source does not say which items are for training"),
        ({"train": ["a"], "test": ["b"], "": ["c"]}, "source", "the source does not say which"),
        ({"train": ["a", "b"]}, "source", "the source has no test items; split=random makes a"),
        ({"train": ["a"], "validation": ["b"]}, "auto", "the source has no test items"),
        ({"validation": ["a"], "test": ["b"]}, "auto", "the source has no train items"),
        ({"train": ["a", "a"], "test": ["b"]}, "auto", "2 parts need at least 2 groups"),
        (
            {"": ["a", "a", "b"]},
            "auto",
            "3 parts need at least 3 groups of items, which stay whole, and there are 2; give "
            "group=… another column, as group=id where each item is by itself, or split=none",
        ),
    ],
)
def test_a_source_without_its_sides_is_refused_in_one_line(
    sides: dict[str, list[str]], rule: str, message: str
) -> None:
    assert refusal(lambda: split(source_of(sides), Split(rule))).startswith(message)


@pytest.mark.parametrize(
    ("sides", "count"),
    [
        ({"train": ["v1", "v2", "v3"], "validation": ["v2", "v4"], "test": ["v3", "v5"]}, 2),
        ({"train": ["v2"], "validation": ["v2"], "test": ["v2", "v2"]}, 1),
        ({"train": ["v2", "v2", "b"], "validation": ["c"], "test": ["d", "d"]}, 0),
        ({"": ["v2", "v2", "b"]}, 0),
    ],
)
def test_groups_on_two_sides_are_counted_and_one_is_named(
    sides: dict[str, list[str]], count: int
) -> None:
    source = source_of(sides)
    warnings = shared_groups(source.items, source.splits)
    assert len(warnings) == min(count, 1)
    if "" not in sides:
        assert split_source(source, PrepareConfig(), 0).warnings == warnings
    for warning in warnings:
        assert f"has {count} groups" in warning
        assert "as v2:" in warning
        assert "split=random" in warning
