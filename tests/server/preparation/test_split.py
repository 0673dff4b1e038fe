"""Sides of a split: whole groups at random, or exactly as the source says."""

import itertools

import numpy as np
import pytest
from data_checks import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.dataset import MultimodalDataset
from common.data.partition import Sides, split_groups
from common.data.source import Source
from server.preparation.split import shared_groups, split_by_source


def items_of(groups: list[str] | np.ndarray) -> MultimodalDataset:
    """Items that are nothing but their groups."""
    count = len(groups)
    return MultimodalDataset(
        ids=np.array([f"item{number}" for number in range(count)], dtype=np.str_),
        groups=np.array(groups, dtype=np.str_),
        labels=np.arange(count, dtype=np.float32),
        sequences={},
    )


def source_of(sides: dict[str, list[str]]) -> Source:
    """A source that says for each side which groups its items are of; items in mixed order."""
    pairs = [(side, group) for side, groups in sides.items() for group in groups]
    order = np.random.default_rng(0).permutation(len(pairs))
    mixed = [pairs[index] for index in order]
    splits = np.array([side for side, _ in mixed], dtype="U10")
    return Source(items_of([group for _, group in mixed]), splits)


def each(sides: Sides) -> dict[str, list[int]]:
    return {name: getattr(sides, name).tolist() for name in ("train", "validation", "test")}


def many_groups(number: int, size: int = 5) -> list[str]:
    return [f"g{group}" for group in range(number) for _ in range(size)]


@st.composite
def grouped(draw: st.DrawFn) -> list[str]:
    """At least three groups of any size, their items in any order."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=3, max_size=15))
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    return list(np.random.default_rng(draw(st.integers(0, 99))).permutation(groups))


FRACTIONS = st.sampled_from([0.0, 0.1, 0.3, 0.45])


@given(grouped(), FRACTIONS, FRACTIONS, st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_random_split_never_shares_a_group_and_loses_no_item(
    groups: list[str], validation: float, test: float, seed: int
) -> None:
    sides = split_groups(items_of(groups), validation, test, seed)
    found = each(sides)
    assert sorted(itertools.chain(*found.values())) == list(range(len(groups)))
    held = [{groups[item] for item in side} for side in found.values()]
    assert sum(map(len, held)) == len(set(groups))
    assert all(side == sorted(side) for side in found.values())
    assert sides.warnings == ()
    assert found["train"]
    assert bool(found["validation"]) == (validation > 0)
    assert bool(found["test"]) == (test > 0)


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.5)])
def test_fractions_are_missed_by_little_and_the_seed_decides(
    validation: float, test: float
) -> None:
    items = items_of(many_groups(200))
    one, same, other = (each(split_groups(items, validation, test, seed)) for seed in (1, 1, 2))
    wanted = {"train": 1 - validation - test, "validation": validation, "test": test}
    for name, share in wanted.items():
        assert len(one[name]) / 1000 == pytest.approx(share, abs=0.01)
    assert one == same
    assert one["test"] != other["test"]
    assert (one["validation"] != other["validation"]) == (validation > 0)
    few = items_of(["a", "a", "b"])
    words = "3 parts need at least 3 groups", "there are 2"
    refusal(lambda: split_groups(few, 0.1, 0.2, 0), *words)


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_a_source_with_all_sides_is_kept_exactly(fraction: float) -> None:
    source = source_of({"train": ["a", "b"] * 8, "validation": ["c"] * 3, "test": ["d"] * 5})
    found = each(split_by_source(source, fraction, 3))
    for name, side in found.items():
        assert side == np.flatnonzero(source.splits == name).tolist()
    assert [len(side) for side in found.values()] == [16, 3, 5]


def test_validation_is_taken_from_train_by_group_where_the_source_has_none() -> None:
    source = source_of({"train": many_groups(40), "test": ["t1", "t2"] * 20})
    sides = split_by_source(source, 0.25, 3)
    found, groups = each(sides), source.items.groups
    assert found["test"] == np.flatnonzero(source.splits == "test").tolist()
    both = sorted(found["train"] + found["validation"])
    assert both == np.flatnonzero(source.splits == "train").tolist()
    assert not set(groups[found["train"]]) & set(groups[found["validation"]])
    assert len(found["validation"]) == pytest.approx(50, abs=5)
    assert all(side == sorted(side) for side in found.values())
    # Groups that were held back are no mistake of the source.
    assert sides.warnings == ()
    assert each(split_by_source(source, 0.25, 3)) == found
    assert each(split_by_source(source, 0.25, 4))["validation"] != found["validation"]
    assert each(split_by_source(source, 0.0, 3))["validation"] == []


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"": ["a", "b"]}, "the source does not say which items are for training"),
        ({"train": ["a"], "test": ["b"], "": ["c"]}, "the source does not say which items"),
        ({"train": ["a", "b"]}, "the source has no test items; split=random makes a split"),
        ({"train": ["a"], "validation": ["b"]}, "the source has no test items"),
        ({"validation": ["a"], "test": ["b"]}, "the source has no train items"),
        ({"train": ["a", "a"], "test": ["b"]}, "2 parts need at least 2 groups"),
    ],
)
def test_a_source_without_its_sides_is_refused_in_one_line(
    sides: dict[str, list[str]], message: str
) -> None:
    assert refusal(lambda: split_by_source(source_of(sides), 0.2, 0)).startswith(message)


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
        assert split_by_source(source, 0.2, 0).warnings == warnings
    for warning in warnings:
        assert f"has {count} groups" in warning
        assert "as v2:" in warning
        assert "split=random" in warning
        assert "\n" not in warning
