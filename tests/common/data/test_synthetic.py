"""The embedded dataset."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from common.config import SyntheticConfig
from common.data.dataset import MultimodalDataset
from common.data.synthetic import VIEWS, make_synthetic

NAMES = list(VIEWS)


def make(
    seed: int = 0, items: int = 60, speakers: int = 6, **settings: object
) -> MultimodalDataset:
    settings = {"modalities": NAMES} | settings
    return make_synthetic(SyntheticConfig(num_items=items, num_speakers=speakers, **settings), seed)


def equal(one: MultimodalDataset, two: MultimodalDataset, name: str) -> bool:
    a, b = one.sequences[name], two.sequences[name]
    return np.array_equal(a.lengths, b.lengths) and np.array_equal(a.values, b.values)


def test_the_seed_decides() -> None:
    one, same, other = make(3), make(3), make(4)
    assert np.array_equal(one.labels, same.labels)
    assert np.array_equal(one.groups, same.groups)
    assert all(equal(one, same, name) for name in NAMES)
    assert not np.array_equal(one.labels, other.labels)
    assert not any(equal(one, other, name) for name in NAMES)


def test_a_modality_is_the_same_without_the_others() -> None:
    full, part = make(), make(modalities=["vision", "language"])
    assert list(part.sequences) == ["vision", "language"]
    assert np.array_equal(part.labels, full.labels)
    assert np.array_equal(part.groups, full.groups)
    assert all(equal(part, full, name) for name in part.sequences)


def test_labels_are_sentiments_and_groups_are_speakers() -> None:
    items = make(items=800, speakers=12)
    assert items.labels.dtype == np.float32
    assert items.labels.shape == (800,)
    assert items.labels.min() >= -3 and items.labels.max() <= 3
    assert abs(items.labels.mean()) < 0.5 and items.labels.std() > 1
    assert set(items.groups) == {f"speaker-{number:03d}" for number in range(12)}


@pytest.mark.parametrize("name", NAMES)
def test_sequences_are_as_the_views_say(name: str) -> None:
    width, (shortest, longest), _ = VIEWS[name]
    seqs = make(items=400).sequences[name]
    assert seqs.width == width
    assert (seqs.lengths.min(), seqs.lengths.max()) == (shortest, longest)
    assert seqs.values.dtype == np.float32
    assert np.isfinite(seqs.values).all()
    assert len(seqs.rows()) == seqs.lengths.sum() == len(seqs.values)


def test_modalities_are_not_aligned() -> None:
    lengths = [sequences.lengths for sequences in make(items=400).sequences.values()]
    for one in range(3):
        for two in range(one):
            assert (lengths[one] != lengths[two]).any()
            assert abs(np.corrcoef(lengths[one], lengths[two])[0, 1]) < 0.2


def test_a_speaker_has_an_offset_of_its_own() -> None:
    # Without the offsets the means of speakers would differ by the noise of 100 items only.
    items = make(items=600, noise=0.0)
    means = {}
    for name in set(items.groups):
        mine = items.select(np.flatnonzero(items.groups == name)).sequences["audio"]
        means[name] = mine.values[mine.rows()].mean(axis=0)
    assert np.std(list(means.values()), axis=0).mean() > 0.25


def correlations(seed: int, noise: float) -> dict[str, float]:
    """Correlation of a ridge regression on mean-pooled features, on speakers it has not seen."""
    items = make(seed, items=1600, speakers=40, noise=noise)
    features = {
        name: np.stack([sequences[item].mean(axis=0) for item in range(len(items))])
        for name, sequences in items.sequences.items()
    }
    features["all"] = np.hstack(list(features.values()))
    known = items.groups < "speaker-028"
    found = {}
    for name, table in features.items():
        ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(table[known], items.labels[known])
        predicted = ridge.predict(table[~known])
        found[name] = float(np.corrcoef(predicted, items.labels[~known])[0, 1])
    return found


def test_three_modalities_are_worth_more_than_one() -> None:
    found = correlations(1234, noise=1.0)
    together = found.pop("all")
    assert min(found.values()) > 0.4  # each tells something
    assert together - max(found.values()) > 0.1


def test_without_noise_one_modality_still_does_not_suffice() -> None:
    found = correlations(1234, noise=0.0)
    # Who sees two of three equal emotions perfectly is right to sqrt(2/3) = .816.
    for name in NAMES:
        assert 0.4 < found[name] < np.sqrt(2 / 3) + 0.03


def test_noise_is_the_spread_of_frames() -> None:
    # Neighbouring frames of an item share signal, offset and shared noise.
    quiet, loud = (make(noise=noise).sequences["audio"] for noise in (0.0, 2.0))
    steps = [np.std(np.diff(seqs[0], axis=0)) for seqs in (quiet, loud)]
    assert steps[0] < 0.5
    assert 2.3 < steps[1] < 3.4  # sqrt(2) * 2, and what the signal moves
