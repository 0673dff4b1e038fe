"""The embedded dataset."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from common.config import SyntheticConfig
from common.data.dataset import MultimodalDataset
from common.data.synthetic import CUES, VIEWS, WEAKEST, make_events, make_synthetic
from common.seeding import generator

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
    assert items.labels.dtype == np.float64
    assert items.labels.shape == (800,)
    assert items.labels.min() >= -3 and items.labels.max() <= 3
    assert abs(items.labels.mean()) < 0.15 and items.labels.std() > 1
    assert set(items.groups) == {f"speaker-{number:03d}" for number in range(12)}


@pytest.mark.parametrize("name", NAMES)
def test_sequences_are_as_the_views_say(name: str) -> None:
    width, (shortest, longest) = VIEWS[name]
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


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_label_is_the_cue_that_a_focus_announces(name: str) -> None:
    lengths, events, parts = make_events(generator(0, "test"), name, 400)
    cues, focuses, distractors = (events[..., way] for way in range(3))
    assert (np.count_nonzero(events, axis=2) <= 1).all()
    assert not events[np.arange(events.shape[1]) >= lengths[:, None]].any()
    assert (np.count_nonzero(cues, axis=1) == CUES).all()
    assert (focuses.sum(axis=1) == 1).all()
    # Each cue is announced in the step before, and nothing else is.
    assert np.array_equal(cues[:, 1:] != 0, (focuses + distractors)[:, :-1] == 1)
    assert np.array_equal((cues[:, 1:] * focuses[:, :-1]).sum(axis=1), parts)
    sizes = np.abs(cues[cues != 0])
    assert sizes.min() >= WEAKEST and sizes.max() <= 1
    # Neither the time nor the size of a cue tells whether it counts.
    assert abs(np.corrcoef(np.abs(parts), np.argmax(focuses, axis=1))[0, 1]) < 0.15
    assert np.abs(parts).mean() == pytest.approx(sizes.mean(), abs=0.03)


def test_labels_add_up_the_parts_of_all_modalities() -> None:
    rngs = [(name, generator(7, "synthetic", name)) for name in NAMES]
    parts = [make_events(rng, name, 60)[2] for name, rng in rngs]
    assert np.array_equal(make(7).labels, sum(parts))


def test_a_speaker_has_an_offset_and_a_gain_of_its_own() -> None:
    items = make(items=1200, noise=0.0)
    rows = [
        (mine := items.select(np.flatnonzero(items.groups == name)).sequences["audio"]).values[
            mine.rows()
        ]
        for name in sorted(set(items.groups))
    ]
    # Cues of either sign cancel, focuses and distractors come in fixed numbers.
    assert np.std([own.mean(axis=0) for own in rows], axis=0).mean() > 0.15
    spreads = [np.linalg.norm(own - own.mean(axis=0), axis=1).mean() for own in rows]
    assert 0.05 < np.std(spreads) / np.mean(spreads) < 0.25


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_linear_model_of_means_sees_a_third_of_it(seed: int) -> None:
    items = make(seed, items=3000, speakers=60)
    table = np.hstack(
        [
            np.stack([sequences[item].mean(axis=0) for item in range(len(items))])
            for sequences in items.sequences.values()
        ]
    )
    known = items.groups < "speaker-042"
    ridge = RidgeCV(np.logspace(-2, 4, 13)).fit(table[known], items.labels[known])
    found = np.corrcoef(ridge.predict(table[~known]), items.labels[~known])[0, 1]
    assert 0.4 < found < np.sqrt(1 / CUES) + 0.04


def test_noise_is_the_spread_of_frames() -> None:
    # The same draws, so that the difference of two datasets is their noise alone.
    none, loud = (make(noise=noise).sequences["audio"].values for noise in (0.0, 2.0))
    assert np.std(loud - none) == pytest.approx(2.0, rel=0.05)
