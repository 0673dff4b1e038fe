"""The embedded dataset: which cue of a modality counts is told by the step before it.

Each modality of an utterance gives three cues, each of a strength and a sign. One of the three, the
one that a *focus* announces a step earlier, is that modality's part of the sentiment; the other
two follow a *distractor* and mean nothing. The sentiment is the sum of the modalities' parts, in
[-3, 3]. So a mean over time sees a third of a part, order has to be learned, and since parts are
independent no modality knows more than its own: a correlation of 1/sqrt(3) at best.

Cue, focus and distractor are three orthogonal directions among the features of a frame, under
noise, with a gain and an offset of its own for each speaker. Modalities have their own frame rates.
"""

import numpy as np
from numpy.typing import NDArray

from common.config import SyntheticConfig
from common.data.dataset import MultimodalDataset, Sequences
from common.errors import UserError
from common.seeding import generator
from common.task import Task

#: Per modality: feature width, shortest and longest sequence.
VIEWS: dict[str, tuple[int, tuple[int, int]]] = {
    "language": (8, (6, 7)),
    "audio": (5, (7, 9)),
    "vision": (6, (6, 8)),
}
CUES = 3
#: What an event adds to a frame, in standard deviations of noise of 1.
SIGNAL = 12.0
#: Strengths of cues lie between it and 1.
WEAKEST = 0.4


def make_synthetic(
    config: SyntheticConfig, seed: int, prefix: str = "dataset."
) -> MultimodalDataset:
    """Make the dataset in memory, the same for the same settings and seed.

    ``config.noise`` is the standard deviation of the frame noise. Labels are the sum of the parts
    of all of `VIEWS`, in [-3, 3], whichever of them are asked for; groups are speakers. `prefix`
    is that of the settings in errors.
    """
    if config.task is not Task.regression:
        raise UserError(f"{prefix}task={config.task}: the synthetic dataset has regression")
    if not config.modalities or set(config.modalities) - set(VIEWS):
        raise UserError(
            f"{prefix}modalities={list(config.modalities)}: the synthetic dataset has "
            f"{', '.join(VIEWS)}"
        )
    items = config.num_items
    speakers = np.sort(generator(seed, "synthetic").integers(config.num_speakers, size=items))
    labels, sequences = np.zeros(items), {}
    for name in VIEWS:
        parts, view = _view(generator(seed, "synthetic", name), name, speakers, config.noise)
        labels += parts
        sequences[name] = view
    return MultimodalDataset(
        ids=np.array([f"utterance-{item:05d}" for item in range(items)]),
        groups=np.array([f"speaker-{speaker:03d}" for speaker in speakers]),
        labels=labels,
        sequences={
            name: sequences[name].last_steps(config.max_seq_len) for name in config.modalities
        },
    )


def _view(
    rng: np.random.Generator, name: str, speakers: NDArray[np.int64], noise: float
) -> tuple[NDArray[np.float64], Sequences]:
    """Return the parts of the label that a modality knows, (items,), and its sequences."""
    width, (_, longest) = VIEWS[name]
    lengths, events, parts = make_events(rng, name, len(speakers))
    directions = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    gains = rng.uniform(0.8, 1.2, size=(speakers.max() + 1, 1, 1))
    offsets = rng.normal(scale=0.4, size=(speakers.max() + 1, 1, width))
    frames = gains[speakers] * (SIGNAL * events @ directions) + offsets[speakers]
    frames += rng.normal(scale=noise, size=frames.shape)
    real = np.arange(longest) < lengths[:, None]
    return parts, Sequences.ragged(frames[real].astype(np.float32), lengths)


def make_events(
    rng: np.random.Generator, name: str, items: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Draw what happens in a modality of each item.

    Returns lengths, (items,); how much of a cue, a focus and a distractor is in each step,
    (items, longest, 3); and parts of the label, (items,).
    """
    shortest, longest = VIEWS[name][1]
    lengths = rng.integers(shortest, longest + 1, size=items)
    cues = rng.choice([-1, 1], size=(items, CUES)) * rng.uniform(WEAKEST, 1, size=(items, CUES))
    focused = rng.integers(CUES, size=items)
    # Each cue has a pair of steps of its own; which one says nothing about it.
    pairs = rng.random((items, longest // 2))
    pairs[np.arange(longest // 2) >= (lengths // 2)[:, None]] = np.inf
    cue_steps = 2 * np.argsort(pairs, axis=1)[:, :CUES] + 1
    events, every = np.zeros((items, longest, 3)), np.arange(items)
    for cue in range(CUES):
        events[every, cue_steps[:, cue], 0] = cues[:, cue]
        events[every, cue_steps[:, cue] - 1, np.where(focused == cue, 1, 2)] = 1
    return lengths, events, cues[every, focused]
