"""What all sources of CMU-MOSI and CMU-MOSEI have in common: utterances of videos.

Notation: N items.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.data.labels import Labels, read_labels
from common.data.source import EMOTIONS, ReadSettings, Source, finished, modalities_there
from common.errors import UserError
from common.task import Task


def modalities_of(path: Path, there: Iterable[str], settings: ReadSettings) -> tuple[str, ...]:
    """Return the modalities to read, of those there are.

    Raises
    ------
    UserError
        If one is not there, none is, or settings ask for something that utterances do not have.
    """
    if settings.context > 0:
        raise UserError(
            f"{settings.prefix}context={settings.context} is for arrays with one vector an item"
        )
    if settings.group is not None:
        raise UserError(
            f"{settings.prefix}group={settings.group}: groups are the videos that ids name"
        )
    if settings.task is Task.multilabel and not settings.emotions:
        raise UserError(
            f"{path} has one label an item; {settings.prefix}task=emotion takes the six emotions, "
            "where it has them"
        )
    names = tuple(there)
    if not names:
        raise UserError(f"{path} has no modality; expected language, audio or vision")
    wanted = modalities_there(settings, names) or names
    for name in wanted:
        if name not in names:
            raise UserError(f"{path} has no modality {name!r}; it has {', '.join(names)}")
    return tuple(dict.fromkeys(wanted))


def labels_of(
    path: Path, columns: NDArray[Any], ids: NDArray[np.str_], settings: ReadSettings
) -> Labels:
    """Return the sentiment or classes, or the emotions, of (N, 1) or (N, 7) columns."""
    place = ids.tolist().__getitem__
    if not settings.emotions:
        return read_labels(path, [columns[:, 0]], ["label"], settings, place)
    if columns.shape[1] == 1:
        raise UserError(
            f"{path} has no emotions: labels have one column, expected 7 for task=emotion"
        )
    labels = read_labels(path, list(columns.T[1:]), EMOTIONS, settings, place)
    return labels._replace(names=EMOTIONS)


def cleaned(
    path: Path, items: MultimodalDataset, splits: NDArray[Any], settings: ReadSettings
) -> Source:
    """Drop items that lack language or a label, and count what is missing.

    When predicting, none is dropped.

    Raises
    ------
    UserError
        If no item is left.
    """
    kept = items
    if "language" in items.sequences and not settings.predicting:
        index = np.flatnonzero(items.sequences["language"].present)
        kept, splits = items.select(index), splits[index]
    settings.note("items whose language is missing or all zero, dropped", len(items) - len(kept))
    source = finished(kept, splits, settings)
    if len(source.items) == 0:
        raise UserError(f"{path}: no item has a label and language that is not all zero")
    return source
