"""The embedded dataset: three noisy, complementary, unaligned views of a sentiment path.

Every utterance has three latent emotions (think of wording, tone and face) that drift over
its duration. Its sentiment is the mean of their sum, in [-3, 3]. Each modality sees a mixture of
the three at its own frame rate: mostly one emotion, some of the next, none of the third, with
frame noise, distractor channels, and a gain and an offset of its own for each speaker. So no
modality suffices alone, and they are worth more together.
"""

import numpy as np
from numpy.typing import NDArray

from common.config import SyntheticConfig
from common.data.dataset import MultimodalDataset, Sequences
from common.errors import UserError
from common.seeding import generator
from common.task import Task

#: Per modality: feature width, shortest and longest sequence, how it sees the three emotions.
VIEWS: dict[str, tuple[int, tuple[int, int], tuple[float, float, float]]] = {
    "language": (24, (6, 20), (1.0, 0.5, 0.0)),
    "audio": (12, (12, 32), (0.0, 1.0, 0.5)),
    "vision": (16, (8, 24), (0.5, 0.0, 1.0)),
}
EMOTIONS = 3
PATH_POINTS = 32


def make_synthetic(
    config: SyntheticConfig, seed: int, prefix: str = "dataset."
) -> MultimodalDataset:
    """Make the dataset in memory, the same for the same settings and seed.

    ``config.noise`` is the standard deviation of the frame noise; 0 leaves only what a view does
    not see. Labels are in [-3, 3], groups are speakers. `prefix` is that of the settings in errors.
    """
    if config.task is not Task.regression:
        raise UserError(f"{prefix}task={config.task}: the synthetic dataset has regression")
    if not config.modalities or set(config.modalities) - set(VIEWS):
        raise UserError(
            f"{prefix}modalities={list(config.modalities)}: the synthetic dataset has "
            f"{', '.join(VIEWS)}"
        )
    rng = generator(seed, "synthetic")
    speakers = np.sort(rng.integers(config.num_speakers, size=config.num_items))
    # (items, PATH_POINTS, EMOTIONS): a level of each item and a smooth drift.
    level = rng.normal(scale=0.7, size=(config.num_items, 1, EMOTIONS))
    steps = rng.normal(scale=0.15, size=(config.num_items, PATH_POINTS, EMOTIONS))
    drift = np.cumsum(steps, axis=1)
    paths = level + drift - drift.mean(axis=1, keepdims=True)
    labels = np.clip(1.6 * paths.sum(axis=2).mean(axis=1), -3, 3).astype(np.float32)
    return MultimodalDataset(
        ids=np.array([f"utterance-{item:05d}" for item in range(config.num_items)]),
        groups=np.array([f"speaker-{speaker:03d}" for speaker in speakers]),
        labels=labels,
        sequences={
            name: _view(
                generator(seed, "synthetic", name), name, paths, speakers, config.noise
            ).last_steps(config.max_seq_len)
            for name in config.modalities
        },
    )


def _view(
    rng: np.random.Generator,
    name: str,
    paths: NDArray[np.float64],
    speakers: NDArray[np.int64],
    noise: float,
) -> Sequences:
    width, (shortest, longest), weights = VIEWS[name]
    mixing = rng.normal(size=(EMOTIONS, width)) * np.asarray(weights)[:, None]
    gains = rng.uniform(0.7, 1.3, size=speakers.max() + 1)
    offsets = rng.normal(scale=0.5, size=(speakers.max() + 1, width))
    lengths = rng.integers(shortest, longest + 1, size=len(paths))
    parts = []
    for path, speaker, length in zip(paths, speakers, lengths, strict=True):
        frames = path[np.linspace(0, PATH_POINTS - 1, length).round().astype(int)]
        signal = gains[speaker] * np.tanh(frames @ mixing) + offsets[speaker]
        # Noise shared by a whole utterance does not average out over its frames.
        shared = rng.normal(scale=0.45 * noise, size=width)
        values = signal + shared + rng.normal(scale=noise, size=(length, width))
        parts.append(values.astype(np.float32))
    return Sequences.ragged(np.concatenate(parts), lengths)
