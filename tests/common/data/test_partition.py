"""Every rule deals each train item to one client; each rule's own promise."""

import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import refusal, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from common.clients import ClientKey
from common.config import DirichletConfig, PartitionConfig, PartitionRule, SizeConfig, SizeLaw
from common.data.dataset import MultimodalDataset
from common.data.partition import Dealt, deal, partition_groups
from common.seeding import generator
from common.task import Task

BY_ITEM = [PartitionRule.iid, PartitionRule.dirichlet, PartitionRule.size]
RULES = [PartitionRule.groups, PartitionRule.natural, *BY_ITEM]


def rule(name: PartitionRule | str, **settings: Any) -> PartitionConfig:
    """A rule with its settings; label skew is mild unless it is told."""
    match PartitionRule(name):
        case PartitionRule.dirichlet:
            return DirichletConfig(**{"alpha": 50.0, **settings})
        case PartitionRule.size:
            return SizeConfig(**settings)
        case other:
            return PartitionConfig(name=other, **settings)


def dataset(count: int, per_group: int = 3, labels: np.ndarray | None = None) -> MultimodalDataset:
    """Items in mixed groups; the labels are normal unless they are given."""
    rng = np.random.default_rng(count)
    groups = rng.permutation(np.arange(count) // per_group)
    normal = rng.normal(size=count).astype(np.float32)
    return MultimodalDataset(
        ids=np.array([f"i{number}" for number in range(count)], dtype=np.str_),
        groups=np.array([f"g{number:04d}" for number in groups], dtype=np.str_),
        labels=normal if labels is None else labels,
        sequences={},
    )


def dealt_by(
    name: PartitionRule | str,
    items: MultimodalDataset,
    counts: Mapping[str, int],
    *,
    train: np.ndarray | None = None,
    task: Task = Task.regression,
    seed: int = 5,
    **settings: Any,
) -> Dealt:
    train = np.arange(len(items)) if train is None else train
    return deal(items, train, counts, rule(name, **settings), task, seed)


def as_lists(dealt: Dealt) -> dict[str, list[int]]:
    return {str(key): part.tolist() for key, part in dealt.items()}


def sizes(dealt: Dealt, modality: str = "audio") -> list[int]:
    return [len(part) for key, part in dealt.items() if key.modality == modality]


COUNTS = st.dictionaries(
    st.sampled_from(["language", "audio", "vision"]), st.integers(1, 4), min_size=1
)


@pytest.mark.parametrize("name", RULES)
@given(data=st.data(), counts=COUNTS, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_all_train_items_are_dealt_once_and_no_others(
    name: PartitionRule, data: st.DataObject, counts: dict[str, int], seed: int
) -> None:
    clients = sum(counts.values())
    # Unequal sizes and label skew need some room for the least client.
    least = clients * (20 if name in (PartitionRule.size, PartitionRule.dirichlet) else 3)
    items = dataset(data.draw(st.integers(least, least + 90)), per_group=2)
    whole = np.random.default_rng(seed).permutation(len(items))
    train = np.sort(whole[: data.draw(st.integers(least * 2 // 3, len(items)))])
    if len(np.unique(items.groups[train])) < clients:
        train = np.arange(len(items))
    dealt = dealt_by(name, items, counts, train=train, seed=seed)
    assert sorted(chain(*as_lists(dealt).values())) == train.tolist()
    assert all((np.diff(part) > 0).all() for part in dealt.values())
    assert all(part.dtype == np.int64 for part in dealt.values())
    if name is not PartitionRule.natural:
        keys = [ClientKey(each, part) for each, count in counts.items() for part in range(count)]
        assert list(dealt) == keys
    if name is PartitionRule.iid:
        assert all(max(sizes(dealt, each)) - min(sizes(dealt, each)) <= 1 for each in counts)


@pytest.mark.parametrize("name", RULES)
def test_the_seed_decides(name: PartitionRule) -> None:
    items, counts = dataset(300), {"audio": 2, "vision": 3}
    one, same, other = (as_lists(dealt_by(name, items, counts, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    if name in BY_ITEM:
        # Modalities get items in proportion to their clients.
        dealt = dealt_by(name, dataset(600), {"language": 1, "audio": 4, "vision": 2})
        shares = [sum(sizes(dealt, name)) for name in ("language", "audio", "vision")]
        assert shares == pytest.approx([600 / 7, 2400 / 7, 1200 / 7], abs=1)


NONE, SKEWED = np.empty(0, dtype=np.int64), {"alpha": 0.01, "min_items": 99}


@pytest.mark.parametrize(
    ("name", "count", "counts", "settings", "message"),
    [
        *((name, 6, {"audio": 4, "vision": 3}, {}, "7 clients are too many") for name in BY_ITEM),
        ("iid", 6, {"audio": 1}, {"train": NONE}, "1 clients are too many for 0 train items"),
        ("groups", 9, {"audio": 4}, {}, "4 clients are too many for the train items: 4 parts need"),
        ("natural", 3, {"audio": 1, "vision": 1}, {}, "2 parts need at least 2 groups"),
        ("natural", 20, {"audio": 1}, {"min_items": 3}, "client audio-6 gets 2 items with"),
        ("iid", 60, {"audio": 3}, {"min_items": 21}, "client audio-0 gets 20 items"),
        ("groups", 60, {"audio": 2}, {"min_items": 31}, "fewer than partition.min_items=31"),
        ("size", 60, {"audio": 3}, {"min_items": 31}, "with partition=size, fewer than"),
        ("size", 60, {"audio": 12}, {"law": SizeLaw.exponential}, "cannot deal 60 items to 12 cli"),
        ("dirichlet", 300, {"audio": 3}, SKEWED, "cannot deal 300 items to 3 clients of audio: "),
    ],
)
def test_what_cannot_be_dealt_is_refused(
    name: str, count: int, counts: dict[str, int], settings: dict[str, Any], message: str
) -> None:
    refusal(lambda: dealt_by(name, dataset(count), counts, **settings), message)


def digest() -> str:
    """Of what all rules deal."""
    items, counts = dataset(400), {"audio": 2, "vision": 3}
    dealt = {name: as_lists(dealt_by(name, items, counts)) for name in RULES}
    return hashlib.sha256(repr(dealt).encode()).hexdigest()


def test_another_process_with_other_hashes_of_text_deals_the_same() -> None:
    program = f"from {__name__} import digest; print(digest())"
    here = Path(__file__).parent
    path = f"{here.parents[2]}:{here}"
    assert run_python(program, PYTHONHASHSEED="4242", PYTHONPATH=path).strip() == digest()


def test_each_group_is_a_client_and_none_is_left_out() -> None:
    items = dataset(90)
    train = np.flatnonzero(items.groups < "g0024")
    dealt = dealt_by("natural", items, {"audio": 1, "vision": 1}, train=train)
    held = [set(items.groups[part]) for part in dealt.values()]
    assert all(len(groups) == 1 for groups in held)
    assert sorted(chain(*held)) == [f"g{number:04d}" for number in range(24)]
    for part in dealt.values():
        assert len(part) == 3
    # Modalities get the groups evenly, and their clients are numbered from 0.
    assert [key.part for key in dealt if key.modality == "audio"] == list(range(12))
    assert [key.part for key in dealt if key.modality == "vision"] == list(range(12))


@pytest.mark.parametrize("name", ["iid", "size"])
def test_random_items_have_about_the_same_labels_at_each_client(name: str) -> None:
    # In order of their labels, so that whoever does not shuffle is found out.
    items = dataset(4000, labels=np.linspace(-3, 3, 4000))
    for part in dealt_by(name, items, {"audio": 2, "vision": 2}).values():
        # Five standard errors.
        assert abs(items.labels[part].mean()) < 5 * items.labels.std() / np.sqrt(len(part))


@pytest.mark.parametrize(
    ("law", "audio", "vision"),
    [
        (SizeLaw.linear, [100, 200, 300], [133, 267]),
        (SizeLaw.square, [42, 171, 387], [80, 320]),
        (SizeLaw.exponential, [54, 146, 400], [107, 293]),
    ],
)
def test_sizes_grow_by_their_law_in_each_modality(
    law: SizeLaw, audio: list[int], vision: list[int]
) -> None:
    dealt = dealt_by("size", dataset(1000), {"audio": 3, "vision": 2}, law=law)
    assert sum(sizes(dealt)) == 600
    assert sizes(dealt) == pytest.approx(audio, abs=2)
    assert sizes(dealt, "vision") == pytest.approx(vision, abs=2)


# Label skew -------------------------------------------------------------------------------------


def test_a_smaller_alpha_gives_more_skew() -> None:
    items, counts = dataset(2000), {"audio": 3, "vision": 3}
    fifth = items.labels.argsort().argsort() // 400
    mean = []
    for alpha in (0.1, 1.0, 1000.0):
        drawn = (dealt_by("dirichlet", items, counts, alpha=alpha, seed=seed) for seed in range(5))
        parts = chain.from_iterable(dealt.values() for dealt in drawn)
        mean.append(np.mean([entropy(np.bincount(fifth[part])) for part in parts]))
    assert mean[0] < mean[1] - 0.2 < mean[2] - 0.3
    # Hardly any skew is left: five equal shares.
    assert mean[2] == pytest.approx(np.log(5), abs=0.02)


def held_whole(dealt: Dealt, bins: np.ndarray) -> list[str]:
    """For each bin, who holds nearly all of it."""
    names, holders = list(as_lists(dealt)), []
    for each in np.unique(bins):
        shares = [np.mean(np.isin(np.flatnonzero(bins == each), part)) for part in dealt.values()]
        assert max(shares) > 0.9, f"bin {each} is spread over clients: {shares}"
        holders.append(names[int(np.argmax(shares))])
    return holders


@pytest.mark.parametrize("bins", [4, 9])
def test_numbers_are_skewed_by_quantiles(bins: int) -> None:
    # Far from normal, so that bins of equal width would hold unequal numbers.
    labels = np.random.default_rng(0).normal(size=900) ** 3
    items = dataset(900, labels=labels)
    dealt = dealt_by("dirichlet", items, {"audio": 2}, alpha=0.001, bins=bins)
    rank = labels.argsort().argsort() * bins // 900
    assert set(held_whole(dealt, rank)) == {"audio-0", "audio-1"}
    assert all(size % (900 // bins) in (0, 1, 900 // bins - 1) for size in sizes(dealt))


def test_classes_are_skewed_as_they_are() -> None:
    labels = np.random.default_rng(0).integers(4, size=800)
    items, classes = dataset(800, labels=labels), {"bins": 2, "task": Task.classification}
    dealt = dealt_by("dirichlet", items, {"audio": 2}, alpha=0.001, **classes)
    assert set(held_whole(dealt, labels)) == {"audio-0", "audio-1"}


def test_several_labels_are_skewed_by_the_first_that_is_set() -> None:
    labels = (np.random.default_rng(0).random((800, 3)) < 0.4).astype(np.float32)
    first = np.array([next((k for k in range(3) if row[k]), 3) for row in labels])
    assert set(first) == {0, 1, 2, 3}
    items, several = dataset(800, labels=labels), {"alpha": 0.001, "task": Task.multilabel}
    draws = (dealt_by("dirichlet", items, {"audio": 2}, seed=seed, **several) for seed in range(20))
    holders = [held_whole(dealt, first) for dealt in draws]
    # The fourth kind, no label at all, must not be taken for the first.
    assert any(names[0] != names[3] for names in holders)


def test_label_skew_is_drawn_anew_until_every_client_has_enough() -> None:
    items, counts, least = dataset(300), {"audio": 3}, []
    for seed in range(10):
        # Of these seeds the first draw leaves some client with less.
        once = dealt_by("dirichlet", items, counts, alpha=0.5, min_items=1, seed=seed)
        least.append(min(sizes(once)))
        dealt = dealt_by("dirichlet", items, counts, alpha=0.5, min_items=60, seed=seed)
        assert min(sizes(dealt)) >= 60
        assert sum(sizes(dealt)) == 300
    assert min(least) < 60


def test_modalities_are_skewed_differently() -> None:
    items = dataset(2000)
    dealt = dealt_by("dirichlet", items, {"audio": 3, "vision": 3}, alpha=0.3)
    means = {str(key): float(items.labels[part].mean()) for key, part in dealt.items()}
    audio, vision = ([means[f"{name}-{part}"] for part in range(3)] for name in ("audio", "vision"))
    assert max(abs(a - v) for a, v in zip(audio, vision, strict=True)) > 0.2


# Whole groups -----------------------------------------------------------------------------------


@st.composite
def grouped(draw: st.DrawFn) -> tuple[np.ndarray, list[float]]:
    """Groups of any size, in any order of items, at least one for each part."""
    equal = draw(st.booleans())
    share = st.just(1.0) if equal else st.floats(0.05, 1.0)
    shares = draw(st.lists(share, min_size=1, max_size=5))
    sizes = draw(st.lists(st.integers(1, 9), min_size=len(shares), max_size=12))
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(groups), shares


@given(grouped(), st.integers(0, 99))
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
    few = np.array(["a", "b", "a"])
    words = "3 parts need at least 3 groups", "there are 2"
    refusal(lambda: partition_groups(few, [1.0] * 3, generator(0)), *words)
    refusal(lambda: partition_groups(few[:0], [1.0], generator(0)), "there are 0")
