"""What a source of data is read into, and the settings that decide how.

Notation: N items.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.errors import UserError
from common.task import Task

#: The six emotions of CMU-MOSEI, in the order of its label files, after the sentiment.
EMOTIONS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")

#: How the sides of a split are called here, by what sources call them.
SIDES = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

#: More than this many classes are a mistake, such as labels that are ids.
MAX_CLASSES = 10_000


@dataclass(frozen=True)
class ReadSettings:
    """How a source is read."""

    task: Task = Task.regression
    #: Whether the labels are the source's six emotions; then `task` is multilabel.
    emotions: bool = False
    #: Which to read; empty for all that there are.
    modalities: tuple[str, ...] = ()
    #: Name of the array or column that holds the groups; None for the format's own.
    group: str | None = None
    #: Where an item is one vector: how many items of its group come before it in its sequence.
    context: int = 0
    #: Modalities whose steps are different quantities.
    tabular: tuple[str, ...] = ()
    #: At most so many last steps are kept; None for all.
    max_seq_len: int | None = None
    #: Columns of a table that hold the labels.
    labels: tuple[str, ...] = ()
    #: Modality to its file, for a table.
    arrays: Mapping[str, str] = field(default_factory=dict)
    #: What stands before a setting's name on the user's command line.
    prefix: str = ""
    #: Whether a source need not have all of `modalities`, but one.
    lenient: bool = False
    #: Whether items are read to predict them. Then labels and sides are not read, and labels are
    #: NaN; no item is dropped for what it lacks; and reading is lenient.
    predicting: bool = False


@dataclass(frozen=True)
class Source:
    """What a reader returns."""

    #: Cleaned; their `sequences` are float32, or float16 where the source is.
    items: MultimodalDataset
    #: (N,) "train", "validation" or "test", as the source says; "" where it does not.
    splits: NDArray[np.str_]


def paths_named(setting: str, given: object) -> list[Path]:
    """Return the path or paths that a setting names; raise `UserError` if it names none."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    paths = [Path(path) for path in listed if isinstance(path, str) and path]
    if not paths or len(paths) < len(listed):
        raise UserError(f"{setting}={given}: expected a path or a list of paths")
    return paths


def check_tabular(items: MultimodalDataset, settings: ReadSettings) -> None:
    """Raise `UserError` where a modality that should be tabular was not read."""
    unknown = sorted(set(settings.tabular) - set(items.sequences))
    if unknown:
        raise UserError(
            f"{settings.prefix}tabular: {unknown[0]!r} is not among {', '.join(items.sequences)}"
        )


def as_text(value: object) -> str:
    """Return a name as text, also where it is bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def check_unique(ids: NDArray[np.str_], path: Path) -> NDArray[np.str_]:
    """Return ids, or raise `UserError` where two items have the same."""
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        raise UserError(
            f"{path}: two items have the id {str(names[counts > 1][0])!r}; expected one each"
        )
    return ids


def checked_labels(
    labels: NDArray[np.float64], settings: ReadSettings, path: Path
) -> NDArray[np.float32]:
    """Check that labels, (N,) or (N, K) with NaN where there is none, fit the task.

    Those of several labels become 0 and 1.

    Raises `UserError` if none is known, one is infinite, or classes are not whole numbers from 0.
    """
    known = labels[~np.isnan(labels)]
    if len(known) == 0:
        raise UserError(f"{path}: every label is NaN")
    if not (np.abs(known) <= np.finfo(np.float32).max).all():
        raise UserError(f"{path}: label holds an infinity, or a number too large for one")
    task = settings.task
    if task is Task.classification and ((known < 0) | (known % 1 != 0)).any():
        raise UserError(
            f"{path}: classes must be whole numbers from 0; for numbers use "
            f"{settings.prefix}task=regression"
        )
    if task is Task.classification and known.max() >= MAX_CLASSES:
        raise UserError(
            f"{path}: class {known.max():.0f}: expected fewer than {MAX_CLASSES} classes"
        )
    if task is Task.multilabel:
        labels = np.where(np.isnan(labels), np.nan, labels > 0)
    with np.errstate(invalid="ignore"):  # a NaN may be a signalling one
        return labels.astype(np.float32)


def modalities_there(settings: ReadSettings, there: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities to read: those asked for, and leniently those of them there are."""
    if not (settings.predicting or settings.lenient):
        return settings.modalities
    available = set(there)
    return tuple(filter(available.__contains__, settings.modalities)) or settings.modalities


def no_labels(items: int) -> NDArray[np.float32]:
    """Return the labels (N,) of a source that is read without them: NaN."""
    return np.full(items, np.nan, dtype=np.float32)


def drop_unlabelled(
    dataset: MultimodalDataset, splits: NDArray[np.str_], settings: ReadSettings
) -> Source:
    """Drop items with a NaN among their labels and count them; classes become int64."""
    if settings.predicting:
        return Source(dataset, splits)
    unknown = np.isnan(dataset.labels)
    unlabelled = unknown if unknown.ndim == 1 else unknown.any(axis=1)
    labelled = np.flatnonzero(~unlabelled)
    kept = dataset.select(labelled)
    if settings.task is Task.classification:
        kept = replace(kept, labels=kept.labels.astype(np.int64))
    if unlabelled.any():
        dropped = {"items without a label, dropped": int(unlabelled.sum())}
        kept = replace(kept, cleaning={**kept.cleaning, **dropped})
    return Source(kept, splits[labelled])
