"""Runs that trained for a moment, on a dataset of each kind, and the files that they read."""

from pathlib import Path

import numpy as np
from tiny_runs import SMALL, SYNTHETIC, in_task

from common.config import Config, PrepareConfig, compose
from server.app import prepare
from server.preparation.preparation import prepare as prepare_shards
from server.runtimes.local import run_locally
from tests.common.data.formats.writers import write_columns

ITEMS = 120
NAMES = ("joy", "fear", "awe")


def train(folder: Path, *overrides: str) -> Path:
    """Train, and return the run folder."""
    settings = [*SMALL, "client.lr=0.03", f"run_dir={folder}", *overrides]
    with in_task():
        run_locally(prepare(compose(Config, settings), folder))
    return folder


def arrays() -> dict[str, np.ndarray]:
    """Items of 30 videos: sequences of which some are missing, and a table of 4 quantities."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, ITEMS)
    sums = rng.normal(size=(ITEMS, 3))
    audio = np.repeat(sums, lengths, axis=0) + rng.normal(size=(lengths.sum(), 3))
    audio[5] = np.nan
    return {
        "sums": sums,
        "audio": audio.astype(np.float32),
        "audio_offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "vision": (sums[:, None, :2] + rng.normal(size=(ITEMS, 4, 2))).astype(np.float16),
        "video": np.array([f"video {item // 4}" for item in range(ITEMS)]),
    }


def write_npz(path: Path) -> Path:
    """Write them with one of three classes."""
    content = arrays()
    np.savez(path, label=content.pop("sums").argmax(axis=1), **content)
    return path


def write_table(folder: Path) -> Path:
    """Write them with three labels that have names; return the table."""
    content = arrays()
    folder.mkdir()
    np.savez(folder / "audio.npz", values=content["audio"], offsets=content["audio_offsets"])
    np.save(folder / "vision.npy", content["vision"])
    labels = (content["sums"] > 0).astype(int).T.tolist()
    columns = {"group": content["video"].tolist(), **dict(zip(NAMES, labels, strict=True))}
    return write_columns(folder / "items.csv", columns)


def on_synthetic(folder: Path) -> Path:
    return train(folder, *SYNTHETIC)


def on_ratings(folder: Path) -> Path:
    """Numbers that are not sentiment, from 1 to 5."""
    content, path = arrays(), folder.parent / "ratings.npz"
    ratings = np.clip(np.rint(3 + content.pop("sums")[:, 0]), 1, 5)
    np.savez(path, label=ratings, **content)
    return train(folder, "dataset=file", f"dataset.path={path}", "dataset.group=video")


def on_npz(folder: Path) -> Path:
    """Classes, of a ragged and a tabular modality, cut to their last steps."""
    path = write_npz(folder.parent / "items.npz")
    settings = f"path={path} task=classification group=video tabular=[vision] max_seq_len=5"
    return train(folder, "dataset=file", *(f"dataset.{each}" for each in settings.split()))


def on_shards(folder: Path) -> Path:
    """Labels with names, of the same items in shards."""
    path, shards = write_table(folder.parent / "table"), folder.parent / "shards"
    settings = f"path={path} out={shards} clients.default=2 task=multilabel tabular=[vision]"
    given = [*settings.split(), f"labels=[{','.join(NAMES)}]"]
    prepare_shards(compose(PrepareConfig, given), lambda *_: None, lambda _: {})
    return train(folder, "dataset=shards", f"dataset.path={shards}", "dataset.max_seq_len=5")
