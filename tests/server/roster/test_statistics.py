"""Sites' statistics: pooled as they are where they are alike, bounded where one is odd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_nodes import client
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clients import ClientKey
from common.data.dataset import MultimodalDataset, Sequences
from common.data.moments import FeatureMoments
from common.messages import ClientDescription
from common.model.calibration import label_sums, pool_label_sums
from common.task import Task
from server.aggregation.bounds import FEW_ITEMS, KAPPA, REACH
from server.roster.statistics import Bounded, bound_clients, pool_moments

WIDTH, STEPS = 4, 3


def described(
    name: str, examples: int = 100, *, shift: float = 0.0, unit: float = 1.0, seed: int = 0
) -> ClientDescription:
    """A client whose features are N(shift, unit^2) and whose labels are N(0, 1)."""
    rng = np.random.default_rng([seed, len(name), examples])
    rows = shift + unit * rng.normal(size=(examples * STEPS, WIDTH))
    sums = label_sums(torch.from_numpy(rng.normal(size=examples)), Task.regression, 1)
    own = client(name, sums=tuple(sums.tolist()))
    return replace(own, examples=examples, moments=FeatureMoments.of_rows(rows.astype("f4")))


def coordinator(count: int = 140) -> MultimodalDataset:
    rng = np.random.default_rng(99)
    lengths = np.full(count, STEPS)
    sequences = {
        name: Sequences.ragged(rng.normal(size=(count * STEPS, WIDTH)).astype("f4"), lengths)
        for name in ("audio", "vision")
    }
    items = np.arange(count).astype(str)
    return MultimodalDataset(
        ids=items, groups=items, labels=rng.normal(size=count), sequences=sequences
    )


def bounded(*clients: ClientDescription, own: int = 140) -> Bounded:
    return bound_clients(clients, coordinator(own), Task.regression)


def test_sites_that_are_alike_stay_as_they_are_to_the_bit() -> None:
    clients = [described(f"audio-{part}", 60 + part, seed=part) for part in range(4)]
    clients.append(described("vision-0", 200))
    found = bounded(*clients)
    assert found.odd == [] and found.units == {}
    for after, before in zip(found.clients, clients, strict=True):
        assert torch.equal(after.label_sums, before.label_sums)
        for name, values in vars(before.moments).items():
            assert np.array_equal(getattr(after.moments, name), values), name


def test_moments_are_pooled_by_modality() -> None:
    clients = [described("audio-0", 50), described("audio-1", 90), described("vision-0")]
    pooled = pool_moments(clients)
    assert set(pooled) == {"audio", "vision"}
    one, two = clients[0].moments, clients[1].moments
    np.testing.assert_allclose(pooled["audio"].count, one.count + two.count)
    np.testing.assert_allclose(pooled["audio"].mean, (50 * one.mean + 90 * two.mean) / 140)
    np.testing.assert_allclose(pooled["vision"].mean, clients[2].moments.mean)


@pytest.mark.parametrize("shift", [1e3, -1e30, 1e200])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_lie_about_means_moves_the_standardisation_by_a_bound(others: int, shift: float) -> None:
    """Even of the only site of its modality: the coordinator's items say what is usual."""
    honest = [described(f"audio-{part}", seed=part) for part in range(others)]
    liar = described("audio-9")
    liar = replace(liar, moments=replace(liar.moments, mean=liar.moments.mean + shift))
    found = bounded(*honest, liar)
    pooled = pool_moments(found.clients)["audio"]
    assert (np.abs(pooled.mean) < 1.2 * REACH).all()
    assert (pooled.std < 1.2 * REACH + 1).all()
    (line,) = found.odd
    assert line.startswith("audio-9: odd features: the mean of feature ") and "units" in line


def test_a_site_in_other_units_is_named_and_kept() -> None:
    found = bounded(described("audio-0"), described("audio-1", unit=1000.0), described("audio-2"))
    assert len(found.clients) == 3
    (line,) = found.odd
    assert line.startswith("audio-1: odd features: ")
    assert line.endswith("It trains on features standardised with its own mean and deviation")
    assert list(found.units) == [ClientKey("audio", 1)]
    assert (found.units[ClientKey("audio", 1)].std > 900).all()
    deviation = pool_moments(found.clients)["audio"].std
    assert (deviation < np.sqrt(1 + KAPPA + REACH**2)).all()


@pytest.mark.parametrize("mean", [1000.0, -1e30])
def test_a_lie_about_labels_moves_the_prior_by_a_bound(mean: float) -> None:
    liar = replace(described("audio-1"), label_sums=torch.tensor([100.0, mean, 1e9]).double())
    found = bounded(described("audio-0"), liar)
    count, pooled, squares = pool_label_sums(
        [own.label_sums for own in found.clients], Task.regression
    ).tolist()
    assert count == 200 and abs(pooled) < REACH and squares / count < 1 + KAPPA + REACH**2
    (line,) = found.odd
    assert line.startswith("audio-1: odd labels: the mean is ")


def test_a_claimed_number_of_examples_counts_in_proportion() -> None:
    honest = [described(f"audio-{part}", seed=part) for part in range(3)]
    large = described("vision-0")
    sums = large.label_sums.clone()
    sums[0], sums[2] = 1e9, 1e9
    found = bounded(*honest, replace(large, examples=10**9, label_sums=sums))
    assert found.clients[-1].label_sums[0] == pytest.approx(KAPPA * 100)
    assert found.odd[0] == (
        "vision-0 has 1,000,000,000 examples, more than 4 times the median of the sites: "
        "it counts as 400"
    )


def test_a_claimed_number_of_rows_counts_in_proportion() -> None:
    liar = described("audio-1", shift=2.0)
    many = replace(liar.moments, count=1e9 * liar.moments.count, squares=1e9 * liar.moments.squares)
    found = bounded(described("audio-0"), replace(liar, moments=many))
    pooled = pool_moments(found.clients)["audio"]
    assert (pooled.count <= 100 * STEPS * (1 + KAPPA)).all()


def test_without_items_of_the_coordinator_the_sites_say_what_is_usual() -> None:
    honest = [described(f"audio-{part}", shift=50.0, seed=part) for part in range(3)]
    found = bounded(*honest, described("audio-3", shift=-1e6), own=FEW_ITEMS - 1)
    assert (np.abs(pool_moments(found.clients)["audio"].mean - 50) < 2 * REACH).all()
    assert len(found.odd) == 1


@given(
    sizes=st.lists(st.integers(20, 2000), min_size=2, max_size=5),
    shifts=st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_honest_sites_of_unequal_sizes_have_no_odd_features(
    sizes: list[int], shifts: list[float], seed: int
) -> None:
    clients = [
        described(f"audio-{part}", size, shift=shift, seed=seed)
        for part, (size, shift) in enumerate(zip(sizes, shifts, strict=False))
    ]
    assert not [line for line in bounded(*clients).odd if "odd" in line]
